"""Images as the network takes them: values and sizes."""

import pytest
import torch

from utils.images import unit_range, whole_strides
from utils.log import LOGGER


def test_every_byte_is_divided_by_255_in_float32() -> None:
    pixels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    images = unit_range(pixels)
    assert images.dtype == torch.float32
    assert torch.equal(images, pixels.float() / 255)
    assert images[0, 0, 0, 0] == 0 and images[0, 0, -1, -1] == 1


def test_the_layout_in_memory_stays() -> None:
    pixels = torch.zeros(2, 3, 4, 4, dtype=torch.uint8).to(memory_format=torch.channels_last)
    assert unit_range(pixels).is_contiguous(memory_format=torch.channels_last)


def test_float_images_are_not_changed_in_place() -> None:
    pixels = torch.full((1, 3, 2, 2), 255.0)
    assert unit_range(pixels).max() == 1 and pixels.min() == 255


@pytest.mark.parametrize(("asked", "used"), [(1, 32), (32, 32), (100, 128), (640, 640)])
def test_sizes_are_rounded_up_to_the_stride_with_a_warning_where_they_change(
    asked: int, used: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    warnings: list[str] = []
    monkeypatch.setattr(LOGGER, "warning", warnings.append)
    assert whole_strides(asked, 32) == used
    warning = f"--imgsz {asked}: not a multiple of the stride 32, using {used}"
    assert warnings == ([] if asked == used else [warning])
