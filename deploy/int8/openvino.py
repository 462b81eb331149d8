"""INT8 OpenVINO by NNCF: weights by channel, activations by tensor, biases corrected."""

import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

from deploy.int8.base import QUANTIZERS, Calibration, Quantizer, layer_of
from deploy.libraries import require
from deploy.metadata import Metadata
from deploy.metadata_file import write_metadata
from deploy.quiet import quiet
from deploy.runtimes.openvino import read_graph

PRODUCTS = {"Convolution", "GroupConvolution", "MatMul"}
SUFFIX = "_openvino_model"
BIAS_APART = "/WithoutBiases"
"""What OpenVINO adds to the name of a convolution whose bias it adds by a node of its own."""


@QUANTIZERS.register("openvino")
class OpenVinoQuantizer(Quantizer):
    """Quantise a folder of OpenVINO.

    Weights take 7 bits, see the quantiser of ONNX. NNCF measures ranges by a method of its own.
    """

    name = "openvino"
    libraries = ("openvino", "nncf")
    methods = ("minmax",)

    def __init__(self, path: Path, calibration: Calibration, metadata: Metadata):
        """See Quantizer."""
        os.environ.setdefault("NNCF_CI", "1")  # else importing it reports to its makers
        self.nncf = require("nncf", "--int8")
        self.path, self.metadata = path, metadata
        self.batches = list(calibration.batches())
        graph = read_graph(path)
        behind = _decoding(graph)
        products = [node for node in graph.get_ordered_ops() if node.get_type_name() in PRODUCTS]
        names = [node.get_friendly_name() for node in products]
        last = {
            node.get_friendly_name()
            for node in products
            if all(reader in behind for reader in _readers(node))
        }
        self.excluded = [*behind, *last]
        self.nodes = {
            name: layer_of(name.removesuffix(BIAS_APART)) for name in names if name not in last
        }

    @property
    def layers(self) -> list[str]:
        """See Quantizer."""
        return list(dict.fromkeys(self.nodes.values()))

    def write(self, path: Path, keep: Collection[str] = ()) -> None:
        """See Quantizer."""
        openvino = require("openvino", "--int8")
        kept = [name for name, layer in self.nodes.items() if layer in keep]
        fix = self.nncf.quantization.advanced_parameters.OverflowFix.ENABLE
        with quiet():
            graph = self.nncf.quantize(
                read_graph(self.path),
                self.nncf.Dataset(self.batches),
                subset_size=len(self.batches),
                ignored_scope=self.nncf.IgnoredScope(names=[*self.excluded, *kept], validate=False),
                advanced_parameters=self.nncf.AdvancedQuantizationParameters(overflow_fix=fix),
            )
        path.mkdir()
        stem = path.name.removesuffix(SUFFIX)
        openvino.save_model(graph, str(path / f"{stem}.xml"), compress_to_fp16=False)
        write_metadata(self.metadata, path)


def _readers(node: Any) -> list[str]:
    """Return the names of the nodes that read a node."""
    return [
        target.get_node().get_friendly_name()
        for output in node.outputs()
        for target in output.get_target_inputs()
    ]


def _decoding(graph: Any) -> set[str]:
    """Return the names of the nodes behind the last products; see `onnx_file.decoding_nodes`."""
    feeds: dict[str, bool] = {}
    for node in reversed(graph.get_ordered_ops()):
        product = node.get_type_name() in PRODUCTS
        feeds[node.get_friendly_name()] = product or any(feeds[name] for name in _readers(node))
    silent = {"Constant", "Parameter", "Result"}
    kinds = {node.get_friendly_name(): node.get_type_name() for node in graph.get_ops()}
    return {name for name, feeding in feeds.items() if not feeding and kinds[name] not in silent}
