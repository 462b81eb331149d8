"""Old place of `models.pruning_rules`, for the blocks of users that import it from here."""

import importlib
from typing import Any

from utils.log import deprecated


def __getattr__(name: str) -> Any:
    """Hand on what the module that has moved defines."""
    deprecated("utils.tracing", "models.pruning_rules")
    return getattr(importlib.import_module("models.pruning_rules"), name)
