"""Large label files and many images: the quick ways give what the slow ones give."""

import io
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import data.cache as cache
from data import labels
from data.files import label_path, label_paths, list_images
from data.images import HEADER, READ_ERRORS, _plain_jpeg_size, probe_image
from data.labels import parse_labels
from tests.data_sets import write_set

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
    assert _plain_jpeg_size(content[:HEADER], content[-2:]) == (36, 20)
    assert _plain_jpeg_size(content[:HEADER], content[-12:-10]) is None, "cut short"


@pytest.mark.parametrize("options", [{"icc_profile": b"x" * 9000}, {"exif": Image.Exif()}])
def test_unusual_files_are_left_to_pillow(tmp_path: Path, options: dict) -> None:
    if "exif" in options:
        options["exif"][0x0112] = 6
    content = jpeg(**options)
    (tmp_path / "a.jpg").write_bytes(content)
    assert _plain_jpeg_size(content[:HEADER], content[-2:]) is None
    assert probe_image(tmp_path / "a.jpg").size == ((20, 36) if "exif" in options else (36, 20))
    content = jpeg("CMYK")
    assert _plain_jpeg_size(content[:HEADER], content[-2:]) is None


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


def test_many_texts_are_read_as_one_by_one() -> None:
    draw = random.Random(1)
    ends = ["\n", "\r\n", "\n\n", "\r", "\v", "\f", "\x1c", "\u2028", " \n\t"]
    contents, plain = [], 0
    for _ in range(3000):
        rows = []
        for _ in range(draw.randint(0, 5)):
            pool = WORDS if draw.random() < 0.1 else WORDS[:4] + [".5", "0.25", "1e-3", "+.5"]
            length = draw.choice([5, 5, 5, 5, 5, 5, 5, 0, 4, 7])
            rows.append([draw.choice(WORDS[:4]), *draw.choices(pool, k=max(length - 1, 0))])
        text = draw.choice(ends[: draw.choice([3, 9])]).join(map(" ".join, rows))
        text = draw.choice(["", "", "", "", "\ufeff"]) + text
        contents.append(text.encode() + (b"\xff" if draw.random() < 0.01 else b""))
    for start in range(0, 3000, 100):
        part = contents[start : start + 100]
        for content, rows in zip(part, labels.parse_many(part, nc=3), strict=True):
            if rows is None:
                continue
            expected, findings = parse_labels(content.decode("utf-8-sig"), nc=3)
            assert np.array_equal(rows, expected) and rows.dtype == np.float32, content
            assert findings == [], content
            plain += 1
    assert plain > 300
    assert labels.parse_many([], 3) == []


def test_a_scan_is_the_same_without_the_quick_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_set(tmp_path, [(20, 10)] * 9)
    odd = ["0 .5 .5 .1 .1\n" * 2, "0 .5 .5 0 .1", "9 .5 .5 .1 .1", "0 .5 1.005 .1 .1", "x", ""]
    for number, text in enumerate(odd):
        (tmp_path / f"labels/train/{number:03d}.txt").write_text(text)
    (tmp_path / "labels/train/006.txt").unlink()
    (tmp_path / "labels/train/007.txt").write_text("0 .5 .5 .1 .1\n" + "\n" * 2**18)
    images = list_images([tmp_path / "images"])
    quick = cache.scan(images, 3)
    (tmp_path / "labels/train.cache.npz").unlink()
    monkeypatch.setattr(cache, "parse_many", lambda contents, nc: [None] * len(contents))
    slow = cache.scan(images, 3)
    assert quick.files == slow.files and quick.report == slow.report and len(quick.report) == 5
    assert all(np.array_equal(a, b) for a, b in zip(quick.labels, slow.labels, strict=True))
    assert quick.without_labels == slow.without_labels == [images[6]]
    assert quick.left_out == slow.left_out and len(quick.labels[-2]) == 1


@pytest.mark.parametrize(
    "image",
    ["/images/my/images/train/images.jpg", "/my_images/a.b.jpg", "a.jpg", "/a.jpg", "images/a.jpg"]
    + ["/images/.jpg", "/x/images/a", "/x/images/a.", "./images/b.png", "/images/c d.JPG"],
)
def test_label_files_of_many_images_are_those_of_one(image: str) -> None:
    assert label_paths([image]) == [str(label_path(Path(image)))]
