import csv
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

import data.cache as cache
import data.cache_file as cache_file
from data.files import label_path, list_images
from data.images import probe_image, read_image
from data.labels import parse_labels
from tests.data_sets import write_image, write_set
from utils.errors import UserError


@pytest.mark.parametrize(
    ("text", "rows", "findings"),
    [
        ("", [], []),
        ("\n  \n", [], []),
        ("1 .5 .5 .2 .4", [[1, 0.5, 0.5, 0.2, 0.4]], []),
        (
            "\ufeff0 .5 .5 .2 .4\r\n2 .5 .5 .2 .4\r\n",
            [[0, 0.5, 0.5, 0.2, 0.4], [2, 0.5, 0.5, 0.2, 0.4]],
            [],
        ),
        ("2.0 .5 .5 .2 .4", [[2, 0.5, 0.5, 0.2, 0.4]], []),
        ("0 .1 .2 .5 .2 .3 .8", [[0, 0.3, 0.5, 0.4, 0.6]], []),
        ("0 .5 .5 .2 .4\n0 .5 .5 .2 .4", [[0, 0.5, 0.5, 0.2, 0.4]], [(2, "twice", False)]),
        ("0 .5 .5 0 .4", [], [(1, "no area", False)]),
        ("0 1.005 .5 .2 .4", [[0, 1, 0.5, 0.2, 0.4]], [(1, "clipped", False)]),
        (
            "0 .5 .5 .2 .4\n0 .5 1.5 .2 .4",
            [[0, 0.5, 0.5, 0.2, 0.4]],
            [(2, "value 1.5 is out of range", True)],
        ),
        ("0 -.5 .5 .2 .4", [], [(1, "value -0.5 is out of range", True)]),
        ("3 .5 .5 .2 .4", [], [(1, "class id 3 is not one of 0 to 2", True)]),
        ("-1 .5 .5 .2 .4", [], [(1, "class id -1", True)]),
        ("0.5 .5 .5 .2 .4", [], [(1, "class id 0.5", True)]),
        ("0 nan .5 .2 .4", [], [(1, "NaN", True)]),
        ("inf .5 .5 .2 .4", [], [(1, "NaN or infinite", True)]),
        ("0 .5 .5 .2", [], [(1, "4 columns", True)]),
        ("0 .5 .5 .2 .4 .9", [], [(1, "6 columns", True)]),
        ("cat .5 .5 .2 .4", [], [(1, "not numbers", True)]),
    ],
)
def test_label_lines(text, rows, findings):
    labels, found = parse_labels(text, nc=3)
    assert labels.dtype == np.float32
    assert labels.shape == (len(rows), 5)
    np.testing.assert_allclose(labels, np.array(rows).reshape(-1, 5), atol=1e-6)
    assert [(f.line, f.fatal) for f in found] == [(line, fatal) for line, _, fatal in findings]
    assert all(reason in f.reason for f, (_, reason, _) in zip(found, findings, strict=True))


def test_bad_files_are_left_out_counted_and_reported_and_good_ones_all_used(tmp_path):
    write_set(tmp_path, [(20, 10)] * 6)
    images, labels = tmp_path / "images/train", tmp_path / "labels/train"
    whole = write_image(images / "jpeg.jpg", 64, 64).read_bytes()
    (images / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (images / "text.png").write_text("not an image")
    (images / "empty.jpg").write_bytes(b"")
    (labels / "000.txt").write_text("0 .5 .5 .2 .2\n9 .5 .5 .2 .2\n")
    (labels / "001.txt").write_text("")
    (labels / "002.txt").unlink()
    (labels / "003.txt").write_bytes(b"\xff\xfe\x00")
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    found = cache.scan(list_images([images]), nc=3)
    assert [f.name for f in found.files] == ["001.png", "002.png", "004.png", "005.png", "jpeg.jpg"]
    assert [len(rows) for rows in found.labels] == [0, 0, 2, 2, 0]
    assert found.shapes.tolist() == [[20, 10]] * 4 + [[64, 64]]
    cache.write_report(tmp_path / "dataset_report.csv", found.report)
    rows = list(csv.reader((tmp_path / "dataset_report.csv").open()))
    assert rows[0] == ["file", "line", "reason"]
    assert {(Path(file).name, line) for file, line, _ in rows[1:]} == {
        ("000.txt", "2"), ("003.png", "0"), ("cut.jpg", "0"), ("text.png", "0"), ("empty.jpg", "0"),
    }  # fmt: skip
    assert before == {p: p.read_bytes() for p in before}, "the user's files stay as they are"


def test_no_usable_image_is_an_error(tmp_path):
    (tmp_path / "a.jpg").write_text("x")
    with pytest.raises(UserError, match="none of the 1 images is usable"):
        cache.scan([tmp_path / "a.jpg"], nc=1)


def scanned_names(monkeypatch) -> list[str]:
    """Fills up with the images that are looked at from now on."""
    seen: list[str] = []
    original = cache.probe_image
    monkeypatch.setattr(
        cache, "probe_image", lambda path: (seen.append(path.name), original(path))[1]
    )
    return seen


def test_only_changed_files_are_looked_at_again(tmp_path, monkeypatch):
    write_set(tmp_path, [(20, 10)] * 4)
    images = list_images([tmp_path / "images"])
    first, seen = cache.scan(images, nc=3), scanned_names(monkeypatch)
    again = cache.scan(images, nc=3)
    assert seen == []
    assert all((a == b).all() for a, b in zip(first.labels, again.labels, strict=True))
    assert (first.shapes == again.shapes).all()
    (tmp_path / "labels/train/001.txt").write_text("0 .5 .5 .25 .25\n")
    write_image(images[2], 30, 30)
    (tmp_path / "labels/train/003.txt").unlink()
    found = cache.scan(images, nc=3)
    assert sorted(seen) == ["001.png", "002.png", "003.png"]
    assert found.labels[1].tolist() == [[0, 0.5, 0.5, 0.25, 0.25]]
    assert found.shapes[2].tolist() == [30, 30]
    assert len(found.labels[3]) == 0


def test_another_class_count_scans_anew_and_findings_survive_the_cache(tmp_path):
    write_set(tmp_path, [(20, 10)] * 3, boxes=1)
    images = list_images([tmp_path / "images"])
    assert len(cache.scan(images, nc=3).files) == 3
    assert len(cache.scan(images, nc=2).files) == 2
    assert [p.line for p in cache.scan(images, nc=2).report] == [1]


@pytest.mark.parametrize("junk", [b"", b"junk", b"PK\x03\x04junk", b"\x80\x04\x95."])
def test_a_broken_cache_is_ignored(tmp_path, junk):
    write_set(tmp_path, [(20, 10)])
    images = list_images([tmp_path / "images"])
    (tmp_path / "labels/train.cache.npz").write_bytes(junk)
    assert len(cache.scan(images, nc=3).labels[0]) == 2


def test_unwritable_folders_stop_nobody(tmp_path, monkeypatch):
    write_set(tmp_path / "set", [(20, 10)])
    images = list_images([tmp_path / "set/images"])
    monkeypatch.setattr(cache_file, "user_cache_folder", lambda: tmp_path / "user")
    original = cache_file.atomic_open

    def read_only(path, *args):
        if path.is_relative_to(tmp_path / "set"):
            raise PermissionError(13, "read-only", str(path))
        return original(path, *args)

    monkeypatch.setattr(cache_file, "atomic_open", read_only)
    cache.scan(images, nc=3)
    assert not (tmp_path / "set/labels/train.cache.npz").exists()
    assert len(list((tmp_path / "user/labels").glob("*.npz"))) == 1
    seen = scanned_names(monkeypatch)
    cache.scan(images, nc=3)
    assert seen == []
    shutil.rmtree(tmp_path / "user")
    (tmp_path / "user").write_text("a file where the folder should be")
    assert len(cache.scan(images, nc=3).files) == 1


def test_images_of_every_kind_are_read_as_rgb(tmp_path):
    grey = np.tile(np.arange(0, 240, 10, np.uint8), (16, 1))
    colour = np.dstack([grey, grey // 2, 255 - grey])
    rgba = Image.fromarray(np.dstack([colour, np.full_like(grey, 128)]))
    Image.fromarray(grey).save(tmp_path / "grey.png")
    cv2.imwrite(str(tmp_path / "deep.png"), grey.astype(np.uint16) * 256)
    Image.fromarray(colour).convert("CMYK").save(tmp_path / "cmyk.jpg", quality=100)
    rgba.save(tmp_path / "alpha.png")
    Image.fromarray(colour).save(tmp_path / "plain.tif")
    for name, expected, tolerance in (
        ("grey.png", np.dstack([grey] * 3), 0),
        ("deep.png", np.dstack([grey] * 3), 0),
        ("cmyk.jpg", colour, 8),
        ("alpha.png", colour, 0),
        ("plain.tif", colour, 0),
    ):
        image = read_image(tmp_path / name)
        assert image.dtype == np.uint8
        assert probe_image(tmp_path / name).size == (24, 16)
        assert np.abs(image.astype(int) - expected).max() <= tolerance, name


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_alike_to_size_and_pixels(tmp_path, orientation, suffix):
    pixels = np.zeros((32, 64, 3), np.uint8)
    pixels[:16, :16, 0] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = tmp_path / f"a.{suffix}"
    Image.fromarray(pixels).save(file, exif=exif, quality=100)
    image = read_image(file)
    assert probe_image(file).size == (image.shape[1], image.shape[0])
    assert (image.shape[0] > image.shape[1]) == (orientation >= 5)
    with Image.open(file) as stored:
        upright = np.array(ImageOps.exif_transpose(stored).convert("RGB"))
    assert np.abs(image.astype(int) - upright).mean() < 3 and image[..., 0].max() > 200


def test_label_path_of_report_names_the_text_file(tmp_path):
    write_set(tmp_path, [(20, 10)] * 2)
    (tmp_path / "labels/train/001.txt").write_text("0 .5 .5 0 0\n")
    images = list_images([tmp_path / "images"])
    assert [p.file for p in cache.scan(images, nc=3).report] == [label_path(images[1])]


@pytest.mark.parametrize("content", [b"precious", None])
def test_a_file_of_the_users_with_the_name_of_the_cache_is_left_alone(
    tmp_path, monkeypatch, content
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    write_set(tmp_path, [(20, 10)] * 2)
    file = tmp_path / "labels/train.cache.npz"
    if content is None:
        np.savez(file, mine=np.arange(3))
    else:
        file.write_bytes(content)
    before = file.read_bytes()
    images = list_images([tmp_path / "images"])
    cache.scan(images, nc=3)
    assert file.read_bytes() == before
    assert len(list((tmp_path / "home").rglob("*.npz"))) == 1
    seen = scanned_names(monkeypatch)
    assert len(cache.scan(images, nc=3).labels) == 2
    assert seen == [], "the private cache is read"
