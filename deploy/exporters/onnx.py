"""ONNX: one file for ONNX Runtime, OpenVINO, TensorRT, RKNN and others."""

from pathlib import Path

from deploy.exporters.base import EXPORTERS, Exporter, Widths
from deploy.libraries import require
from deploy.onnx_file import add_metadata, convolution_widths, decoding_nodes, write_onnx
from deploy.settings import ExportSettings
from models import Model


@EXPORTERS.register("onnx")
class OnnxExporter(Exporter):
    """ONNX with float32 inputs and outputs; `half` stores and computes in float16 between them."""

    name, suffix = "onnx", ".onnx"
    libraries = ("onnx", "onnxruntime")
    takes = Exporter.takes | {"opset", "simplify"}

    def write(self, model: Model, path: Path, settings: ExportSettings) -> None:
        """See Exporter."""
        write_onnx(model, path, settings)
        if settings.half:
            _to_half(path, settings, model)

    def widths(self, path: Path) -> Widths:
        """See Exporter."""
        return convolution_widths(path)


def _to_half(path: Path, settings: ExportSettings, model: Model) -> None:
    """Convert weights and computation of a file to float16; decoding and NMS stay in float32."""
    onnx, float16 = require("onnx", "--half"), require("onnxruntime.transformers.float16", "--half")
    content = onnx.load(str(path))
    content = float16.convert_float_to_float16(
        content, keep_io_types=True, node_block_list=decoding_nodes(content)
    )
    add_metadata(content, settings.metadata(model))
    onnx.save(content, str(path))
