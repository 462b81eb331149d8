"""Write the graph of a model as ONNX, and read names and widths from ONNX files."""

import math
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deploy.blame import rows_to_blame
from deploy.graph import DeployGraph
from deploy.libraries import require
from deploy.metadata import Metadata
from deploy.quiet import quiet
from deploy.settings import ExportSettings
from models import Model
from utils.errors import UserError

INPUT, OUTPUT = "images", "output0"
CONVOLUTIONS = {"Conv", "ConvTranspose", "ConvInteger", "QLinearConv"}
PRODUCTS = CONVOLUTIONS | {"Gemm", "MatMul"}


def write_onnx(model: Model, path: Path, settings: ExportSettings) -> None:
    """Write a deployed model as ONNX with its metadata.

    torch's exporter by tracing is used: the newer one (`dynamo=True`) gives the same outputs and,
    after onnxslim, a graph of the same size, in 10 to 40 times the time.

    Args:
        model: Deployed model.
        path: File to write.
        settings: Sizes, opset, NMS; `half` is for the caller.

    Raises:
        UserError: An operator of the model has no counterpart in ONNX of that opset.
    """
    onnx = require("onnx", "ONNX")
    graph = DeployGraph(model, settings.end2end).eval()
    images = torch.zeros(settings.batch, 3, *settings.imgsz)
    try:
        _trace(graph, [images], path, settings)
    except UserError as error:
        rows = rows_to_blame(model, images[:1], lambda row, maps: _trace(row, maps, path, settings))
        raise UserError(f"{error}{rows}") from None
    content = onnx.load(str(path))
    if settings.simplify:
        content = require("onnxslim", "--simplify").slim(content)
    add_metadata(content, settings.metadata(model))
    onnx.checker.check_model(content)
    onnx.save(content, str(path))


def _trace(graph: nn.Module, maps: list[Tensor], path: Path, settings: ExportSettings) -> None:
    """Write the graph of a module by torch's exporter.

    Raises:
        UserError: An operator has no counterpart in ONNX of that opset.
    """
    whole = isinstance(graph, DeployGraph)
    names: dict[str, Any] = {"input_names": [INPUT], "output_names": [OUTPUT]} if whole else {}
    with quiet(), torch.no_grad():
        try:
            torch.onnx.export(
                graph,
                tuple(maps),
                str(path),
                dynamo=False,
                opset_version=settings.opset,
                dynamic_axes=_dynamic_axes(settings) if whole else {},
                **names,
            )
        except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"ONNX of opset {settings.opset} cannot express the model ({reason})"
            ) from None


def _dynamic_axes(settings: ExportSettings) -> dict[str, dict[int, str]]:
    """Return the axes without a fixed size."""
    axes: dict[str, dict[int, str]] = {}
    if settings.dynamic:
        axes[INPUT] = {0: "batch", 2: "height", 3: "width"}
        axes[OUTPUT] = {0: "batch", 1: "boxes"}
    if settings.end2end is not None:
        axes[OUTPUT] = {0: "boxes"}
    return axes


def add_metadata(content: Any, metadata: Metadata) -> None:
    """Put metadata into an ONNX model, in place of earlier ones."""
    del content.metadata_props[:]
    for key, text in metadata.to_texts().items():
        item = content.metadata_props.add()
        item.key, item.value = key, text


def convolution_widths(path: Path) -> Counter[tuple[int, int]]:
    """Return the widths of the convolutions of an ONNX file; see `Exporter.widths`."""
    content = require("onnx", "ONNX").load(str(path))
    shapes = {tensor.name: tuple(tensor.dims) for tensor in content.graph.initializer}
    maker = {output: node for node in content.graph.node for output in node.output}
    found: Counter[tuple[int, int]] = Counter()
    for node in content.graph.node:
        if node.op_type not in CONVOLUTIONS:
            continue
        name = node.input[3] if node.op_type == "QLinearConv" else node.input[1]
        while name not in shapes and name in maker:  # through DequantizeLinear and Cast
            name = maker[name].input[0]
        if name in shapes:
            found[shapes[name][0], math.prod(shapes[name][1:])] += 1
    return found


def decoding_nodes(content: Any) -> list[str]:
    """Return the names of the nodes behind the last convolutions: the decoding, and NMS.

    Their values are pixels and scores, which neither float16 nor INT8 may round.
    """
    readers: dict[str, list[Any]] = {}
    for node in content.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    feeds: dict[str, bool] = {}  # whether a node or one behind it is a product of matrices
    for node in reversed(content.graph.node):  # in the order of computation
        behind = [reader for name in node.output for reader in readers.get(name, [])]
        feeds[node.name] = node.op_type in PRODUCTS or any(feeds[n.name] for n in behind)
    return [name for name, feeding in feeds.items() if not feeding]


def prediction_nodes(content: Any) -> list[str]:
    """Return the names of the last convolutions: those whose results only the decoding reads."""
    behind = set(decoding_nodes(content))
    readers: dict[str, list[str]] = {}
    for node in content.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node.name)
    return [
        node.name
        for node in content.graph.node
        if node.op_type in PRODUCTS
        and all(reader in behind for name in node.output for reader in readers.get(name, []))
    ]
