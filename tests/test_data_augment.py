import cv2
import numpy as np
import pytest

from data.augment import (
    GREY,
    blend,
    jitter_colours,
    letterbox,
    mosaic,
    random_matrix,
    warp,
    warp_boxes,
)
from utils.config import Hyp

STILL = Hyp(translate=0, scale=0, fliplr=0, mosaic=0, hsv_h=0, hsv_s=0, hsv_v=0)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_letterbox_centres_and_tells_how_to_undo_it():
    image = np.full((10, 20, 3), 7, np.uint8)
    out, ratio, pad = letterbox(image, 32, 40)
    assert out.shape == (32, 40, 3)
    assert (ratio, pad) == ((2.0, 2.0), (0, 6))
    assert (out[6:26] == 7).all()
    assert (out[:6] == GREY).all() and (out[26:] == GREY).all()
    out, ratio, pad = letterbox(image, 32, 40, enlarge=False)
    assert (ratio, pad) == ((1.0, 1.0), (10, 11))
    assert (out[11:21, 10:30] == 7).all() and (out == 7).sum() == 600


def test_no_augmentation_is_the_identity():
    image = rng().integers(0, 256, (16, 16, 3), np.uint8)
    matrix = random_matrix(16, 16, (16, 16), STILL, rng())
    np.testing.assert_allclose(matrix, np.eye(3), atol=1e-12)
    boxes = np.array([[1, 2, 3, 10, 12]], np.float32)
    out, out_boxes = warp(image, boxes, matrix, (16, 16))
    assert (out == image).all()
    np.testing.assert_allclose(out_boxes, boxes, atol=1e-5)
    assert (jitter_colours(image, STILL, rng()) == image).all()


@pytest.mark.parametrize("axis", [0, 1])
def test_flips_turn_pixels_and_boxes_exactly(axis):
    image = rng().integers(0, 256, (16, 20, 3), np.uint8)
    hyp = STILL.replace(flipud=1.0 * (axis == 0), fliplr=1.0 * (axis == 1))
    out, boxes = warp(
        image,
        np.array([[0, 2, 3, 8, 9]], np.float32),
        random_matrix(16, 20, (16, 20), hyp, rng()),
        (16, 20),
    )
    assert (out == np.flip(image, axis)).all()
    expected = [0, 2, 16 - 9, 8, 16 - 3] if axis == 0 else [0, 20 - 8, 3, 20 - 2, 9]
    np.testing.assert_allclose(boxes, [expected], atol=1e-5)


@pytest.mark.parametrize(
    "change",
    [
        {"scale": 0.4},
        {"degrees": 30.0, "scale": 0.2},
        {"shear": 15.0},
        {"perspective": 0.001, "scale": 0.3},
        {"translate": 0.2, "fliplr": 1.0},
    ],
)
def test_boxes_follow_the_pixels(change):
    """A white rectangle is warped; the tight box of its pixels lies in the warped box, and equals
    it where nothing turns.
    """
    for seed in range(10):
        image = np.zeros((96, 128, 3), np.uint8)
        image[30:60, 40:90] = 255
        hyp = STILL.replace(**change)
        matrix = random_matrix(96, 128, (128, 128), hyp, rng(seed))
        out, boxes = warp(image, np.array([[0, 40, 30, 90, 60]], np.float32), matrix, (128, 128))
        x, y, w, h = cv2.boundingRect((out[..., 0] > 127).astype(np.uint8) & (out[..., 0] != GREY))
        np.testing.assert_allclose(boxes[0, 1:], [x, y, x + w, y + h], atol=1.5)


def test_zoom_and_shift_lie_in_their_ranges():
    hyp = STILL.replace(scale=0.5, translate=0.1)
    matrices = np.stack([random_matrix(64, 64, (64, 64), hyp, rng(seed)) for seed in range(300)])
    zoom = matrices[:, 0, 0]
    assert 0.5 <= zoom.min() < 0.55 and 1.45 < zoom.max() <= 1.5
    centre = (matrices @ [32, 32, 1])[:, :2] / 64
    assert 0.4 <= centre.min() < 0.42 and 0.58 < centre.max() <= 0.6


def test_poor_boxes_are_dropped():
    boxes = np.array(
        [
            [0, 10, 10, 40, 40],  # stays
            [1, -27, 10, 3, 40],  # a tenth of it is left: dropped
            [2, -20, 10, 10, 40],  # a third is left: cut
            [3, 10, 10, 11.9, 40],  # too thin
            [4, 0, 10, 64, 13],  # too long: 64 / 3 > 20
        ],
        np.float32,
    )
    out = warp_boxes(boxes, np.eye(3), (64, 64))
    assert out.tolist() == [[0, 10, 10, 40, 40], [2, 0, 10, 10, 40]]
    assert warp_boxes(boxes[:0], np.eye(3), (64, 64)).shape == (0, 5)


def test_mosaic_puts_each_tile_at_its_corner_with_its_boxes():
    size = 32
    tiles = [
        (np.full((24, 32, 3), 10 * (k + 1), np.uint8), np.array([[k, 0, 0, 32, 24]], np.float32))
        for k in range(4)
    ]
    for seed in range(20):
        canvas, boxes = mosaic(tiles, size, rng(seed))
        assert canvas.shape == (64, 64, 3)
        for kind, x1, y1, x2, y2 in boxes.astype(int):
            assert (canvas[y1:y2, x1:x2] == 10 * (kind + 1)).all()
            assert (canvas == 10 * (kind + 1)).sum() == 3 * (y2 - y1) * (x2 - x1)
        assert (boxes[0, 3], boxes[0, 4]) == (boxes[3, 1], boxes[3, 2]), "all meet at one point"


@pytest.mark.parametrize("seed", range(5))
def test_colour_jitter_equals_the_formula_on_hsv_pixels(seed):
    image = rng(1).integers(0, 256, (8, 8, 3), np.uint8)
    hyp = STILL.replace(hsv_h=0.3, hsv_s=0.5, hsv_v=0.4)
    factor = 1 + rng(seed).uniform(-1, 1, 3) * [0.3, 0.5, 0.4]
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV).astype(float) * factor
    hsv[..., 0] %= 180
    expected = cv2.cvtColor(hsv.clip(0, 255).astype(np.uint8), cv2.COLOR_HSV2RGB)
    out = jitter_colours(image, hyp, rng(seed))
    assert (out == expected).all()
    assert (out != image).any()


def test_blend_weighs_pixels_and_keeps_all_boxes():
    first = np.full((4, 4, 3), 200, np.uint8), np.zeros((2, 5), np.float32)
    second = np.full((4, 4, 3), 100, np.uint8), np.ones((1, 5), np.float32)
    image, boxes = blend(first, second, rng(3))
    share = rng(3).beta(32.0, 32.0)
    assert (image == round(200 * share + 100 * (1 - share))).all()
    assert boxes[:, 0].tolist() == [0, 0, 1]
