"""Labels that are not found never train in silence: errors, warnings and findings name them."""

import unicodedata
from pathlib import Path
from urllib.parse import quote

import pytest

import data.cache as cache
from data.config import load_data
from data.files import list_images
from data.loader import build_loader, validation_loader
from tests.data_sets import write_set
from utils.errors import UserError
from utils.log import LOGGER

OPTIONS = {"imgsz": 64, "batch_size": 2}


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    said: list[str] = []
    monkeypatch.setattr(LOGGER, "warning", said.append)
    return said


def move_to_annotations(root: Path) -> None:
    (root / "labels/train").rename(root / "annotations")


def move_beside(root: Path) -> None:
    for text in (root / "labels/train").iterdir():
        text.rename(root / "images/train" / text.name)


def capitals(root: Path) -> None:
    (root / "labels").rename(root / "Labels")


def as_voc(root: Path) -> None:
    move_to_annotations(root)
    for text in (root / "annotations").iterdir():
        text.rename(text.with_suffix(".xml"))


def as_coco(root: Path) -> None:
    for text in (root / "labels/train").iterdir():
        text.unlink()
    (root / "annotations").mkdir()
    (root / "annotations/instances_train.json").write_text("{}")


def nowhere(root: Path) -> None:
    for text in (root / "labels/train").iterdir():
        text.unlink()


def emptied(root: Path) -> None:
    for text in (root / "labels/train").iterdir():
        text.write_text("")


def links_to_nothing(root: Path) -> None:
    for text in (root / "labels/train").iterdir():
        text.unlink()
        text.symlink_to(root / "gone" / text.name)


def folders(root: Path) -> None:
    for text in (root / "labels/train").iterdir():
        text.unlink()
        text.mkdir()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (move_to_annotations, "3 .txt files of these images are in {root}/annotations: move"),
        (move_beside, "3 .txt files of these images are in {root}/images/train: move"),
        (capitals, "3 .txt files of these images are in {root}/Labels/train: move"),
        (as_voc, "3 .xml files of these images are in {root}/annotations: convert them"),
        (as_coco, ".json files are in {root}/annotations: convert them"),
        (nowhere, "no text of theirs is there; labels of images/a.jpg are in labels/a.txt"),
        (emptied, "3 texts of theirs are there"),
        (
            links_to_nothing,
            "none of the 3 images is usable; the first: {root}/images/train/000.png",
        ),
        (folders, "none of the 3 images is usable; the first: {root}/images/train/000.png"),
    ],
)
def test_a_split_without_objects_is_an_error_that_says_where_labels_are(
    tmp_path: Path, spoil, message: str
) -> None:
    content = write_set(tmp_path, [(20, 10)] * 3)
    spoil(tmp_path)
    with pytest.raises(UserError) as error:
        build_loader(load_data(content), "train", **OPTIONS)
    assert message.format(root=tmp_path) in str(error.value)
    assert str(tmp_path / "labels/train") in str(error.value)
    assert "\n" not in str(error.value)


def test_an_unlabelled_validation_split_is_an_error_unless_only_detections_are_wanted(
    tmp_path: Path, warnings: list[str]
) -> None:
    content = write_set(tmp_path, [(20, 10)] * 2) | write_set(tmp_path, [(20, 10)] * 2, "val")
    for text in (tmp_path / "labels/val").iterdir():
        text.unlink()
    data = load_data(content)
    assert len(build_loader(data, "train", **OPTIONS).dataset) == 2
    with pytest.raises(UserError, match=f"images of 'val' has an object.*{tmp_path}/labels/val"):
        validation_loader(data, **OPTIONS)
    assert len(validation_loader(data, **OPTIONS, unlabelled=True).dataset) == 2
    assert "metrics mean nothing" in warnings[-1]


@pytest.mark.parametrize(
    "rename",
    [
        lambda stem: unicodedata.normalize("NFD", stem),
        quote,
        str.upper,
    ],
)
def test_texts_whose_names_are_spelt_otherwise_are_counted_and_named(
    tmp_path: Path, warnings: list[str], rename
) -> None:
    write_set(tmp_path, [(20, 10)] * 3)
    stem = unicodedata.normalize("NFC", "café 1")
    (tmp_path / "images/train/001.png").rename(tmp_path / f"images/train/{stem}.png")
    (tmp_path / "labels/train/001.txt").rename(tmp_path / f"labels/train/{rename(stem)}.txt")
    found = cache.scan(list_images([tmp_path / "images"]), nc=3)
    assert sorted(len(rows) for rows in found.labels) == [0, 2, 2]
    assert len(warnings) == 1
    assert warnings[0].startswith("1 label files belong to no image and are not used, the first:")
    assert f"the image {stem}.png wants" in warnings[0] and "rename" in warnings[0]


def test_texts_of_other_images_and_other_texts_are_no_strays(
    tmp_path: Path, warnings: list[str]
) -> None:
    write_set(tmp_path, [(20, 10)] * 3)
    (tmp_path / "labels/train/classes.txt").write_text("cat\ndog\n")
    (tmp_path / "labels/train/train.txt").write_text("images/train/000.png\n")
    (tmp_path / "labels/train/empty.txt").write_text("")
    cache.scan(list_images([tmp_path / "images"])[:2], nc=3)
    assert warnings == [], "the third image is on the disk, the other texts hold no boxes"
    (tmp_path / "labels/train/009.txt").write_text("0 .5 .5 .1 .1\n")
    cache.scan(list_images([tmp_path / "images"]), nc=3)
    assert str(tmp_path / "labels/train/009.txt") in warnings[0]


def test_one_folder_of_several_without_labels_is_named(tmp_path: Path, warnings: list[str]) -> None:
    write_set(tmp_path / "a", [(20, 10)] * 2)
    write_set(tmp_path / "b", [(20, 10)] * 2)
    (tmp_path / "b/labels").rename(tmp_path / "b/texts")
    found = cache.scan(list_images([tmp_path / "a/images", tmp_path / "b/images"]), nc=3)
    assert [len(rows) for rows in found.labels] == [2, 2, 0, 0]
    assert [w for w in warnings if "any of the 2 images" in w and "b/labels/train" in w]


@pytest.mark.parametrize("spoil", [links_to_nothing, folders])
def test_a_label_that_cannot_be_read_is_no_background(tmp_path: Path, spoil) -> None:
    write_set(tmp_path, [(20, 10)] * 2)
    images = list_images([tmp_path / "images"])
    keep = (tmp_path / "labels/train/001.txt").read_text()
    spoil(tmp_path)
    text = tmp_path / "labels/train/001.txt"
    text.rmdir() if text.is_dir() else text.unlink()
    text.write_text(keep)
    found = cache.scan(images, nc=3)
    assert [file.name for file in found.files] == ["001.png"]
    assert [problem.file for problem in found.report] == [images[0]]
    assert "labels cannot be read" in found.report[0].reason


def test_a_label_that_becomes_a_link_to_nothing_is_noticed_in_spite_of_the_cache(
    tmp_path: Path,
) -> None:
    write_set(tmp_path, [(20, 10)] * 2)
    text = tmp_path / "labels/train/000.txt"
    text.unlink()
    images = list_images([tmp_path / "images"])
    assert len(cache.scan(images, nc=3).files) == 2
    text.symlink_to(tmp_path / "gone.txt")
    assert len(cache.scan(images, nc=3).files) == 1


def test_class_ids_that_start_at_1_are_called_so(tmp_path: Path, warnings: list[str]) -> None:
    write_set(tmp_path, [(20, 10)] * 6, boxes=1)
    images = list_images([tmp_path / "images"])
    for number, image in enumerate(images):
        text = tmp_path / f"labels/train/{image.stem}.txt"
        text.write_text(f"{number % 3 + 1} .5 .5 .2 .2\n")
    cache.scan(images, nc=3)
    assert "class id 3 is not one of 0 to 2; the ids run from 1 to 3: subtract 1" in warnings[-1]
    with pytest.raises(UserError, match="the ids run from 1 to 1: subtract 1 from each"):
        for image in images:
            (tmp_path / f"labels/train/{image.stem}.txt").write_text("1 .5 .5 .2 .2\n")
        cache.scan(images, nc=1)


def test_one_wrong_class_id_is_not_taken_for_ids_that_start_at_1(
    tmp_path: Path, warnings: list[str]
) -> None:
    write_set(tmp_path, [(20, 10)] * 3, boxes=3)
    (tmp_path / "labels/train/000.txt").write_text("3 .5 .5 .2 .2\n")
    cache.scan(list_images([tmp_path / "images"]), nc=3)
    assert "class id 3" in warnings[-1] and "subtract" not in warnings[-1]


def test_the_reason_that_is_shown_is_the_one_why_images_are_left_out(
    tmp_path: Path, warnings: list[str]
) -> None:
    write_set(tmp_path, [(20, 10)] * 3)
    (tmp_path / "labels/train/000.txt").write_text("0 1.001 .5 .2 .2\n")
    (tmp_path / "labels/train/001.txt").write_text("0 .5 .5 0 .2\n0 .5 .5 2 .2\n")
    cache.scan(list_images([tmp_path / "images"]), nc=3)
    assert warnings[-1].startswith("1 images are left out")
    assert "001.txt:2: value 2 is out of range" in warnings[-1]


def test_images_of_other_kinds_are_counted_and_jfif_is_read(
    tmp_path: Path, warnings: list[str]
) -> None:
    write_set(tmp_path, [(20, 10)] * 2)
    (tmp_path / "images/train/001.png").rename(tmp_path / "images/train/001.jfif")
    for name in ("b.gif", "a.HEIC"):
        (tmp_path / "images/train" / name).write_bytes(b"GIF89a")
    found = list_images([tmp_path / "images"])
    assert [path.name for path in found] == ["000.png", "001.jfif"]
    assert len(cache.scan(found, nc=3).files) == 2
    assert "2 images of other kinds are passed over, the first: a.HEIC" in warnings[0]
