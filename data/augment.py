"""Augment one sample: mosaic, one warp, colour jitter, blending.

Images are (h, w, 3) uint8 RGB. Boxes are (n, 5) float32 rows `class, x1, y1, x2, y2` in pixels,
edges at whole numbers. Every random number comes from the generator that is handed in.
"""

import math

import cv2
import numpy as np

from utils.config import Hyp

GREY = 114  # colour of pixels without an image, as in YOLOv5 and YOLOv7
# a warped box is dropped where
MIN_SIDE = 2.0  # px; a side is not longer,
MIN_VISIBLE = 0.1  # no larger share of its area is inside the output,
MAX_ASPECT = 20.0  # or its sides have this ratio or more


def letterbox(
    image: np.ndarray, height: int, width: int, *, enlarge: bool = True
) -> tuple[np.ndarray, tuple, tuple]:
    """Fit an image into (height, width), centred on grey.

    Args:
        image: (h, w, 3) uint8.
        height: Height of the result, pixels.
        width: Width of the result, pixels.
        enlarge: Enlarge a smaller image; otherwise images are only shrunk.

    Returns:
        The image, (ratio_h, ratio_w) and (pad_w, pad_h): `x_new = x * ratio_w + pad_w`.
    """
    h, w = image.shape[:2]
    ratio = min(height / h, width / w)
    if ratio < 1 or (ratio > 1 and enlarge):
        resized = max(1, round(w * ratio)), max(1, round(h * ratio))
        image = cv2.resize(image, resized, interpolation=cv2.INTER_LINEAR)
    new_h, new_w = image.shape[:2]
    top, left = (height - new_h) // 2, (width - new_w) // 2
    if (new_h, new_w) != (height, width):
        canvas = np.full((height, width, 3), GREY, np.uint8)
        canvas[top : top + new_h, left : left + new_w] = image
        image = canvas
    return image, (new_h / h, new_w / w), (left, top)


def mosaic(
    tiles: list[tuple[np.ndarray, np.ndarray]], size: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Join four samples at a random point of a grey (2 size, 2 size) canvas, cut at its border.

    Args:
        tiles: (image, boxes) of the upper left, upper right, lower left and lower right sample.
        size: Half the side of the canvas, pixels.
        rng: Generator of the random point.

    Returns:
        The image and its boxes.
    """
    canvas = np.full((2 * size, 2 * size, 3), GREY, np.uint8)
    centre_x, centre_y = rng.integers(size // 2, 2 * size - size // 2 + 1, 2)
    placed = []
    for corner, (image, boxes) in enumerate(tiles):
        h, w = image.shape[:2]
        left = centre_x - w if corner % 2 == 0 else centre_x
        top = centre_y - h if corner < 2 else centre_y
        x1, y1, x2, y2 = max(left, 0), max(top, 0), min(left + w, 2 * size), min(top + h, 2 * size)
        canvas[y1:y2, x1:x2] = image[y1 - top : y2 - top, x1 - left : x2 - left]
        placed.append(boxes + np.array([0, left, top, left, top], np.float32))
    boxes = np.concatenate(placed)
    boxes[:, 1:] = boxes[:, 1:].clip(0, 2 * size)
    return canvas, boxes


def random_matrix(
    height: int, width: int, out: tuple[int, int], hyp: Hyp, rng: np.random.Generator
) -> np.ndarray:
    """Return a random (3, 3) map from pixels of the image to pixels of the output.

    The map applies perspective, rotation, scale and shear about the centre of the image, then
    centres the image in the output and shifts it, then flips it.

    Args:
        height: Height of the image, pixels.
        width: Width of the image, pixels.
        out: (height, width) of the output, pixels.
        hyp: Strengths of augmentation.
        rng: Generator of the random numbers.
    """
    p, s, t = hyp.perspective, hyp.shear, hyp.translate
    px, py = rng.uniform(-p, p, 2)
    angle = math.radians(rng.uniform(-hyp.degrees, hyp.degrees))
    zoom = rng.uniform(1 - hyp.scale, 1 + hyp.scale)
    shear_x, shear_y = np.tan(np.radians(rng.uniform(-s, s, 2)))
    shift_x, shift_y = rng.uniform(0.5 - t, 0.5 + t, 2) * out[::-1]
    flip_x, flip_y = rng.random(2) < (hyp.fliplr, hyp.flipud)

    centre = _shift(-width / 2, -height / 2)
    tilt = np.array([[1, 0, 0], [0, 1, 0], [px, py, 1]])
    cos, sin = zoom * math.cos(angle), zoom * math.sin(angle)
    turn = np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]])
    skew = np.array([[1, shear_x, 0], [shear_y, 1, 0], [0, 0, 1]])
    flip = np.array(
        [
            [-1 if flip_x else 1, 0, out[1] * flip_x],
            [0, -1 if flip_y else 1, out[0] * flip_y],
            [0, 0, 1],
        ]
    )
    return flip @ _shift(shift_x, shift_y) @ skew @ turn @ tilt @ centre


def _shift(x: float, y: float) -> np.ndarray:
    """Return the (3, 3) map that moves points by (x, y)."""
    return np.array([[1, 0, x], [0, 1, y], [0, 0, 1]])


def warp(
    image: np.ndarray, boxes: np.ndarray, matrix: np.ndarray, out: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Apply a map to the image and the boxes of a sample, which is resampled only here.

    Args:
        image: (h, w, 3) uint8.
        boxes: (n, 5).
        matrix: (3, 3) map from pixels of the image to pixels of the output.
        out: (height, width) of the output, pixels.

    Returns:
        The mapped image, and the boxes that `warp_boxes` keeps.
    """
    if image.shape[:2] != out or np.abs(matrix - np.eye(3)).max() > 1e-9:
        # OpenCV counts from pixel centres, boxes from edges
        on_centres = _shift(-0.5, -0.5) @ matrix @ _shift(0.5, 0.5)
        border = {"borderMode": cv2.BORDER_CONSTANT, "borderValue": (GREY, GREY, GREY)}
        if matrix[2].tolist() == [0, 0, 1]:
            image = cv2.warpAffine(image, on_centres[:2], out[::-1], **border)
        else:
            image = cv2.warpPerspective(image, on_centres, out[::-1], **border)
    return image, warp_boxes(boxes, matrix, out)


def warp_boxes(boxes: np.ndarray, matrix: np.ndarray, out: tuple[int, int]) -> np.ndarray:
    """Return upright boxes around the mapped corners, cut at the border of the output.

    Boxes that are too thin, too long or nearly outside are dropped: see `MIN_SIDE`, `MAX_ASPECT`
    and `MIN_VISIBLE`.
    """
    if not len(boxes):
        return boxes
    corners = np.ones((len(boxes), 4, 3))
    corners[..., :2] = boxes[:, [1, 2, 3, 2, 1, 4, 3, 4]].reshape(-1, 4, 2)
    corners = corners @ matrix.T
    points = corners[..., :2] / corners[..., 2:]
    whole = np.concatenate([points.min(1), points.max(1)], 1)
    cut = whole.clip(0, (out[1], out[0], out[1], out[0]))
    w, h = cut[:, 2] - cut[:, 0], cut[:, 3] - cut[:, 1]
    area = (whole[:, 2] - whole[:, 0]) * (whole[:, 3] - whole[:, 1])
    aspect = np.maximum(w, h) / np.maximum(np.minimum(w, h), 1e-9)
    keep = (w > MIN_SIDE) & (h > MIN_SIDE) & (w * h > MIN_VISIBLE * area) & (aspect < MAX_ASPECT)
    return np.concatenate([boxes[:, :1], cut], 1)[keep].astype(np.float32)


def jitter_colours(image: np.ndarray, hyp: Hyp, rng: np.random.Generator) -> np.ndarray:
    """Scale hue, saturation and value of an image by random gains, through a look-up table.

    The gains lie within 1 +- `hsv_h`, `hsv_s` and `hsv_v`.
    """
    gains = np.array([hyp.hsv_h, hyp.hsv_s, hyp.hsv_v])
    if not gains.any():
        return image
    factor = 1 + rng.uniform(-1, 1, 3) * gains
    table = np.arange(256)[:, None] * factor
    table[:, 0] %= 180  # OpenCV's 8-bit hue is a half circle of degrees
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    hsv = cv2.LUT(hsv, table.clip(0, 255).astype(np.uint8)[None])
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)


def blend(
    first: tuple[np.ndarray, np.ndarray],
    second: tuple[np.ndarray, np.ndarray],
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Blend two samples by MixUp (Zhang et al. 2018) and join their boxes.

    The weights are drawn from Beta(32, 32), as in YOLOv5.
    """
    share = rng.beta(32.0, 32.0)
    image = cv2.addWeighted(first[0], share, second[0], 1 - share, 0)
    return image, np.concatenate([first[1], second[1]])
