"""Names of users are drawn as text, whatever is in them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from utils.metrics import ConfusionMatrix
from utils.plots.drawing import draw_boxes
from utils.plots.evaluation import LARGEST_SIDE, plot_confusion
from utils.plots.labels import plot_labels
from utils.plots.text import axis_text, one_line

NAMES = ["$a_{", "a$b$", "$", "\\frac{", "_hidden", "two\nlines", "\x07bell", "", "\ud800", "猫"]


def test_texts() -> None:
    assert [axis_text(name) for name in NAMES[:3]] == [r"\$a_{", r"a\$b\$", r"\$"]
    assert axis_text("_hidden") == " _hidden" and one_line("two\nlines\t") == "two lines"
    assert one_line("\x07bell") == "?bell" and one_line("\ud800") == "?"


@pytest.mark.filterwarnings("ignore:Glyph")
def test_pictures_of_any_names(tmp_path: Path) -> None:
    rows = np.array([[i, 0.5, 0.5, 0.2, 0.2] for i in range(len(NAMES))])
    plot_labels([rows], NAMES, tmp_path / "labels.jpg")
    plot_confusion(ConfusionMatrix(len(NAMES)), NAMES, tmp_path / "confusion.png")
    boxes = torch.tensor([[1.0, 1, 9, 9, 0.5, i] for i in range(len(NAMES))])
    draw_boxes(Image.new("RGB", (64, 64)), boxes, NAMES)
    assert (tmp_path / "labels.jpg").stat().st_size > 0


def test_a_confusion_matrix_of_many_classes_is_no_larger_than_pictures_can_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []

    class Drawn(Exception):
        """Ends the drawing once the size is known."""

    def figure(figsize: tuple[float, float], **_: object) -> None:
        sizes.append(max(figsize))
        raise Drawn

    monkeypatch.setattr("utils.plots.evaluation.Figure", figure)
    with pytest.raises(Drawn):
        plot_confusion(ConfusionMatrix(1500), ["x"] * 1500, tmp_path / "large.png")
    assert sizes[0] <= 1.15 * LARGEST_SIDE and sizes[0] * 130 < 2**16
