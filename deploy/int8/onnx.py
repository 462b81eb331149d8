"""INT8 ONNX in QDQ form by ONNX Runtime: weights by channel, activations by tensor."""

import logging
from collections.abc import Collection, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from deploy.int8.base import QUANTIZERS, Calibration, Quantizer, layer_of
from deploy.libraries import require
from deploy.metadata import Metadata
from deploy.onnx_file import INPUT, add_metadata, decoding_nodes, prediction_nodes
from deploy.quiet import quiet

STRIDE = 2
"""Batches between reductions of the measured tensors, which would fill the memory."""
QUANTISED = ("Conv",)
METHOD_NAMES = {"minmax": "MinMax", "entropy": "Entropy", "percentile": "Percentile"}


@QUANTIZERS.register("onnx")
class OnnxQuantizer(Quantizer):
    """Quantise the convolutions of an ONNX file.

    Weights take 7 bits: on CPUs without VNNI, products of 8 bits overflow the 16 that hold the sum
    of two. Activations between two convolutions are rounded as well; SiLU and the like compute in
    float, which is quicker than their quantised forms.
    """

    name = "onnx"
    libraries = ("onnx", "onnxruntime")

    def __init__(self, path: Path, calibration: Calibration, metadata: Metadata):
        """See Quantizer."""
        onnx = require("onnx", "--int8")
        self.metadata = metadata
        self.content = onnx.load(str(path))
        self.excluded = {*decoding_nodes(self.content), *prediction_nodes(self.content)}
        self.nodes = {
            node.name: layer_of(node.name)
            for node in self.content.graph.node
            if node.op_type in QUANTISED and node.name not in self.excluded
        }
        with quiet():
            self.ranges = self._measure(path, calibration)

    @property
    def layers(self) -> list[str]:
        """See Quantizer."""
        return list(dict.fromkeys(self.nodes.values()))

    def write(self, path: Path, keep: Collection[str] = ()) -> None:
        """See Quantizer."""
        onnx = require("onnx", "--int8")
        quantization = require("onnxruntime.quantization", "--int8")
        module = require("onnxruntime.quantization.qdq_quantizer", "--int8")
        content = onnx.ModelProto.FromString(self.content.SerializeToString())
        kinds = quantization.QuantType
        quantizer = module.QDQQuantizer(
            content,
            per_channel=True,
            reduce_range=True,
            weight_qType=kinds.QInt8,
            activation_qType=kinds.QUInt8,
            tensors_range=self.ranges,
            nodes_to_quantize=[name for name, layer in self.nodes.items() if layer not in keep],
            nodes_to_exclude=[],
            op_types_to_quantize=list(QUANTISED),
            extra_options={},
        )
        with quiet(), _silent_root():
            quantizer.quantize_model()
        written = quantizer.model.model
        add_metadata(written, self.metadata)
        onnx.save(written, str(path))

    def _measure(self, path: Path, calibration: Calibration) -> Any:
        """Return the ranges of all tensors that convolutions read and write."""
        calibrate = require("onnxruntime.quantization.calibrate", "--int8")
        method = getattr(calibrate.CalibrationMethod, METHOD_NAMES[calibration.method])
        with TemporaryDirectory(prefix="calibration-") as folder:
            calibrator = calibrate.create_calibrator(
                path,
                list(QUANTISED),
                augmented_model_path=str(Path(folder) / "augmented.onnx"),
                calibrate_method=method,
            )
            batches = calibration.batches()
            reader = _Reader(batches)
            while reader.more():
                calibrator.collect_data(reader)
            return calibrator.compute_data()


class _Reader:
    """Hand batches to ONNX Runtime, a few at a time."""

    def __init__(self, batches: Iterator[np.ndarray]):
        self.batches, self.left = batches, 0
        self.following = next(batches, None)

    def more(self) -> bool:
        """Begin with the next few batches; return whether there are any."""
        self.left = STRIDE
        return self.following is not None

    def get_next(self) -> dict[str, np.ndarray] | None:
        """Return the input of one call, None behind the last."""
        if self.following is None or not self.left:
            return None
        self.left -= 1
        batch, self.following = self.following, next(self.batches, None)
        return {INPUT: batch}


class _silent_root:  # noqa: N801  a context manager
    """Keep the quantiser's remarks, which go to the root of logging, off the screen."""

    def __enter__(self) -> None:
        self.level = logging.getLogger().level
        logging.getLogger().setLevel(logging.ERROR)

    def __exit__(self, *_: object) -> None:
        logging.getLogger().setLevel(self.level)
