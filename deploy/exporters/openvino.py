"""OpenVINO: a folder for Intel's CPUs, GPUs and NPUs, and fast on others' CPUs too."""

import math
from collections import Counter
from pathlib import Path
from typing import Any

from deploy.exporters.base import EXPORTERS, Exporter, Widths
from deploy.libraries import require
from deploy.metadata_file import write_metadata
from deploy.onnx_file import write_onnx
from deploy.runtimes.openvino import read_graph
from deploy.settings import ExportSettings
from models import Model

CONVOLUTIONS = {"Convolution", "ConvolutionBackpropData"}
GROUPED = {"GroupConvolution", "GroupConvolutionBackpropData"}


@EXPORTERS.register("openvino")
class OpenVinoExporter(Exporter):
    """The ONNX graph, converted, so that layers keep our names; `half` stores float16 weights."""

    name, suffix = "openvino", "_openvino_model"
    libraries = ("onnx", "openvino")
    takes = Exporter.takes | {"opset", "simplify"}

    def write(self, model: Model, path: Path, settings: ExportSettings) -> None:
        """See Exporter."""
        openvino = require("openvino", "--include openvino")
        path.mkdir()
        stem = path.name.removesuffix(self.suffix)
        interim = path / f"{stem}.onnx"
        write_onnx(model, interim, settings)
        graph = openvino.Core().read_model(str(interim))  # convert_model reports to its makers
        openvino.save_model(graph, str(path / f"{stem}.xml"), compress_to_fp16=settings.half)
        del graph  # maps the interim file
        interim.unlink()
        write_metadata(settings.metadata(model), path)

    def widths(self, path: Path) -> Widths:
        """See Exporter."""
        return graph_widths(read_graph(path))


def graph_widths(graph: Any) -> Widths:
    """Return the widths of the convolutions of a graph of OpenVINO; see `Exporter.widths`."""
    found: Widths = Counter()
    for node in graph.get_ops():
        kind = node.get_type_name()
        if kind in CONVOLUTIONS:
            shape = tuple(node.input(1).get_shape())
            found[shape[0], math.prod(shape[1:])] += 1
        elif kind in GROUPED:  # (groups, outputs of a group, inputs of a group, kernel)
            shape = tuple(node.input(1).get_shape())
            found[shape[0] * shape[1], math.prod(shape[2:])] += 1
    return found
