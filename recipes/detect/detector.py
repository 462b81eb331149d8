"""From the pixels of one frame to its boxes."""

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from torch import Tensor

from data.augment import letterbox
from deploy import Runtime
from utils.boxes import Letterbox, non_max_suppression, scale_boxes
from utils.errors import UserError
from utils.images import unit_range
from utils.log import LOGGER
from utils.options.detect import DetectOptions
from utils.timing import STAGES, StageClock
from utils.tta import predict_augmented


def fitted(pixels: np.ndarray, imgsz: tuple[int, int], stride: int) -> tuple[np.ndarray, Letterbox]:
    """Return a frame as the network takes it: the smallest rectangle that holds it resized.

    Args:
        pixels: (h, w, 3) uint8.
        imgsz: Largest height and width of the result in pixels, multiples of the stride.
        stride: Sides of the result are multiples of it.

    Returns:
        The letterboxed image, and what `scale_boxes` needs to undo it.
    """
    height, width = pixels.shape[:2]
    ratio = min(imgsz[0] / height, imgsz[1] / width)
    if ratio != 1:
        method = cv2.INTER_AREA if ratio < 1 else cv2.INTER_LINEAR  # as in validation
        sides = max(1, round(width * ratio)), max(1, round(height * ratio))
        pixels = cv2.resize(pixels, sides, interpolation=method)
    small_height, small_width = pixels.shape[:2]
    out = (-(-side // stride) * stride for side in (small_height, small_width))
    image, _, pad = letterbox(pixels, *out, enlarge=False)
    return image, ((height, width), ((small_height / height, small_width / width), pad))


class Detector:
    """A model of any format with the thresholds of the options; call it with one frame.

    Attributes:
        clock: Seconds of each stage, `write` among them.
        unreadable: Number of frames whose predictions were not finite.
    """

    def __init__(self, runtime: Runtime, opt: DetectOptions, device: torch.device):
        """Keep the model and check the options against it.

        Raises:
            UserError: `--augment` with a file that cannot, or an image size that does not fit.
        """
        self.runtime, self.opt, self.device = runtime, opt, device
        self.clock = StageClock(device, (*STAGES, "write"))
        self.unreadable = 0
        self.half = _half(opt, runtime, device)
        set_size(runtime, opt.imgsz)
        if opt.augment and not (runtime.gives_raw_maps and runtime.dynamic):
            raise UserError(
                f"--augment: {opt.weights} takes or gives too little for it; it needs a .pt"
            )
        if runtime.end2end:
            _warn_of_thresholds(runtime, opt)

    def warm_up(self, pixels: np.ndarray) -> None:
        """Run the model once on a frame, uncounted: the first pass allocates."""
        self._predictions(self._tensor(fitted(pixels, self.runtime.imgsz, self._stride)[0]))

    def __call__(self, pixels: np.ndarray) -> Tensor:
        """Return the detections of a frame.

        Args:
            pixels: (h, w, 3) uint8 RGB.

        Returns:
            (n, 6) = x1, y1, x2, y2 in pixels of the frame, confidence, class; best first; on the
            CPU.
        """
        with self.clock("pre"):
            image, shapes = fitted(pixels, self.runtime.imgsz, self._stride)
            images = self._tensor(image)
        with self.clock("inference"):
            decoded = self._predictions(images)
        with self.clock("nms"):
            boxes = self._select(decoded)
        self.unreadable += not bool(decoded.isfinite().all())
        return _on_frame(boxes, shapes)

    @property
    def _stride(self) -> int:
        return self.runtime.max_stride

    def _tensor(self, image: np.ndarray) -> Tensor:
        """Return a letterboxed image as the network takes it, (1, 3, H, W) in 0..1."""
        planes = torch.from_numpy(image).permute(2, 0, 1)[None]
        return unit_range(planes.to(self.device)).contiguous()

    def _predictions(self, images: Tensor) -> Tensor:
        """Return the decoded predictions, (1, M, 5 + nc)."""
        with torch.no_grad(), torch.autocast(self.device.type, torch.float16, enabled=self.half):
            if self.opt.augment:
                return predict_augmented(self.runtime, images)
            return self.runtime(images).decoded

    def _select(self, decoded: Tensor) -> Tensor:
        """Return the boxes that stay after NMS, on the CPU."""
        opt = self.opt
        return non_max_suppression(
            decoded,
            opt.conf_thres,
            opt.iou_thres,
            classes=opt.classes or None,
            agnostic=opt.agnostic_nms,
            max_det=opt.max_det,
        )[0].cpu()


def _on_frame(boxes: Tensor, shapes: Letterbox) -> Tensor:
    """Return boxes in pixels of the frame, without those that lie in the padding alone."""
    corners = scale_boxes(boxes[:, :4], shapes)
    inside = (corners[:, 2:] > corners[:, :2]).all(1)
    return torch.cat((corners, boxes[:, 4:]), 1)[inside]


def set_size(runtime: Runtime, imgsz: int) -> None:
    """Set the size of the images; 0 keeps the model's own.

    Raises:
        UserError: The size is no multiple of the stride, or the file takes another one only.
    """
    stride = runtime.max_stride
    if imgsz % stride:
        low = imgsz // stride * stride
        near = f"{low} or {low + stride}" if low else f"{stride}"
        raise UserError(
            f"--imgsz {imgsz}: is no multiple of the model's stride {stride}; {near} would be right"
        )
    runtime.set_imgsz(imgsz or runtime.imgsz)


def check_classes(classes: Sequence[int], names: Sequence[str]) -> None:
    """Refuse numbers of classes that the model does not have.

    Raises:
        UserError: Names the first one.
    """
    for number in classes:
        if number >= len(names):
            shown = ", ".join(names[:10]) + (" ..." if len(names) > 10 else "")
            raise UserError(
                f"--classes {number}: the model has the classes 0 to {len(names) - 1} ({shown})"
            )


def _half(opt: DetectOptions, runtime: Runtime, device: torch.device) -> bool:
    """Return whether to compute in float16; say so where --half has no effect."""
    if not opt.half:
        return False
    if device.type == "cpu":
        LOGGER.warning("--half has no effect on the CPU: computing in float32")
    elif runtime.name != "torch":
        LOGGER.warning(
            f"--half has no effect on {opt.weights}, which computes in {runtime.precision}"
        )
    return device.type != "cpu" and runtime.name == "torch"


def _warn_of_thresholds(runtime: Runtime, opt: DetectOptions) -> None:
    """Warn where the NMS inside a file has dropped what the options would keep."""
    inside = runtime.metadata
    limits = {
        "--conf-thres": opt.conf_thres < inside.conf_thres and f"{inside.conf_thres:g}",
        "--iou-thres": opt.iou_thres > inside.iou_thres and f"{inside.iou_thres:g}",
        "--max-det": opt.max_det > inside.max_det and f"{inside.max_det}",
    }
    for flag, limit in limits.items():
        if limit:
            LOGGER.warning(f"{flag}: {opt.weights} does NMS itself, with {flag} {limit}: it holds")
