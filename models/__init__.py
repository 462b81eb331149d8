"""Detectors: YAML rows -> modules, official parameter names, checkpoints that carry a pruned
structure.
"""

from models.checkpoint import load_model, save_model
from models.yolo import Model, build_model

__all__ = ["Model", "build_model", "load_model", "save_model"]
