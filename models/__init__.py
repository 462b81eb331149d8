"""Detectors: modules from YAML rows, official parameter names, checkpoints of pruned models."""

from models.checkpoint import load_model, save_model
from models.yolo import Model, build_model

__all__ = ["Model", "build_model", "load_model", "save_model"]
