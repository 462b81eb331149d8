"""What the program asks of a runtime: a file that detects, called as a model in eval mode is.

A runtime is one file: a subclass of `Runtime` in `RUNTIMES` that opens its kind of file and runs a
batch of exactly the sizes that the file takes. All that is common is here: cropping and filling of
batches, sizes of images, boxes of files that do NMS themselves.
"""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deploy.metadata import Metadata
from models.heads.base import Detections
from utils.errors import UserError
from utils.images import whole_strides
from utils.registry import Registry

RUNTIMES = Registry("runtime")
GREY = 114 / 255
"""Value of pixels that fill up an image smaller than the file's, as around letterboxed ones."""


class Runtime(nn.Module, ABC):
    """A detector in a file: `runtime(images) -> Detections`, as `Model` in eval mode.

    Attributes:
        path: The file or folder.
        metadata: What the file says of itself.
        imgsz: Height and width in pixels to letterbox images to.
        threads: Threads of a call.
        stride: Pixels a cell of each level, (nl,).
    """

    name: ClassVar[str]
    suffix: ClassVar[str]
    """End of the names of its files, as `.onnx` or `_openvino_model`."""
    only_cpu: ClassVar[bool] = True
    """Whether it computes on the CPU whatever the device."""

    stride: Tensor

    def __init__(self, path: Path, metadata: Metadata, threads: int | None = None):
        super().__init__()
        self.path, self.metadata = path, metadata
        self.imgsz = metadata.imgsz
        self.threads = threads or torch.get_num_threads()
        self.register_buffer("stride", torch.tensor(metadata.stride), persistent=False)
        self.eval()

    @classmethod
    @abstractmethod
    def open(cls, path: Path, device: torch.device, threads: int | None) -> "Runtime":
        """Load a file.

        Raises:
            UserError: The file is missing, damaged or no detector; the device is not served.
        """

    @abstractmethod
    def run(self, images: Tensor) -> Detections:
        """Detect in a batch of exactly the sizes that the file takes.

        Args:
            images: float32 (N, 3, H, W) in 0..1 on the runtime's device.

        Returns:
            What the file gives: (N, M, 5 + nc), or (K, 7) rows of image, xyxy, class, confidence
            where NMS is in the file; and the raw maps, none where the file does not give them.
        """

    @property
    def names(self) -> list[str]:
        """Class names by id."""
        return list(self.metadata.names)

    @property
    def nc(self) -> int:
        """Number of classes."""
        return len(self.metadata.names)

    @property
    def max_stride(self) -> int:
        """Sides of images are multiples of it, in pixels."""
        return self.metadata.max_stride

    @property
    def batch(self) -> int | None:
        """Images of a call of the file, None for any; other numbers are split and filled up."""
        return self.metadata.batch or None

    @property
    def dynamic(self) -> bool:
        """Whether images of any size that is a multiple of `max_stride` are taken."""
        return self.metadata.dynamic

    @property
    def precision(self) -> str:
        """`fp32`, `fp16` or `int8`."""
        return self.metadata.precision

    @property
    def end2end(self) -> bool:
        """Whether NMS is in the file; its thresholds are in `metadata`."""
        return self.metadata.max_det > 0

    @property
    def gives_raw_maps(self) -> bool:
        """Whether raw maps come with the boxes, which losses and `--augment` need."""
        return False

    def set_imgsz(self, imgsz: int | tuple[int, int] | None) -> None:
        """Choose the size of the images; 0 or None keeps the file's.

        Args:
            imgsz: Side of a square, or height and width, in pixels. A side that is no multiple of
                the stride is rounded up with a warning.

        Raises:
            UserError: The file takes only images of another size.
        """
        if not imgsz:
            return
        sides = (imgsz, imgsz) if isinstance(imgsz, int) else imgsz
        if not self.dynamic and tuple(sides) != self.metadata.imgsz:
            height, width = self.metadata.imgsz
            raise UserError(
                f"{self.path}: --imgsz {imgsz}: the file takes images of {height}x{width} px only"
                " (height x width); leave --imgsz out, or export it with that --imgsz or --dynamic"
            )
        height = whole_strides(sides[0], self.max_stride)
        same = sides[1] == sides[0]
        self.imgsz = (height, height if same else whole_strides(sides[1], self.max_stride))

    def forward(self, images: Tensor) -> Detections:
        """Detect in images (N, 3, H, W), float in 0..1, as `Model` does in eval mode.

        A file of a fixed size takes smaller images too: grey fills them up at the right and below,
        which moves no box. A file of a fixed batch takes any number.

        Returns:
            `decoded` (N, M, 5 + nc), the best boxes of NMS with scores of 1 or 0 a class where NMS
            is in the file, so that another NMS keeps them; `raw` maps, [] where there are none.

        Raises:
            UserError: The images are larger than the file takes, or no multiple of the stride.
        """
        count, sides = len(images), (images.shape[2], images.shape[3])
        images = self._filled(images, *sides)
        batch = self.batch or max(count, 1)
        parts = [self._run_part(images[i : i + batch], batch) for i in range(0, count, batch)]
        if len(parts) == 1:
            return parts[0]
        return Detections(torch.cat([part.decoded for part in parts]), [])

    def _filled(self, images: Tensor, height: int, width: int) -> Tensor:
        """Return images of the sides that the file takes."""
        if self.dynamic:
            odd = [side for side in (height, width) if side % self.max_stride]
            if odd:
                raise UserError(
                    f"{self.path}: images of {height}x{width} px: {odd[0]} is no multiple of the"
                    f" stride {self.max_stride}"
                )
            return images
        down, right = self.metadata.imgsz[0] - height, self.metadata.imgsz[1] - width
        if down < 0 or right < 0:
            raise UserError(
                f"{self.path}: images of {height}x{width} px are larger than the"
                f" {self.metadata.imgsz[0]}x{self.metadata.imgsz[1]} px (height x width) that the"
                " file takes; export it with --imgsz or --dynamic"
            )
        return F.pad(images, (0, right, 0, down), value=GREY) if down or right else images

    def _run_part(self, images: Tensor, batch: int) -> Detections:
        """Run at most one batch; fill it up with empty images where the file's batch is fixed."""
        count = len(images)
        if self.batch and count < batch:
            images = torch.cat((images, images.new_zeros(batch - count, *images.shape[1:])))
        decoded, raw = self.run(images)
        if self.end2end:
            return Detections(self._as_predictions(decoded, count), [])
        return Detections(decoded[:count], [level[:count] for level in raw])

    def _as_predictions(self, rows: Tensor, count: int) -> Tensor:
        """Turn rows of NMS into predictions (count, max_det, 5 + nc).

        Args:
            rows: (K, 7): image, x1, y1, x2, y2, class, confidence.
            count: Number of images; rows of those behind them, which filled up the batch, drop out.
        """
        found = rows.new_zeros(count, self.metadata.max_det, 5 + self.nc)
        for number in range(count):
            mine = rows[rows[:, 0] == number][: self.metadata.max_det]
            low, high = mine[:, 1:3], mine[:, 3:5]
            place = found[number, : len(mine)]
            place[:, :2], place[:, 2:4], place[:, 4] = (low + high) / 2, high - low, mine[:, 6]
            place[torch.arange(len(mine)), 5 + mine[:, 5].long()] = 1
        return found


def check_output(decoded: Tensor, images: Tensor, runtime: Runtime) -> Tensor:
    """Return the output of a file; refuse one that is no detector's.

    Raises:
        UserError: The shape is not what the file's metadata say.
    """
    wanted = (7,) if runtime.end2end else (len(images), -1, 5 + runtime.nc)
    fits = decoded.ndim == (2 if runtime.end2end else 3) and decoded.shape[-1] == wanted[-1]
    if not fits or (not runtime.end2end and decoded.shape[0] != len(images)):
        raise UserError(
            f"{runtime.path}: its output has the shape {tuple(decoded.shape)}; a detector of"
            f" {runtime.nc} classes gives {wanted}"
        )
    return decoded
