"""Large label files and many images: the quick ways give what the slow ones give."""

import io
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data import labels
from data.images import READ_ERRORS, _plain_jpeg_size, probe_image
from data.labels import parse_labels

WORDS = ["0", "1", "2", "-0", "3", "-1", ".5", "0.25", "nan", "inf", "1e400", "1.005", "-0.001"]
WORDS += ["1.5", "-0.0", "x", "1_0", "0.30000001", "0.3"]


def test_twenty_thousand_boxes_are_compared_with_each_other() -> None:
    """The old way compared each pair: some minutes."""
    boxes = np.random.default_rng(0).uniform(0.2, 0.8, (10_000, 4)).round(6)
    text = "".join("0 {} {} {} {}\n".format(*row) for row in boxes.tolist())
    found, findings = parse_labels(text + text, nc=1)
    assert np.array_equal(found[:, 1:], boxes.astype(np.float32))
    assert [f.line for f in findings] == list(range(10_001, 20_001))
    assert {f.reason for f in findings} == {"box is there twice: dropped"}


def test_a_text_is_read_alike_at_once_and_line_by_line(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random(0)
    for _ in range(3000):
        rows = []
        for _ in range(draw.randint(0, 5)):
            pool = WORDS if draw.random() < 0.2 else WORDS[:8]
            length = draw.choice([5, 5, 5, 5, 0, 4, 7])
            rows.append([draw.choice(WORDS[:4]), *draw.choices(pool, k=max(length - 1, 0))])
        text = draw.choice(["\n", "\r\n", "\n\n"]).join(map(" ".join, rows))
        quick = parse_labels(text, nc=3)
        with monkeypatch.context() as patch:
            patch.setattr(labels, "_plain_boxes", lambda lines, nc: None)
            slow = parse_labels(text, nc=3)
        assert np.array_equal(quick[0], slow[0]) and quick[0].dtype == np.float32, text
        assert quick[1] == slow[1], text


def jpeg(mode: str = "RGB", **options) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 255, (20, 36, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(stream, "JPEG", **options)
    return stream.getvalue()


@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"optimize": True}, {"dpi": (9, 9)}]
)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_the_size_of_a_usual_jpeg_is_in_its_header(mode: str, options: dict) -> None:
    content = jpeg(mode, **options)
    assert _plain_jpeg_size(io.BytesIO(content)) == (36, 20)
    assert _plain_jpeg_size(io.BytesIO(content[:-10])) is None, "cut short"


@pytest.mark.parametrize("options", [{"icc_profile": b"x" * 9000}, {"exif": Image.Exif()}])
def test_unusual_files_are_left_to_pillow(tmp_path: Path, options: dict) -> None:
    if "exif" in options:
        options["exif"][0x0112] = 6
    content = jpeg(**options)
    (tmp_path / "a.jpg").write_bytes(content)
    assert _plain_jpeg_size(io.BytesIO(content)) is None
    assert probe_image(tmp_path / "a.jpg").size == ((20, 36) if "exif" in options else (36, 20))
    assert _plain_jpeg_size(io.BytesIO(jpeg("CMYK"))) is None


def test_damaged_headers_are_no_crash(tmp_path: Path) -> None:
    content, draw = jpeg(), random.Random(0)
    for _ in range(300):
        damaged = bytearray(content)
        for _ in range(4):
            damaged[draw.randrange(min(700, len(damaged)))] = draw.randrange(256)
        (tmp_path / "a.jpg").write_bytes(bytes(damaged))
        try:
            width, height = probe_image(tmp_path / "a.jpg").size
        except READ_ERRORS:
            continue
        assert 0 < width < 65536 and 0 < height < 65536
