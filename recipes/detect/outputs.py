"""What a run of detect.py writes: a small class for each kind of output, each written at once."""

import csv
import math
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from PIL import Image
from torch import Tensor

from data.sources import Feed, Frame
from recipes.detect.names import class_folders
from recipes.detect.video import Videos
from utils.detection_files import yolo_text
from utils.files import atomic_open, write_atomic
from utils.options.detect import DetectOptions
from utils.plots.drawing import BoxStyle, draw_boxes, style_for

KEPT_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
"""Suffixes that an annotated image keeps; all others become .jpg."""
HEAD = ("image", "frame", "class", "name", "confidence", "x1", "y1", "x2", "y2")
QUALITY = {"JPEG": {"quality": 95}, "WEBP": {"quality": 95}}


class Found(NamedTuple):
    """The detections in one frame."""

    feed: Feed
    frame: Frame
    boxes: Tensor  # (n, 6) xyxy in pixels of the frame, confidence, class; best first
    name: str  # of the feed's outputs, without suffix

    @property
    def stem(self) -> str:
        """Name of the outputs of this frame."""
        return f"{self.name}_{self.frame.number}" if self.feed.moving else self.name


class Output(Protocol):
    """One kind of output."""

    def add(self, found: Found) -> None:
        """Write what belongs to a frame."""

    def close(self) -> None:
        """Finish the files."""


class LabelTexts:
    """`labels/<name>.txt` in YOLO's format; none for a frame without detections."""

    def __init__(self, folder: Path, with_confidence: bool):
        self.folder, self.with_confidence = folder, with_confidence

    def add(self, found: Found) -> None:
        """Write the boxes of a frame; a text of an earlier run is emptied where nothing is left."""
        height, width = found.frame.pixels.shape[:2]
        text = yolo_text(found.boxes, height, width, self.with_confidence)
        target = self.folder / f"{found.stem}.txt"
        if text or target.exists():
            write_atomic(target, text, sync=False)

    def close(self) -> None:
        """Do nothing: each file is written at once."""


class Table:
    """`predictions.csv`: one box a line."""

    def __init__(self, path: Path, names: Sequence[str]):
        self.names = names
        self._stack = ExitStack()
        self._rows = csv.writer(
            self._stack.enter_context(atomic_open(path, "w")), lineterminator="\n"
        )
        self._rows.writerow(HEAD)

    def add(self, found: Found) -> None:
        """Write a line for each box; the frame's number is empty for an image."""
        number = found.frame.number if found.feed.moving else ""
        for *corners, confidence, label in found.boxes.tolist():
            place = [f"{value:.1f}" for value in corners]
            name = self.names[int(label)]
            self._rows.writerow(
                [found.feed.place, number, int(label), name, f"{confidence:.4f}", *place]
            )

    def close(self) -> None:
        """Give the file its name."""
        self._stack.close()


class Crops:
    """`crops/<class>/<name>_<number>.jpg`: each box, rounded outwards, without anything drawn."""

    def __init__(self, folder: Path, names: Sequence[str]):
        self.folders = [folder / name for name in class_folders(names)]

    def add(self, found: Found) -> None:
        """Write the boxes of a frame."""
        height, width = found.frame.pixels.shape[:2]
        for number, (x1, y1, x2, y2, _, label) in enumerate(found.boxes.tolist(), 1):
            rows = slice(max(0, math.floor(y1)), min(height, math.ceil(y2)))
            columns = slice(max(0, math.floor(x1)), min(width, math.ceil(x2)))
            target = self.folders[int(label)] / f"{found.stem}_{number}.jpg"
            save_pixels(found.frame.pixels[rows, columns], target)

    def close(self) -> None:
        """Do nothing: each file is written at once."""


class Annotated:
    """Annotated images and videos, and the window of --view-img."""

    def __init__(
        self, folder: Path, names: Sequence[str], opt: DetectOptions, window: Output | None
    ):
        self.folder, self.names, self.opt, self.window = folder, names, opt, window
        self.videos = Videos()

    def add(self, found: Found) -> None:
        """Draw the boxes onto a frame, and write or show it."""
        frame = found.frame
        pixels = annotated(frame.pixels, found.boxes, self.names, self.opt)
        if self.window is not None:
            self.window.add(found._replace(frame=frame._replace(pixels=pixels)))
        if self.opt.nosave:
            return
        target = self.folder / found.name
        if found.feed.moving:
            video = self.videos.get(target, pixels, found.feed.fps, found.feed.live)
            video.add(pixels, frame.seconds)
        else:
            save_pixels(pixels, target.with_name(target.name + picture_suffix(found.feed.file)))

    def close(self) -> None:
        """Finish the videos and close the window."""
        self.videos.close()
        if self.window is not None:
            self.window.close()


def annotated(
    pixels: np.ndarray, boxes: Tensor, names: Sequence[str], opt: DetectOptions
) -> np.ndarray:
    """Return a copy of an image with the boxes drawn on it, (h, w, 3) uint8 RGB."""
    image = Image.fromarray(pixels)
    usual = style_for(*image.size)
    width = opt.line_thickness or usual.width
    style = BoxStyle(not opt.hide_conf, not opt.hide_labels, width, usual.font_size)
    draw_boxes(image, boxes, names, style)
    return np.asarray(image)


def picture_suffix(file: Path | None) -> str:
    """Return the suffix of an annotated image: the source's, or .jpg where it is a rare one."""
    suffix = file.suffix if file else ""
    return suffix if suffix.lower() in KEPT_SUFFIXES else ".jpg"


def save_pixels(pixels: np.ndarray, path: Path) -> None:
    """Write an image (h, w, 3) uint8 RGB whole or not at all, in the format of its suffix."""
    form = Image.registered_extensions()[path.suffix.lower()]
    save = partial(Image.fromarray(pixels).save, format=form, **QUALITY.get(form, {}))
    with atomic_open(path, sync=False) as file:
        save(file)


def make_outputs(
    opt: DetectOptions, names: Sequence[str], folder: Path, window: Output | None
) -> list[Output]:
    """Return the outputs that the options ask for."""
    outputs: list[Output] = []
    if opt.save_txt:
        outputs.append(LabelTexts(folder / "labels", opt.save_conf))
    if opt.save_csv:
        outputs.append(Table(folder / "predictions.csv", names))
    if opt.save_crop:
        outputs.append(Crops(folder / "crops", names))
    if window is not None or not opt.nosave:
        outputs.append(Annotated(folder, names, opt, window))
    return outputs
