"""Images of more than 8 bits are scaled by the values that they hold."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

import data.cache as cache
from data.config import load_data
from data.deep_images import is_deep, white_level
from data.files import list_images
from data.images import probe_image, read_image
from data.loader import build_loader
from tests.data_sets import write_set
from utils.log import LOGGER

RAMP = np.tile(np.arange(24, dtype=np.float64) / 23, (16, 1))  # 0 to 1 from left to right


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_values_of_few_bits_in_16_bit_files_use_the_whole_range(
    tmp_path: Path, bits: int, suffix: str
) -> None:
    white = 2**bits - 1
    grey = (RAMP * white).round().astype(np.uint16)
    colour = np.dstack([grey, grey // 2, white - grey])  # BGR
    cv2.imwrite(str(tmp_path / f"grey.{suffix}"), grey)
    cv2.imwrite(str(tmp_path / f"colour.{suffix}"), colour)
    for name, values in (("grey", np.dstack([grey] * 3)), ("colour", colour[..., ::-1])):
        file = tmp_path / f"{name}.{suffix}"
        assert is_deep(file) and white_level(file) == white
        image = read_image(file)
        assert image.dtype == np.uint8 and image.shape == (16, 24, 3)
        assert np.array_equal(image, values >> (bits - 8))


def test_float_and_32_bit_files(tmp_path: Path) -> None:
    Image.fromarray(RAMP.astype(np.float32)).save(tmp_path / "unit.tif")
    Image.fromarray((RAMP * 255).astype(np.float32)).save(tmp_path / "bytes.tif")
    Image.fromarray((RAMP * 4095).astype(np.int32)).save(tmp_path / "whole.tif")
    for name, white in (("unit", 1), ("bytes", 255), ("whole", 4095)):
        file = tmp_path / f"{name}.tif"
        assert white_level(file) == white
        assert np.abs(read_image(file)[..., 0] - RAMP * 255).max() <= 1, name


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_deep_images_are_upright(tmp_path: Path, orientation: int, suffix: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    values = np.arange(16 * 24, dtype=np.uint16).reshape(16, 24) * 10
    Image.fromarray(values).save(tmp_path / f"deep.{suffix}", exif=exif)
    Image.fromarray((values >> 4).astype(np.uint8)).save(tmp_path / f"plain.{suffix}", exif=exif)
    deep, plain = (read_image(tmp_path / f"{name}.{suffix}") for name in ("deep", "plain"))
    assert np.array_equal(deep, plain)
    assert probe_image(tmp_path / f"deep.{suffix}").size == (deep.shape[1], deep.shape[0])


@pytest.mark.parametrize("values", [RAMP - 0.5, RAMP * 1e6, RAMP * np.nan])
def test_values_that_are_no_brightness_are_left_out(tmp_path: Path, values: np.ndarray) -> None:
    write_set(tmp_path, [(24, 16)] * 2)
    Image.fromarray(values.astype(np.float32)).save(tmp_path / "images/train/height.tif")
    found = cache.scan(list_images([tmp_path / "images"]), nc=3)
    assert len(found.files) == 2 and "values from" in found.report[0].reason


def test_a_dark_image_stays_dark_among_the_others_of_its_camera(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(LOGGER, "info", said.append)
    content = write_set(tmp_path, [(32, 32)] * 3)
    for number, white in ((0, 4095), (1, 400)):
        values = np.linspace(0, white, 32 * 32).round().astype(np.uint16).reshape(32, 32)
        cv2.imwrite(str(tmp_path / f"images/train/{number:03d}.png"), values)
    for _ in ("scanned", "from the cache"):
        said.clear()
        loader = build_loader(load_data(content), "train", imgsz=32, batch_size=3)
        images = next(iter(loader)).images
        assert "2 images of more than 8 bits hold values of 12 bits: 4095 becomes 255" in said
        assert loader.dataset.whites.tolist() == [4095, 4095, 0]
        assert (images[0].max(), images[1].max()) == (255, 400 >> 4)
