"""Keep remarks of libraries off the screen whose result is verified anyway."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

CHATTY = ("torch.onnx", "nncf", "openvino", "onnxruntime", "onnxslim")


@contextmanager
def quiet() -> Iterator[None]:
    """Show no warnings and no log below errors of the exporting libraries inside the block."""
    logs = [logging.getLogger(name) for name in CHATTY]
    levels = [log.level for log in logs]
    for log in logs:
        log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)
