"""Export formats by name, one file each."""

import sys

from deploy.exporters.base import EXPORTERS, Exporter
from utils.registry import import_files_of

import_files_of(sys.modules[__name__])

__all__ = ["EXPORTERS", "Exporter"]
