"""TorchScript: one file for PyTorch in C++ and Python, without our code."""

import math
from collections import Counter
from pathlib import Path

import torch

from deploy.exporters.base import EXPORTERS, Exporter, Widths
from deploy.graph import DeployGraph
from deploy.quiet import quiet
from deploy.settings import ExportSettings
from models import Model

KERNEL_DIMENSIONS = 4


@EXPORTERS.register("torchscript")
class TorchScriptExporter(Exporter):
    """A trace of the deployed model."""

    name, suffix = "torchscript", ".torchscript"
    takes = frozenset({"dynamic"})

    def write(self, model: Model, path: Path, settings: ExportSettings) -> None:
        """See Exporter."""
        graph = DeployGraph(model).eval()
        images = torch.zeros(settings.batch, 3, *settings.imgsz)
        with quiet(), torch.no_grad():
            traced = torch.jit.trace(graph, images, check_trace=False)
            torch.jit.save(traced, str(path), _extra_files=settings.metadata(model).to_texts())

    def widths(self, path: Path) -> Widths:
        """Return the shapes of all kernels of a file."""
        with quiet():
            module = torch.jit.load(str(path))
        shapes = [tuple(value.shape) for value in module.state_dict().values()]
        kernels = [shape for shape in shapes if len(shape) == KERNEL_DIMENSIONS]
        return Counter((shape[0], math.prod(shape[1:])) for shape in kernels)
