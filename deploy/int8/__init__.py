"""INT8 after training: quantisers by format, and the search for layers that stay in float."""

import sys

from deploy.int8.base import QUANTIZERS, Quantizer
from utils.registry import import_files_of

import_files_of(sys.modules[__name__])

__all__ = ["QUANTIZERS", "Quantizer"]
