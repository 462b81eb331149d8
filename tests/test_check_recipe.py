"""`check.py`: the size of the images in its table."""

import pytest

from recipes.check import check
from utils.log import LOGGER
from utils.options.check import CheckOptions


def test_a_size_off_the_stride_is_rounded_up_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    infos: list[str] = []
    warnings: list[str] = []
    monkeypatch.setattr(LOGGER, "info", infos.append)
    monkeypatch.setattr(LOGGER, "warning", warnings.append)
    check(CheckOptions(cfg=("yolov5n",), imgsz=100))
    assert warnings == ["--imgsz 100: not a multiple of the stride 32, using 128"]
    assert infos[0].startswith("yolov5n: 25 rows, 80 classes, 128 x 128 px\n")
