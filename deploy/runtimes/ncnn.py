"""Folders of ncnn, on the CPU."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deploy.libraries import require
from deploy.metadata import Metadata
from deploy.metadata_file import read_metadata
from deploy.runtimes.base import RUNTIMES, Runtime, check_output
from models.heads.base import Detections
from utils.errors import UserError
from utils.files import why_not_regular

PARAM, WEIGHTS = "model.ncnn.param", "model.ncnn.bin"
INPUT, OUTPUT = "in0", "out0"


@RUNTIMES.register("ncnn")
class NcnnRuntime(Runtime):
    """A folder with `model.ncnn.param`, `model.ncnn.bin` and `metadata.yaml`, image by image."""

    name, suffix = "ncnn", "_ncnn_model"

    def __init__(self, path: Path, net: Any, metadata: Metadata, threads: int):
        super().__init__(path, metadata, threads)
        self.net, self.ncnn = net, require("ncnn", str(path))

    @classmethod
    def open(cls, path: Path, device: torch.device, threads: int | None) -> "NcnnRuntime":
        """Load a folder; see Runtime."""
        metadata = read_metadata(path)
        for file in (path / PARAM, path / WEIGHTS):
            if reason := why_not_regular(file):
                raise UserError(f"{file}: {reason}; the exported folder is not whole")
        threads = threads or torch.get_num_threads()
        return cls(path, _load(path, metadata, threads), metadata, threads)

    def run(self, images: Tensor) -> Detections:
        """See Runtime."""
        parts = [self._run_one(np.ascontiguousarray(image.numpy())) for image in images]
        return Detections(check_output(torch.stack(parts), images, self), [])

    def _run_one(self, image: np.ndarray) -> Tensor:
        """Detect in one image (3, H, W)."""
        extractor = self.net.create_extractor()
        extractor.input(INPUT, self.ncnn.Mat(image).clone())
        code, found = extractor.extract(OUTPUT)
        if code:
            raise UserError(f"{self.path}: ncnn cannot run it (code {code})")
        return torch.from_numpy(np.array(found))


def _load(path: Path, metadata: Metadata, threads: int) -> Any:
    """Return the network in a folder."""
    net = require("ncnn", str(path)).Net()
    net.opt.num_threads = threads
    if metadata.precision == "fp32":
        for name in ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic"):
            setattr(net.opt, name, False)
    if net.load_param(str(path / PARAM)) or net.load_model(str(path / WEIGHTS)):
        raise UserError(f"{path}: ncnn cannot load it; export it again")
    if list(net.input_names()) != [INPUT] or OUTPUT not in list(net.output_names()):
        raise UserError(f"{path}: has other inputs and outputs than a detector of export.py")
    return net
