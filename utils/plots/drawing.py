"""Boxes with names on images, and several such images in one picture."""

import colorsys
import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

# long side of one image in a mosaic, px: small images are enlarged, so that 13 px letters fit to
# them
TILE = 480
FONT_SIZE = 13
GREY = (114, 114, 114)


def class_colour(label: int) -> tuple[int, int, int]:
    """RGB 0..255; neighbouring ids are far apart on the colour wheel."""
    hue = label * 0.618034 % 1  # golden ratio
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.9, 0.95)
    return round(red * 255), round(green * 255), round(blue * 255)


@lru_cache(maxsize=8)
def font(size: int = FONT_SIZE) -> ImageFont.FreeTypeFont:
    """The font that matplotlib brings along: it has Latin, Greek and Cyrillic letters."""
    return ImageFont.truetype(
        str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size
    )


def draw_boxes(
    image: Image.Image, boxes: Tensor, names: Sequence[str], scores: bool = True, width: int = 2
) -> None:
    """Draw onto `image`: `boxes` (n, 6) xyxy in its pixels, confidence, class.

    Ids without a name appear as numbers.
    """
    pen = ImageDraw.Draw(image)
    rows = boxes.tolist()
    for x1, y1, x2, y2, _, label in rows:
        pen.rectangle(
            (x1, y1, max(x1, x2), max(y1, y2)), outline=class_colour(int(label)), width=width
        )
    for x1, y1, _, _, confidence, label in reversed(
        rows
    ):  # the most confident one's text on top, above every box
        name = names[int(label)] if int(label) < len(names) else str(int(label))
        _tag(
            pen,
            x1,
            y1,
            f"{name} {confidence:.2f}" if scores else name,
            class_colour(int(label)),
            image.size,
        )


def _tag(
    pen: ImageDraw.ImageDraw,
    x: float,
    y: float,
    text: str,
    colour: tuple[int, int, int],
    size: tuple[int, int],
) -> None:
    """Text on a filled patch above the corner (x, y), moved inside the image where it would be cut
    off.
    """
    width, height = pen.textlength(text, font()) + 4, FONT_SIZE + 4
    x, y = max(0, min(x, size[0] - width)), max(0, min(y - height, size[1] - height))
    pen.rectangle((x, y, x + width, y + height), fill=colour)
    bright = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] > 140
    pen.text(
        (x + 2, y + height / 2),
        text,
        fill=(0, 0, 0) if bright else (255, 255, 255),
        font=font(),
        anchor="lm",
    )


def save_mosaic(
    images: Tensor,
    boxes: Sequence[Tensor],
    names: Sequence[str],
    path: Path,
    captions: Sequence[str] = (),
    scores: bool = True,
) -> None:
    """One picture of at most 16 images in a square grid.

    `images` uint8 (N, 3, H, W) RGB; `boxes` an image (n, 6) xyxy in its pixels, confidence, class;
    `captions` are file names.
    """
    count = min(len(images), 16)
    columns = math.ceil(math.sqrt(count))
    factor = TILE / max(images.shape[2:])
    width, height = round(images.shape[3] * factor), round(images.shape[2] * factor)
    canvas = Image.new("RGB", (columns * width, math.ceil(count / columns) * height), GREY)
    for i in range(count):
        tile = Image.fromarray(images[i].permute(1, 2, 0).contiguous().cpu().numpy()).resize(
            (width, height), Image.Resampling.BICUBIC
        )
        scaled = boxes[i].clone()
        scaled[:, :4] *= factor
        draw_boxes(tile, scaled, names, scores)
        if i < len(captions):
            _tag(ImageDraw.Draw(tile), 0, height, captions[i][:48], (40, 40, 40), tile.size)
        ImageDraw.Draw(tile).rectangle((0, 0, width - 1, height - 1), outline=(255, 255, 255))
        canvas.paste(tile, (i % columns * width, i // columns * height))
    canvas.save(path, quality=90)
