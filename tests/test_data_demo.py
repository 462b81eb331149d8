import hashlib
import threading

import cv2
import numpy as np
import pytest

import data.demo as demo
from data.cache import scan
from data.config import load_data
from data.demo import CLASSES, PHOTOS, Recipe, Scene, compose
from data.files import list_images
from utils.errors import UserError
from utils.plots.drawing import GREY, TILE, save_labels
from utils.plots.labels import plot_labels

SMALL = Recipe(96, 12, 4)


def digest(folder) -> str:
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.suffix != ".npz")
    return hashlib.sha256(
        b"".join(str(p.relative_to(folder)).encode() + p.read_bytes() for p in files)
    ).hexdigest()


def test_composes_once_deterministically_and_anew_for_another_version(tmp_path, monkeypatch):
    compose(SMALL, tmp_path / "a")
    compose(SMALL, tmp_path / "b")
    assert digest(tmp_path / "a") == digest(tmp_path / "b")
    before = (tmp_path / "a/version.txt").stat().st_mtime_ns
    compose(SMALL, tmp_path / "a")
    assert (tmp_path / "a/version.txt").stat().st_mtime_ns == before
    monkeypatch.setattr(demo, "VERSION", demo.VERSION + 1)
    compose(SMALL, tmp_path / "a")
    assert digest(tmp_path / "a") != digest(tmp_path / "b")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"], "nothing is left behind"


def users_photo(folder):
    (folder / "images/train").mkdir(parents=True)
    (folder / "images/train/photo.jpg").write_text("precious")
    return folder


def older_set(folder, monkeypatch):
    """A set that an earlier version composed."""
    with monkeypatch.context() as patch:
        patch.setattr(demo, "VERSION", demo.VERSION - 1)
        compose(SMALL, folder)
    return folder


@pytest.mark.parametrize(
    "stamp",
    [
        None,
        "v3",
        "demo set version 1: mine\n",
        b"\xff\xfe",
        "demo set version 1: 4 + 2 images of 96 px\n",
    ],
)
def test_a_folder_of_the_users_is_never_touched(tmp_path, stamp):
    mine = users_photo(tmp_path / "mine")
    if stamp is not None:
        (mine / "version.txt").write_bytes(stamp if isinstance(stamp, bytes) else stamp.encode())
    before = digest(mine)
    with pytest.raises(UserError, match="mine: holds"):
        compose(SMALL, mine)
    assert digest(mine) == before
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]


def test_a_data_yaml_cannot_point_the_generator_at_the_users_files(tmp_path):
    mine = users_photo(tmp_path / "mine")
    (mine / "version.txt").write_text("v3")
    (tmp_path / "my.yaml").write_text(
        "path: mine\ngenerator: demo\ntrain: images/train\nval: images/val\nnames: [a]\n"
    )
    before = digest(mine)
    with pytest.raises(UserError, match="not of the demo set.*leave 'generator' out"):
        load_data(tmp_path / "my.yaml")
    assert digest(mine) == before


@pytest.mark.parametrize("change", ["added", "changed", "removed", "linked", "no manifest"])
def test_an_older_set_in_which_the_user_worked_is_left_alone(tmp_path, monkeypatch, change):
    older = older_set(tmp_path / "set", monkeypatch)
    if change == "added":
        (older / "images/train/photo.jpg").write_text("precious")
    elif change == "changed":
        (older / "labels/train/0000.txt").write_text("0 .5 .5 .1 .1\n")
    elif change == "removed":
        (older / "labels/train/0000.txt").unlink()
    elif change == "linked":
        (older / "images/more").symlink_to(users_photo(tmp_path / "mine"))
    else:
        (older / "manifest.json").unlink()
    before = digest(older)
    with pytest.raises(UserError, match="another version"):
        compose(SMALL, older)
    assert digest(older) == before


def test_an_older_set_that_was_only_used_is_replaced(tmp_path, monkeypatch):
    older = older_set(tmp_path / "set", monkeypatch)
    scan(list_images([older / "images/train"]), nc=len(CLASSES))
    assert (older / "labels/train.cache.npz").is_file()
    compose(SMALL, older)
    compose(SMALL, tmp_path / "other")
    assert digest(older) == digest(tmp_path / "other")


def test_an_empty_folder_is_filled_and_a_file_is_in_the_way(tmp_path):
    (tmp_path / "empty").mkdir()
    compose(SMALL, tmp_path / "empty")
    assert len(list_images([tmp_path / "empty/images"])) == 16
    (tmp_path / "file").write_text("precious")
    with pytest.raises(UserError, match="file: holds"):
        compose(SMALL, tmp_path / "file")
    assert (tmp_path / "file").read_text() == "precious"


def test_first_use_by_several_at_once(tmp_path):
    errors = []

    def work():
        try:
            compose(SMALL, tmp_path / "set")
        except (OSError, UserError) as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(list_images([tmp_path / "set/images"])) == 16
    assert [p.name for p in tmp_path.iterdir()] == ["set"]


def test_splits_share_neither_photographs_nor_garments():
    assert not set(PHOTOS["train"]) & set(PHOTOS["val"])
    train, val = (
        {s.tobytes() for kind in demo._sprites(split) for s in kind} for split in ("train", "val")
    )
    assert len(train) > 500 and len(val) > 180
    assert not train & val


def test_labels_are_sound_and_classes_balanced(tmp_path):
    compose(Recipe(96, 60, 4), tmp_path / "set")
    found = scan(list_images([tmp_path / "set/images/train"]), nc=len(CLASSES))
    assert found.report == []
    rows = np.concatenate(found.labels)
    assert 3 <= len(rows) / 60 <= 8
    counts = np.bincount(rows[:, 0].astype(int), minlength=5)
    assert counts.min() > 0.5 * counts.max()
    sides = rows[:, 3:] * 96
    assert sides.min() > 4 and sides.max() < 96


def test_boxes_are_tight_around_what_is_visible():
    scene = Scene(np.zeros((40, 40, 3), np.float32))

    def patch(w: int, h: int, kind: int | None) -> demo.Patch:
        return demo.Patch(
            np.full((h, w, 3), 255, np.float32),
            np.ones((h, w), np.float32),
            float(w * h) if kind is not None else 0.0,
            kind,
        )

    assert scene.paste(patch(20, 10, 3), np.array([10, 10]))
    assert scene.label_lines() == "3 0.500000 0.375000 0.500000 0.250000\n"
    assert not scene.paste(patch(12, 10, None), np.array([10, 10])), "would hide more than half"
    assert scene.paste(patch(8, 10, None), np.array([10, 10]))
    assert scene.label_lines() == "3 0.600000 0.375000 0.300000 0.250000\n"
    assert not scene.paste(patch(10, 10, 1), np.array([-6, 0])), "mostly out of the picture"
    assert scene.paste(patch(10, 10, 1), np.array([-4, 0]))
    assert scene.label_lines().splitlines()[1] == "1 0.075000 0.125000 0.150000 0.250000"


def test_pictures_are_written_at_a_legible_size(tmp_path):
    from data.loader import build_loader

    compose(SMALL, tmp_path / "set")
    data = load_data(
        {"path": str(tmp_path / "set"), "train": "images/train", "names": list(CLASSES)}
    )
    loader = build_loader(data, "train", imgsz=96, batch_size=5)
    batch = next(iter(loader))
    save_labels(batch, data.names, tmp_path / "batch.jpg")
    picture = cv2.imread(str(tmp_path / "batch.jpg"))
    assert picture is not None and picture.shape == (2 * TILE, 3 * TILE, 3)
    empty = picture[TILE:, 2 * TILE :]
    assert (abs(empty - np.array(GREY)) < 5).mean() > 0.99, "5 images leave the sixth place grey"
    save_labels(batch._replace(targets=batch.targets[:0]), data.names, tmp_path / "bare.jpg")
    bare = cv2.imread(str(tmp_path / "bare.jpg"))
    changed = (np.abs(picture.astype(int) - bare).max(2) > 60).astype(np.uint8)
    x, y, w, h = batch.targets[0, 2:].numpy() * TILE
    strip = changed[int(y) - 2 : int(y) + 2, int(x - w / 2) - 4 : int(x - w / 2) + 5]
    assert strip.any(), "the left edge of the first box is drawn where the label says"
    plot_labels(loader.dataset.labels, data.names, tmp_path / "labels.jpg")
    labels = cv2.imread(str(tmp_path / "labels.jpg"))
    assert labels is not None and labels.shape[0] > 1000
    plot_labels([], [f"class{i}" for i in range(80)], tmp_path / "labels80.jpg")
    assert (tmp_path / "labels80.jpg").stat().st_size > 10_000
