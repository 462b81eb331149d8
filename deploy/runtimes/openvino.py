"""Folders of OpenVINO, on the CPU."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deploy.libraries import require
from deploy.metadata import Metadata
from deploy.metadata_file import read_metadata
from deploy.runtimes.base import RUNTIMES, Runtime, check_output
from models.archive import one_line
from models.heads.base import Detections
from utils.errors import UserError
from utils.files import why_not_regular


@RUNTIMES.register("openvino")
class OpenVinoRuntime(Runtime):
    """A folder with `<name>.xml`, `<name>.bin` and `metadata.yaml`, in OpenVINO."""

    name, suffix = "openvino", "_openvino_model"

    def __init__(self, path: Path, compiled: Any, metadata: Metadata, threads: int):
        super().__init__(path, metadata, threads)
        self.compiled = compiled

    @classmethod
    def open(cls, path: Path, device: torch.device, threads: int | None) -> "OpenVinoRuntime":
        """Load a folder; see Runtime."""
        metadata = read_metadata(path)
        threads = threads or torch.get_num_threads()
        return cls(
            path, compile_graph(read_graph(path), metadata, threads, path), metadata, threads
        )

    def run(self, images: Tensor) -> Detections:
        """See Runtime."""
        try:
            found = self.compiled([np.ascontiguousarray(images.numpy())])[0]
        except RuntimeError as error:
            raise UserError(f"{self.path}: OpenVINO cannot run it: {one_line(error)}") from None
        # a copy: the next call writes into the same memory
        return Detections(check_output(torch.from_numpy(found.copy()), images, self), [])


def read_graph(folder: Path) -> Any:
    """Return the graph in a folder of OpenVINO.

    Raises:
        UserError: The folder has no graph, or a damaged one.
    """
    openvino = require("openvino", str(folder))
    found = sorted(folder.glob("*.xml"))
    if len(found) != 1:
        raise UserError(f"{folder}: has {len(found)} .xml files; an exported folder has one")
    weights = found[0].with_suffix(".bin")
    if reason := why_not_regular(weights):
        raise UserError(f"{weights}: {reason}; the exported folder is not whole")
    try:
        return openvino.Core().read_model(str(found[0]), str(weights))
    except RuntimeError as error:
        raise UserError(f"{found[0]}: OpenVINO cannot read it: {one_line(error)}") from None


def compile_graph(graph: Any, metadata: Metadata, threads: int, where: Path) -> Any:
    """Return a graph of OpenVINO ready to run on the CPU.

    Args:
        graph: The graph.
        metadata: Says the precision: a file of float32 computes in float32 on every CPU.
        threads: Threads of a call.
        where: For messages.
    """
    openvino = require("openvino", str(where))
    config = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    if metadata.precision == "fp32":
        config["INFERENCE_PRECISION_HINT"] = "f32"
    try:
        return openvino.Core().compile_model(graph, "CPU", config)
    except RuntimeError as error:
        raise UserError(f"{where}: OpenVINO cannot compile it: {one_line(error)}") from None
