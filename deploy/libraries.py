"""Import libraries that only some formats need; name the pip command where one is missing."""

import importlib
from types import ModuleType

from utils.errors import UserError

FLOORS = {
    "onnx": "onnx>=1.16",
    "onnxruntime": "onnxruntime>=1.18",
    "onnxslim": "onnxslim>=0.1.60",
    "openvino": "openvino>=2024.6",
    "nncf": "nncf>=2.14",
    "ncnn": "ncnn>=1.0.20240820",
    "pnnx": "pnnx>=20240819",
}
"""Requirement of each optional library by the name of its module: requirements-export.txt."""


def require(name: str, purpose: str) -> ModuleType:
    """Return an optional library.

    Args:
        name: Key of `FLOORS`.
        purpose: What needs the library, for the message.

    Raises:
        UserError: The library is not installed, or cannot be loaded on this machine.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        if getattr(error, "name", "") == name:
            raise UserError(
                f"{purpose}: needs {name}, which is not installed; python -m pip install"
                f' "{FLOORS[name]}" (all optional ones: -r requirements-export.txt)'
            ) from None
        raise UserError(f"{purpose}: {name} is installed but cannot be loaded: {error}") from None
