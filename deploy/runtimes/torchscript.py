"""TorchScript files, which need PyTorch and none of our code."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deploy.metadata import Metadata
from deploy.quiet import quiet
from deploy.runtimes.base import RUNTIMES, Runtime, check_output
from models.archive import is_archive, one_line
from models.heads.base import Detections
from utils.errors import UserError

KEYS = tuple(Metadata.__dataclass_fields__)


@RUNTIMES.register("torchscript")
class TorchScriptRuntime(Runtime):
    """A traced detector; computes on any device of PyTorch."""

    name, suffix, only_cpu = "torchscript", ".torchscript", False

    def __init__(self, path: Path, module: Any, metadata: Metadata, threads: int | None):
        super().__init__(path, metadata, threads)
        if threads:
            torch.set_num_threads(threads)
        self.module = module

    @classmethod
    def open(cls, path: Path, device: torch.device, threads: int | None) -> "TorchScriptRuntime":
        """Load a file; see Runtime."""
        if not is_archive(path):
            raise UserError(f"{path}: cannot be read, it is damaged or no TorchScript")
        extra: dict[str, Any] = dict.fromkeys(KEYS, "")
        try:
            with quiet():
                module = torch.jit.load(str(path), map_location=device, _extra_files=extra)
        except (RuntimeError, ValueError, AttributeError) as error:
            raise UserError(f"{path}: cannot be read as TorchScript: {one_line(error)}") from None
        texts = {key: _text(value) for key, value in extra.items() if value}
        return cls(path, module.eval(), Metadata.from_texts(texts, str(path)), threads)

    def run(self, images: Tensor) -> Detections:
        """See Runtime."""
        with torch.no_grad():
            try:
                found = self.module(images)
            except RuntimeError as error:
                reason = one_line(error)[-200:]
                raise UserError(f"{self.path}: TorchScript cannot run it: {reason}") from None
        if not isinstance(found, Tensor):
            raise UserError(f"{self.path}: gives no tensor; it is no detector of export.py")
        return Detections(check_output(found, images, self), [])


def _text(value: bytes | str) -> str:
    """Return a stored text; bytes that are no UTF-8 are caught where it is parsed."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
