"""ONNX files in ONNX Runtime, on the CPU."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deploy.libraries import require
from deploy.metadata import Metadata
from deploy.runtimes.base import RUNTIMES, Runtime, check_output
from models.archive import one_line
from models.heads.base import Detections
from utils.errors import UserError
from utils.files import why_not_regular


@RUNTIMES.register("onnxruntime")
class OnnxRuntime(Runtime):
    """An ONNX file that export.py wrote, in ONNX Runtime."""

    name, suffix = "onnxruntime", ".onnx"

    def __init__(self, path: Path, session: Any, metadata: Metadata, threads: int):
        super().__init__(path, metadata, threads)
        self.session, self.input = session, session.get_inputs()[0].name
        self.errors = _errors()

    @classmethod
    def open(cls, path: Path, device: torch.device, threads: int | None) -> "OnnxRuntime":
        """Load a file; see Runtime."""
        if reason := why_not_regular(path):
            raise UserError(f"{path}: {reason}")
        threads = threads or torch.get_num_threads()
        session = open_session(path, threads)
        texts = session.get_modelmeta().custom_metadata_map
        metadata = Metadata.from_texts(texts, str(path))
        _check_input(path, session, metadata)
        return cls(path, session, metadata, threads)

    def run(self, images: Tensor) -> Detections:
        """See Runtime."""
        try:
            (found,) = self.session.run(None, {self.input: np.ascontiguousarray(images.numpy())})
        except self.errors as error:
            raise UserError(f"{self.path}: ONNX Runtime cannot run it: {one_line(error)}") from None
        return Detections(check_output(torch.from_numpy(found), images, self), [])


def open_session(path: Path, threads: int) -> Any:
    """Return a session of ONNX Runtime on the CPU.

    Raises:
        UserError: The file is damaged, or asks for operators that this ONNX Runtime lacks.
    """
    onnxruntime = require("onnxruntime", str(path))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 4  # its errors come as exceptions
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except _errors() as error:
        raise UserError(f"{path}: ONNX Runtime cannot load it: {one_line(error)}") from None


def _errors() -> tuple[type[Exception], ...]:
    """Return the errors of ONNX Runtime, whose only common base is Exception."""
    state = require("onnxruntime.capi.onnxruntime_pybind11_state", "onnxruntime")
    names = ("Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NoModel", "NoSuchFile")
    more = ("NotImplemented", "RuntimeException", "EPFail", "ModelLoaded")
    return (RuntimeError, ValueError, *(getattr(state, name) for name in names + more))


def _check_input(path: Path, session: Any, metadata: Metadata) -> None:
    """Raise `UserError` where inputs and outputs are not what the metadata say."""
    inputs, outputs = session.get_inputs(), session.get_outputs()
    if len(inputs) != 1 or len(outputs) != 1 or inputs[0].type != "tensor(float)":
        raise UserError(
            f"{path}: has {len(inputs)} inputs and {len(outputs)} outputs; a detector of export.py"
            " takes one batch of float images and gives one table of boxes"
        )
    batch = metadata.batch or None
    sides: tuple[Any, ...] = (None, None) if metadata.dynamic else metadata.imgsz
    found = [side if isinstance(side, int) else None for side in inputs[0].shape]
    if found != [batch, 3, *sides]:
        raise UserError(
            f"{path}: takes images of the shape {inputs[0].shape}, its metadata say"
            f" {[batch, 3, *sides]}; it is damaged or was changed by another tool"
        )
