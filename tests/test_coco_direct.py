"""A data YAML whose splits are COCO's JSON reads what convert.py would write."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

import data.coco_labels as coco_labels
from data import cache
from data.config import load_data
from data.loader import build_loader, validation_loader
from recipes.convert import convert
from tests.data_sets import write_image
from tests.test_convert_formats import coco
from utils.config import save_yaml
from utils.errors import UserError
from utils.log import LOGGER
from utils.options.data.convert import ConvertOptions


@pytest.fixture(autouse=True)
def private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    coco_labels._content.cache_clear()


SPLIT = {"annotations": "annotations/instances_train2017.json", "images": "train2017"}


def source(root: Path) -> Path:
    """A set with 12 further images of random boxes, some of them cut, outside or without area."""
    place = coco(root)
    (place / "train2017/train2017").symlink_to(place / "train2017")
    file = place / SPLIT["annotations"]
    content, rng = json.loads(file.read_text()), np.random.default_rng(0)
    for number in range(20, 32):
        write_image(place / f"train2017/{number}.jpg", 60 + 7 * number, 333)
        content["images"].append({"id": number, "file_name": f"{number}.jpg"})
        for box in rng.uniform(-40, 300, (9, 4)).tolist():
            kind = int(rng.choice([1, 90]))
            content["annotations"].append({"image_id": number, "category_id": kind, "bbox": box})
    file.write_text(json.dumps(content))
    return place


def yaml(root: Path, **content) -> Path:
    save_yaml(
        {"path": str(root / "coco"), "train": SPLIT, "val": SPLIT, **content}, root / "my.yaml"
    )
    return root / "my.yaml"


@pytest.mark.parametrize("classes", [(), ("brush",), ("brush", "person")])
def test_labels_are_those_of_a_conversion_to_the_bit(tmp_path: Path, classes: tuple) -> None:
    place = source(tmp_path)
    options = ConvertOptions(
        format="coco", source=str(place), out=str(tmp_path / "out"), classes=classes
    )
    converted = load_data(convert(options))
    direct = load_data(yaml(tmp_path, **({"names": list(classes)} if classes else {})))
    assert direct.names == converted.names == (list(classes) or ["person", "brush"])
    slow = cache.scan(converted.images("train"), converted.nc)
    quick = cache.scan(direct.images("train"), direct.nc, direct.coco["train"])
    one, two = (
        {
            file.name: (rows.tobytes(), shape)
            for file, rows, shape in zip(
                found.files, found.labels, found.shapes.tolist(), strict=True
            )
        }
        for found in (slow, quick)
    )
    assert one == two and len(one) == 15 and quick.without_labels == []
    assert sum(map(len, quick.labels)) > 20
    dropped = json.loads((tmp_path / "out/report.json").read_text())["splits"]["train"]["dropped"]
    for reason in ("no area", "outside of the image", "without a box"):
        lines = [p.reason for p in quick.report if p.reason.endswith(reason)]
        assert sum(int(line.split()[0]) for line in lines) == dropped.get(reason, 0)


def test_loaders_read_it(tmp_path: Path) -> None:
    source(tmp_path)
    data = load_data(yaml(tmp_path))
    batch = next(iter(build_loader(data, "train", imgsz=64, batch_size=15)))
    assert batch.images.shape == (15, 3, 64, 64) and len(batch.targets) > 20
    assert len(validation_loader(data, imgsz=64, batch_size=4).dataset) == 15
    assert data.identity["images"] == {"train": 15, "val": 15}


def test_nothing_is_read_again_until_something_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = source(tmp_path)
    file = place / SPLIT["annotations"]

    def scanned() -> tuple[cache.Scan, list[str], list[Path]]:
        images: list[str] = []
        files: list[Path] = []
        coco_labels._content.cache_clear()  # as in another process
        with monkeypatch.context() as patch:
            probe, read = cache.probe_image, coco_labels.read_coco
            patch.setattr(cache, "probe_image", lambda p: (images.append(p.name), probe(p))[1])
            patch.setattr(coco_labels, "read_coco", lambda p: (files.append(p), read(p))[1])
            data = load_data(yaml(tmp_path))
            return cache.scan(data.images("train"), 2, data.coco["train"]), images, files

    first, images, files = scanned()
    assert len(images) == 15 and files == [file]
    again, images, files = scanned()
    assert images == files == []
    assert all(np.array_equal(a, b) for a, b in zip(first.labels, again.labels, strict=True))
    assert first.report == again.report
    before = load_data(yaml(tmp_path)).hash
    assert before == load_data(yaml(tmp_path)).hash
    content = json.loads(file.read_text())
    content["annotations"][0]["bbox"] = [1, 2, 3.5, 4]
    file.write_text(json.dumps(content))
    changed, images, files = scanned()
    assert len(images) == 15 and files == [file]
    assert not np.array_equal(first.labels[0], changed.labels[0])
    assert load_data(yaml(tmp_path)).hash != before
    for stored in (tmp_path / "cache").rglob("coco/*.npz"):
        stored.write_bytes(b"PK\x03\x04junk")
    _, _, files = scanned()
    assert files == [file], "a damaged cache is read anew"


def test_other_names_do_not_take_the_scan_of_these_names(tmp_path: Path) -> None:
    source(tmp_path)
    counts = []
    for names in (["person", "brush"], ["brush", "person"], ["person", "brush"]):
        data = load_data(yaml(tmp_path, names=names))
        found = cache.scan(data.images("train"), 2, data.coco["train"])
        counts.append(np.bincount(np.concatenate(found.labels)[:, 0].astype(int)).tolist())
    assert counts[0] == counts[2] == counts[1][::-1] and counts[0][0] != counts[0][1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"val": {"annotations": "x.json"}}, "val: expected a folder, a list file"),
        ({"val": "annotations/instances_train2017.json"}, "val: {annotations: annotations/inst"),
        ({"val": {**SPLIT, "images": "gone"}}, "gone: no such folder"),
        ({"val": {**SPLIT, "images": 3}}, "3: no such folder"),
        ({"val": {**SPLIT, "images": ["a"]}}, "is no path"),
        ({"nc": 3}, "nc is 3, but there are 2 names"),
    ],
)
def test_mistakes_in_the_yaml_are_one_line(tmp_path: Path, content: dict, message: str) -> None:
    source(tmp_path)
    with pytest.raises(UserError) as error:
        load_data(yaml(tmp_path, **content))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_names_that_the_json_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source(tmp_path)
    said: list[str] = []
    monkeypatch.setattr(LOGGER, "warning", said.append)
    data = load_data(yaml(tmp_path, names=["brush", "cat"]))
    cache.scan(data.images("train"), 2, data.coco["train"])
    assert any("has no category of the names cat" in line for line in said)
    assert any("1 objects of unknown images" in line for line in said)
    with pytest.raises(UserError, match="has no category of the names brsh; did you mean 'brush'"):
        build_loader(load_data(yaml(tmp_path, names=["brsh"])), "train", imgsz=64, batch_size=2)


def test_a_split_without_objects_names_the_json(tmp_path: Path) -> None:
    place = source(tmp_path)
    file = place / SPLIT["annotations"]
    content = json.loads(file.read_text()) | {"annotations": []}
    file.write_text(json.dumps(content))
    data = load_data(yaml(tmp_path))
    with pytest.raises(UserError, match="instances_train2017.json: none of the images of 'train'"):
        build_loader(data, "train", imgsz=64, batch_size=2)
    assert len(validation_loader(data, imgsz=64, batch_size=2, unlabelled=True).dataset) == 15


def test_images_that_cannot_be_trusted_are_left_out(tmp_path: Path) -> None:
    place = source(tmp_path)
    file = place / SPLIT["annotations"]
    content = json.loads(file.read_text())
    content["images"][0]["width"] = 100
    content["images"][3]["file_name"] = "../out.jpg"
    (place / "train2017/25.jpg").write_bytes(b"broken")
    (place / "train2017/26.jpg").unlink()
    os.utime(file)
    file.write_text(json.dumps(content))
    data = load_data(yaml(tmp_path))
    found = cache.scan(data.images("train"), 2, data.coco["train"])
    assert len(found.files) == 11
    reasons = {problem.file.name: problem.reason for problem in reversed(found.report)}
    assert reasons["1.jpg"] == "the JSON is for 100 x 100 px, the image has 200 x 100"
    assert "corrupt" in reasons["25.jpg"] and reasons["26.jpg"] == "no such image"
    assert "leads out of the folder" in " ".join(problem.reason for problem in found.report)
