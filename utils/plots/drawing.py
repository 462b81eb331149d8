"""Boxes with names on images, several such images in one picture, and the colours of classes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import matplotlib
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.ops import box_convert

from utils.files import save_picture
from utils.plots.text import one_line

Colour = tuple[int, int, int]
"""Red, green and blue, 0..255."""

MAX_IMAGES = 16  # of a batch that a mosaic shows
TILE = 480  # long side of one image in a mosaic, px: letters of 13 px fit onto small images too
FONT_SIZE = 13  # px
SMALLEST_FONT = 8  # px; smaller letters cannot be read
CUT = "…"  # stands for the rest of a text that is too long
LONGEST_CAPTION = 48  # characters
GREY = (114, 114, 114)
CAPTION_GREY = (40, 40, 40)
WHITE, BLACK = (255, 255, 255), (0, 0, 0)

PALETTE: tuple[Colour, ...] = (
    (0, 114, 178),  # blue
    (230, 159, 0),  # orange
    (0, 158, 115),  # bluish green
    (204, 121, 167),  # reddish purple
    (86, 180, 233),  # sky blue
    (213, 94, 0),  # vermillion
    (240, 228, 66),  # yellow
)
"""Colours that people with each kind of colour blindness tell apart (Okabe and Ito 2008)."""


def class_colour(label: int) -> Colour:
    """Return the colour of a class: one of seven, then darker and paler ones, 21 in all."""
    colour = PALETTE[label % len(PALETTE)]
    shade = label // len(PALETTE) % 3
    if shade == 1:
        return _mixed(colour, BLACK, share=0.4)
    return _mixed(colour, WHITE, share=0.5) if shade == 2 else colour


def _mixed(colour: Colour, other: Colour, share: float) -> Colour:
    """Return the colour mixed with a share, 0..1, of another one."""
    red, green, blue = (
        round((1 - share) * a + share * b) for a, b in zip(colour, other, strict=True)
    )
    return red, green, blue


@lru_cache(maxsize=64)
def font(size: int = FONT_SIZE) -> ImageFont.FreeTypeFont:
    """Return the font that matplotlib ships, which has Latin, Greek and Cyrillic letters."""
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return ImageFont.truetype(str(folder / "DejaVuSans.ttf"), size)


@dataclass(frozen=True)
class BoxStyle:
    """How boxes are drawn.

    Attributes:
        scores: Write the confidence behind the name.
        labels: Write the name; without it no confidence either.
        width: Width of the outline in pixels.
        font_size: Height of the letters in pixels.
    """

    scores: bool = True
    labels: bool = True
    width: int = 2
    font_size: int = FONT_SIZE


def style_for(width: int, height: int) -> BoxStyle:
    """Return the style that can be read on an image of that size in pixels, seen as a whole."""
    side = (width + height) / 2
    return BoxStyle(width=max(1, round(side / 400)), font_size=round(SMALLEST_FONT + side / 140))


def draw_boxes(
    image: Image.Image, boxes: Tensor, names: Sequence[str], style: BoxStyle | None = None
) -> None:
    """Draw boxes with the names of their classes onto an image.

    Args:
        image: The picture to change.
        boxes: (n, 6) corners xyxy in pixels of the image, confidence, class; best first.
        names: Names by class id; the number stands for an id without a name.
        style: Which texts are written, and how large.
    """
    style = style or BoxStyle()
    pen = ImageDraw.Draw(image)
    rows = boxes.tolist()
    for x1, y1, x2, y2, _, label in rows:
        corners = (x1, y1, max(x1, x2), max(y1, y2))
        pen.rectangle(corners, outline=class_colour(int(label)), width=style.width)
    if not style.labels:
        return
    for x1, y1, _, _, confidence, label in reversed(rows):  # the best one's text lies on top
        number = int(label)
        name = names[number] if number < len(names) else str(number)
        text = f"{name} {confidence:.2f}" if style.scores else name
        _tag(pen, (x1, y1), text, class_colour(number), image.size, style.font_size)


def _tag(
    pen: ImageDraw.ImageDraw,
    corner: tuple[float, float],
    text: str,
    colour: Colour,
    size: tuple[int, int],
    font_size: int = FONT_SIZE,
) -> None:
    """Write text on a filled patch above a corner; move the patch into an image of that size."""
    text, letters = _fitting(pen, one_line(text), size[0] - 4, font_size)
    width, height = pen.textlength(text, letters) + 4, letters.size + 4
    x = max(0, min(corner[0], size[0] - width))
    y = max(0, min(corner[1] - height, size[1] - height))
    pen.rectangle((x, y, x + width, y + height), fill=colour)
    pen.text((x + 2, y + height / 2), text, fill=_ink(colour), font=letters, anchor="lm")


def _fitting(
    pen: ImageDraw.ImageDraw, text: str, width: int, font_size: int
) -> tuple[str, ImageFont.FreeTypeFont]:
    """Return text and font that take at most `width` pixels: smaller letters, then fewer."""
    letters = font(font_size)
    taken = pen.textlength(text, letters)
    if taken > width:
        letters = font(max(SMALLEST_FONT, int(font_size * width / taken)))
    if " " in text and pen.textlength(text, letters) > width:
        text = text.rpartition(" ")[0]  # the confidence, or the last word
    whole = len(text)
    while whole > 1 and pen.textlength(text, letters) > width:
        whole -= 1
        text = text[:whole] + CUT if whole > 1 else text[:1]
    return text, letters


def _ink(background: Colour) -> Colour:
    """Return black or white, whichever is easier to read on the background (luma of Rec. 601)."""
    red, green, blue = background
    return BLACK if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else WHITE


def save_mosaic(
    images: Tensor,
    boxes: Sequence[Tensor],
    names: Sequence[str],
    path: Path,
    captions: Sequence[str] = (),
    scores: bool = True,
) -> None:
    """Write one picture of at most 16 images in a square grid.

    Args:
        images: uint8 (N, 3, H, W) RGB.
        boxes: For each image (n, 6) corners xyxy in its pixels, confidence, class.
        names: Names by class id.
        path: File to write.
        captions: For each image a text at its lower edge.
        scores: Write the confidence behind each name.
    """
    count = min(len(images), MAX_IMAGES)
    columns = math.ceil(math.sqrt(count))
    factor = TILE / max(images.shape[2:])
    width, height = round(images.shape[3] * factor), round(images.shape[2] * factor)
    canvas = Image.new("RGB", (columns * width, math.ceil(count / columns) * height), GREY)
    for i in range(count):
        pixels = images[i].permute(1, 2, 0).contiguous().cpu().numpy()
        tile = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
        scaled = boxes[i].clone()
        scaled[:, :4] *= factor
        draw_boxes(tile, scaled, names, BoxStyle(scores=scores))
        pen = ImageDraw.Draw(tile)
        if i < len(captions):
            _tag(pen, (0, height), captions[i][:LONGEST_CAPTION], CAPTION_GREY, tile.size)
        pen.rectangle((0, 0, width - 1, height - 1), outline=WHITE)
        canvas.paste(tile, (i % columns * width, i // columns * height))
    save_picture(
        path, partial(canvas.save, format=Image.registered_extensions()[path.suffix], quality=90)
    )


def save_labels(batch: Any, names: Sequence[str], path: Path) -> None:
    """Write a mosaic of a batch with its labels and file names.

    Args:
        batch: `.images` uint8 (N, 3, H, W) RGB, `.targets` (M, 6) image number, class, xywh in
            0..1, `.files` paths.
        names: Names by class id.
        path: File to write.
    """
    captions = [Path(file).name for file in batch.files]
    save_mosaic(batch.images, label_boxes(batch), names, path, captions, scores=False)


def label_boxes(batch: Any) -> list[Tensor]:
    """Return the labels of each image of a batch in the form of detections.

    Each is (n, 6): corners xyxy in pixels, confidence 1, class.
    """
    height, width = batch.images.shape[2:]
    targets = batch.targets
    scale = targets.new_tensor([width, height, width, height])
    corners = box_convert(targets[:, 2:], "cxcywh", "xyxy") * scale
    boxes = torch.cat((corners, torch.ones_like(targets[:, :1]), targets[:, 1:2]), 1)
    return [boxes[targets[:, 0] == i] for i in range(len(batch.images))]
