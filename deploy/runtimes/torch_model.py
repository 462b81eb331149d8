"""Checkpoints in PyTorch: ours, or an official `.pt`; the deployed form computes."""

from pathlib import Path

import torch
from torch import Tensor

from deploy.metadata import Metadata
from deploy.runtimes.base import RUNTIMES, Runtime
from models import Model, load_model
from models.heads.base import Detections


@RUNTIMES.register("torch")
class TorchModel(Runtime):
    """A deployed `Model`, which takes any size and batch and gives raw maps."""

    name, suffix, only_cpu = "torch", ".pt", False

    def __init__(self, path: Path, model: Model, threads: int | None = None):
        super().__init__(path, metadata_of(model), threads)
        if threads:
            torch.set_num_threads(threads)
        self.model = model.eval()
        self.stride = model.stride

    @classmethod
    def open(cls, path: Path, device: torch.device, threads: int | None) -> "TorchModel":
        """Load a checkpoint; see Runtime."""
        return cls(path, load_model(path, device).fuse(), threads)

    @property
    def gives_raw_maps(self) -> bool:
        """See Runtime."""
        return True

    def run(self, images: Tensor) -> Detections:
        """See Runtime."""
        with torch.no_grad():
            return self.model(images)


def metadata_of(model: Model) -> Metadata:
    """Return the metadata of a model of ours, as dynamic in size and batch."""
    return Metadata(
        names=tuple(model.names),
        stride=tuple(model.stride.tolist()),
        max_stride=model.max_stride,
        imgsz=(model.imgsz, model.imgsz),
        dynamic=True,
    )
