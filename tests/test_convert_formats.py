"""Each converter on small inputs in the published form of its format; boxes worked out by hand."""

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import data.converters.base as base
import data.converters.visdrone as visdrone_format
import data.converters.voc as voc_format
from data.config import load_data
from data.labels import parse_labels
from data.safe_xml import BadXmlError, parse_xml
from recipes.convert import convert
from tests.conftest import ROOT
from tests.data_sets import write_image
from utils.config import load_yaml, resolve
from utils.errors import UserError
from utils.options.data.convert import ConvertOptions

SIZE = (200, 100)  # width and height of every image here


def run(kind: str, source: Path, **options) -> tuple[dict[str, np.ndarray], dict]:
    """Convert; return class, x1, y1, x2, y2 of each text by split/stem, and the report."""
    out = source.parent / "out"
    yaml = convert(ConvertOptions(format=kind, source=str(source), out=str(out), **options))
    data, found = load_data(yaml), {}
    for text in sorted((out / "labels").rglob("*.txt")):
        rows, findings = parse_labels(text.read_text(), data.nc)
        assert findings == [], text
        corners = np.concatenate(
            [rows[:, 1:3] - rows[:, 3:] / 2, rows[:, 1:3] + rows[:, 3:] / 2], 1
        )
        pixels = corners * np.array([*SIZE, *SIZE])
        found[f"{text.parent.name}/{text.stem}"] = np.column_stack([rows[:, 0], pixels]).round(3)
    for split in json.loads((out / "report.json").read_text())["splits"]:
        listed = (out / f"{split}.txt").read_text().split()
        assert [out / line for line in listed] == data.images(split)
    return found, json.loads((out / "report.json").read_text())


def put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def visdrone(root: Path) -> Path:
    source = root / "VisDrone"
    for split in ("train", "val"):
        folder = source / f"VisDrone2019-DET-{split}"
        for stem in ("0001", "0002"):
            write_image(folder / "images" / f"{stem}.jpg", *SIZE)
        put(folder / "annotations/0002.txt", "")
        lines = [
            "10,20,30,40,1,1,0,0",  # pedestrian
            "50,20,30,40,1,10,1,2,",  # motor, with the comma that some lines end with
            "0,0,90,50,0,0,0,0",  # ignored region
            "100,20,10,10,1,11,0,0",  # others
            "120,20,10,10,0,4,0,0",  # a car with score 0
            "190,90,30,30,1,4,0,1",  # car, cut at the edge
            "210,20,10,10,1,4,0,0",  # car outside of the image
            "60,60,0,10,1,4,0,0",  # car without area
            "10,20,30,40,1,1,0,0",  # the pedestrian again
        ]
        put(folder / "annotations/0001.txt", "\n".join(lines) + "\n")
    return source


def test_visdrone(tmp_path: Path) -> None:
    found, report = run("visdrone", visdrone(tmp_path))
    assert set(found) == {"train/0001", "train/0002", "val/0001", "val/0002"}
    expected = [[0, 10, 20, 40, 60], [9, 50, 20, 80, 60], [3, 190, 90, 200, 100]]
    np.testing.assert_allclose(found["train/0001"], expected, atol=0.01)
    assert len(found["val/0002"]) == 0
    train = report["splits"]["train"]
    assert (train["images"], train["backgrounds"], train["boxes"], train["clipped"]) == (2, 1, 3, 1)
    assert train["classes"] == {"pedestrian": 1, "car": 1, "motor": 1}
    assert train["dropped"] == {
        "ignored region": 2,
        "category others": 1,
        "outside of the image": 1,
        "no area": 1,
        "there twice": 1,
    }
    assert report["names"][::9] == ["pedestrian", "motor"] and len(report["names"]) == 10


def test_visdrone_limits_splits_and_classes(tmp_path: Path) -> None:
    limits = {"max_truncation": 0, "max_occlusion": 0, "split": ("val",)}
    found, report = run("visdrone", visdrone(tmp_path), classes=("car", "motor"), **limits)
    assert set(found) == {"val/0001", "val/0002"} and len(found["val/0001"]) == 0
    dropped = report["splits"]["val"]["dropped"]
    assert dropped["truncation above 0"] == 1 and dropped["occlusion above 0"] == 1
    assert dropped["class that is not asked for"] == 2
    assert report["names"] == ["car", "motor"]
    assert "2 classes have no object: car, motor" in report["notes"][0]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("1,2,3,4,1,1,0", "line 2: 7 columns (VisDrone-DET has 8)"),
        ("1,2,x,4,1,1,0,0", "line 2: not numbers"),
        ("1,2,3,4,1,12,0,0", "line 2: category 12 does not exist"),
        ("1,2,3,4,1,1.5,0,0", "line 2: category 1.5 does not exist"),
        ("nan,2,3,4,1,1,0,0", "a box that is not finite"),
    ],
)
def test_an_image_with_a_bad_line_is_left_out_with_the_reason(
    tmp_path: Path, line: str, reason: str
) -> None:
    source = visdrone(tmp_path)
    bad = source / "VisDrone2019-DET-val/annotations/0001.txt"
    bad.write_text(f"10,20,30,40,1,1,0,0\n{line}\n")
    found, report = run("visdrone", source)
    assert "val/0001" not in found and report["splits"]["val"]["left_out"] == 1
    (row,) = csv.DictReader((tmp_path / "out/problems.csv").open())
    assert row["split"] == "val" and row["file"] == str(bad.resolve())
    assert row["reason"].startswith(reason)


def crowdhuman(root: Path) -> Path:
    source = root / "CrowdHuman"
    person = {"tag": "person", "fbox": [-10, 10, 60, 80], "vbox": [0, 20, 40, 50]}
    person |= {"hbox": [10, 12, 8, 9], "extra": {"box_id": 0, "occ": 0}, "head_attr": {"ignore": 0}}
    boxes = [
        person,
        person | {"hbox": [60, 5, 10, 10], "fbox": [55, 5, 30, 90], "head_attr": {"ignore": 1}},
        person | {"tag": "mask", "extra": {"ignore": 1}},
        person | {"hbox": [90, 5, 10, 10], "extra": {"ignore": 1, "occ": 1}},
        {"tag": "person", "fbox": [120, 10, 20, 30], "vbox": [120, 10, 20, 20]},
    ]
    for split in ("train", "val"):
        name = f"273271,{split}"
        write_image(source / f"CrowdHuman_{split}/Images/{name}.jpg", *SIZE)
        put(source / f"annotation_{split}.odgt", json.dumps({"ID": name, "gtboxes": boxes}) + "\n")
    return source


def test_crowdhuman_heads_and_full_boxes(tmp_path: Path) -> None:
    found, report = run("crowdhuman", crowdhuman(tmp_path))
    assert report["names"] == ["head", "person"]
    expected = [
        [0, 10, 12, 18, 21],
        [0, 90, 5, 100, 15],
        [1, 0, 10, 50, 90],
        [1, 55, 5, 85, 95],
        [1, 120, 10, 140, 40],
    ]
    np.testing.assert_allclose(found["train/273271,train"], expected, atol=0.01)
    assert report["splits"]["val"]["dropped"] == {
        "head: ignore tag": 1,
        "head: tag mask": 1,
        "head: no such box": 1,
        "person: tag mask": 1,
        "person: ignore tag": 1,
    }


def test_crowdhuman_visible_boxes_alone(tmp_path: Path) -> None:
    found, report = run("crowdhuman", crowdhuman(tmp_path), boxes=("visible",))
    assert report["names"] == ["person"]
    np.testing.assert_allclose(
        found["val/273271,val"], [[0, 0, 20, 40, 70], [0, 120, 10, 140, 30]], atol=0.01
    )


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"ID": "a", "gtboxes": [', "no JSON"),
        ("[" * 5000, "no JSON"),
        ('{"ID": 3, "gtboxes": []}', "a line without ID or gtboxes"),
        ('{"ID": "a", "gtboxes": [3]}', "gtboxes holds something that is no object"),
        ('{"ID": "a", "gtboxes": [{"tag": "person", "hbox": [1, 2, "x", 4]}]}', "not four numbers"),
        ('{"ID": "../../a", "gtboxes": []}', "no such file"),
        (
            f'{{"ID": "a", "gtboxes": [{{"tag": "person", "hbox": [1, 2, 3, 1{"0" * 400}]}}]}}',
            "not fin",
        ),
    ],
)
def test_bad_lines_of_crowdhuman(tmp_path: Path, line: str, reason: str) -> None:
    source = crowdhuman(tmp_path)
    with (source / "annotation_val.odgt").open("a") as file:
        file.write(f"\n{line}\n")
    _, report = run("crowdhuman", source, boxes=("head",))
    assert report["splits"]["val"]["left_out"] == 1
    assert reason in (tmp_path / "out/problems.csv").read_text()


def voc_object(name: str, corners: tuple[float, ...], difficult: int = 0) -> str:
    tags = zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True)
    box = "".join(f"<{tag}>{value}</{tag}>" for tag, value in tags)
    part = "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>"
    return (
        f"<object><name>{name}</name><difficult>{difficult}</difficult>{part}"
        f"<bndbox>{box}</bndbox></object>"
    )


def voc_xml(objects: str, size: tuple[int, int] | None = SIZE) -> str:
    stated = f"<size><width>{size[0]}</width><height>{size[1]}</height></size>" if size else ""
    return f"<annotation><filename>wrong.jpg</filename>{stated}{objects}</annotation>"


def voc(root: Path) -> Path:
    source = root / "VOCdevkit"
    year = source / "VOC2007"
    objects = voc_object("dog", (1, 1, 200, 100)) + voc_object("cat", (11, 21, 40, 60))
    objects += voc_object("cat", (5, 5, 9, 9), difficult=1)
    for stem, size in (("000001", SIZE), ("000002", None), ("000003", (0, 0))):
        write_image(year / f"JPEGImages/{stem}.jpg", *SIZE)
        put(year / f"Annotations/{stem}.xml", voc_xml(objects, size))
    put(year / "ImageSets/Main/train.txt", "000001\n")
    put(year / "ImageSets/Main/trainval.txt", "000001\n000002\n")
    put(year / "ImageSets/Main/test.txt", "000003\n")
    put(year / "ImageSets/Main/dog_train.txt", "000001  1\n")
    return source


BY_HAND = [[11, 0, 0, 200, 100], [7, 10, 20, 40, 60]]  # dog and cat in PASCAL's order of classes


def test_voc_counts_pixels_from_one_and_leaves_difficult_ones_out(tmp_path: Path) -> None:
    found, report = run("voc", voc(tmp_path), split=("train=trainval", "val=test"))
    assert set(found) == {"train/000001", "train/000002", "val/000003"}
    for boxes in found.values():
        np.testing.assert_allclose(boxes, BY_HAND, atol=0.01)
    assert report["splits"]["train"]["dropped"] == {"difficult": 2}
    assert len(report["names"]) == 20 and report["names"][11] == "dog"


def test_voc_with_difficult_ones_and_other_classes(tmp_path: Path) -> None:
    source = voc(tmp_path)
    extra = voc_object("zebra", (0, 5, 10, 15))
    put(source / "VOC2007/Annotations/000001.xml", voc_xml(extra))
    found, report = run("voc", source, split=("train",))
    assert report["names"] == ["zebra"], "not PASCAL's classes: those that are there"
    np.testing.assert_allclose(found["train/000001"], [[0, 0, 4, 10, 15]], atol=0.01)
    assert "1 boxes begin at pixel 0" in report["notes"][0]
    found, report = run("voc", source, split=("train",), zero_based=True)
    np.testing.assert_allclose(found["train/000001"], [[0, 0, 5, 10, 15]], atol=0.01)
    assert report["notes"] == []
    found, report = run("voc", source, split=("test",), difficult=True)
    np.testing.assert_allclose(found["test/000003"], [*BY_HAND, [7, 4, 4, 9, 9]], atol=0.01)


def test_voc_says_which_splits_it_leaves_out(tmp_path: Path) -> None:
    source = voc(tmp_path)
    found, report = run("voc", source)
    assert set(found) == {"train/000001", "test/000003"}
    assert report["notes"][0].startswith("splits that were left out: trainval; --split train=NAME")
    for name in ("train", "test"):  # trainval and test are left, then trainval alone
        (source / f"VOC2007/ImageSets/Main/{name}.txt").unlink()
        with pytest.raises(UserError, match="has no split 'train'; --split train=NAME.*trainval"):
            run("voc", source)
    assert set(run("voc", source, split=("train=trainval",))[0]) == {"train/000001", "train/000002"}


def test_voc_of_the_test_split_alone_is_taken(tmp_path: Path) -> None:
    source = voc(tmp_path)
    for name in ("train", "trainval"):
        (source / f"VOC2007/ImageSets/Main/{name}.txt").unlink()
    found, _ = run("voc", source)
    assert set(found) == {"test/000003"}


def test_voc_reports_listed_images_without_xml_and_reads_lists_with_suffixes(
    tmp_path: Path,
) -> None:
    source = voc(tmp_path)
    lists = source / "VOC2007/ImageSets/Main"
    put(lists / "train.txt", "000001.jpg\n000002\n\n000004\nno.such.name\n")
    (source / "VOC2007/Annotations/000002.xml").rename(tmp_path / "kept.xml")
    found, report = run("voc", source, split=("train",))
    assert set(found) == {"train/000001"} and report["splits"]["train"]["left_out"] == 3
    rows = list(csv.DictReader((tmp_path / "out/problems.csv").open()))
    assert [Path(row["file"]).name for row in rows] == [
        "000002.xml",
        "000004.xml",
        "no.such.name.xml",
    ]
    assert {row["reason"] for row in rows} == {"annotations cannot be read: no such file"}
    put(lists / "train.txt", "\n")
    with pytest.raises(UserError, match="VOCdevkit: the split 'train' has no image at all"):
        run("voc", source, split=("train",))
    put(lists / "train.txt", "a\0b\n")
    with pytest.raises(UserError, match="train.txt: is no list of images: it has a NUL"):
        run("voc", source, split=("train",))


def test_voc_beside_the_images_as_other_tools_export_it(tmp_path: Path) -> None:
    source = tmp_path / "export"
    for split in ("train", "valid"):
        write_image(source / split / "a.jpg", *SIZE)
        put(source / split / "a.xml", voc_xml(voc_object("dog", (1, 1, 10, 10))))
    found, _ = run("voc", source)
    assert set(found) == {"train/a", "val/a"}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("<annotation><object>", "broken XML"),
        ('<!DOCTYPE a [<!ENTITY b "x">]><annotation>&b;</annotation>', "DOCTYPE"),
        (voc_xml(voc_object("dog", (1, 1, "x", 3))), "bndbox of dog: not four numbers"),
        (voc_xml("<object><name>dog</name></object>"), "without name or bndbox"),
        (
            voc_xml("", (100, 200)),
            "are for 100 x 200 px, the image has 200 x 100 (turned by its EXIF",
        ),
        (voc_xml("", (400, 200)), "are for 400 x 200 px, the image has 200 x 100"),
    ],
)
def test_bad_xml_leaves_its_image_out(tmp_path: Path, text: str, reason: str) -> None:
    source = voc(tmp_path)
    put(source / "VOC2007/Annotations/000001.xml", text)
    _, report = run("voc", source, split=("train=trainval",))
    assert report["splits"]["train"]["left_out"] == 1
    assert reason in (tmp_path / "out/problems.csv").read_text()


def test_entities_are_refused_before_they_grow() -> None:
    levels = "".join(f'<!ENTITY l{i} "{f"&l{i - 1};" * 10}">' for i in range(1, 12))
    bomb = f'<!DOCTYPE b [<!ENTITY l0 "ha">{levels}]><b>&l11;</b>'
    outside = '<!DOCTYPE b [<!ENTITY f SYSTEM "file:///etc/passwd">]><b>&f;</b>'
    for text in (bomb, outside):
        for encoding in ("utf-8", "utf-16"):
            with pytest.raises(BadXmlError, match="DOCTYPE"):
                parse_xml(text.encode(encoding))
    assert parse_xml(b"<a><b>3</b></a>").findtext("b") == "3"


def coco(root: Path, **changes) -> Path:
    source = root / "coco"
    for stem in ("1", "2", "3"):
        write_image(source / "train2017" / f"{stem}.jpg", *SIZE)
    objects = [
        {"image_id": 7, "category_id": 90, "bbox": [10.5, 20.25, 30, 40], "iscrowd": 0}
        | {"segmentation": [[1, 2, 3.5, 4], [5, 6, 7, 8]]},
        {"image_id": 7, "category_id": 1, "bbox": [0, 0, 200, 100], "iscrowd": 1}
        | {"segmentation": {"counts": [3, 4], "size": [100, 200]}},
        {"image_id": 8, "category_id": 1, "bbox": [5, 5, 10, 10], "iscrowd": 0, "segmentation": []},
        {"image_id": 8, "category_id": 2, "bbox": [5, 5, 10, 10]},
        {"image_id": 8, "category_id": 1, "bbox": []},
        {"image_id": 99, "category_id": 1, "bbox": [5, 5, 10, 10]},
    ]
    content = {
        "info": {"year": 2017, "segmentation": [1, 2]},
        "annotations": objects,
        "images": [
            {"id": 7, "file_name": "1.jpg", "width": 200, "height": 100},
            {"id": 8, "file_name": "train2017/2.jpg"},
            {"id": 9, "file_name": "3.jpg", "width": 200, "height": 100},
        ],
        "categories": [{"id": 90, "name": "brush"}, {"id": 1, "name": "person"}],
    }
    put(source / "annotations/instances_train2017.json", json.dumps(content | changes))
    put(source / "annotations/captions_train2017.json", "{}")
    return source


def test_coco(tmp_path: Path) -> None:
    source = coco(tmp_path)
    (source / "train2017/train2017").symlink_to(source / "train2017")
    found, report = run("coco", source)
    assert report["names"] == ["person", "brush"]
    np.testing.assert_allclose(found["train/1"], [[1, 10.5, 20.25, 40.5, 60.25]], atol=0.01)
    np.testing.assert_allclose(found["train/2"], [[0, 5, 5, 15, 15]], atol=0.01)
    assert len(found["train/3"]) == 0
    assert report["splits"]["train"]["dropped"] == {
        "crowd": 1,
        "category id that is not in categories": 1,
        "without a box": 1,
    }
    assert "1 objects of unknown images" in report["notes"][0]


def test_coco_classes_by_name_and_a_named_file(tmp_path: Path) -> None:
    source = coco(tmp_path)
    (source / "annotations/instances_train2017.json").rename(source / "my.json")
    with pytest.raises(UserError, match="no JSON of COCO whose name speaks of train"):
        run("coco", source)
    (source / "train2017").rename(source / "images")
    (source / "images/train2017").symlink_to(source / "images")
    found, report = run("coco", source, classes=("brush",), split=("val=my.json",))
    assert report["names"] == ["brush"] and len(found["val/2"]) == 0
    np.testing.assert_allclose(found["val/1"], [[0, 10.5, 20.25, 40.5, 60.25]], atol=0.01)
    with pytest.raises(UserError, match="--classes brsh: is no class.*did you mean 'brush'"):
        run("coco", source, classes=("brsh",), split=("val=my.json",))


IMAGE = {"id": 7, "file_name": "1.jpg"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": [IMAGE, IMAGE]}, "the id 7 is there twice"),
        ({"images": [{"id": [], "file_name": "1.jpg"}]}, "id: [] is no id"),
        ({"images": [{"id": 7}]}, "7 has no file_name"),
        ({"images": 3}, "has no list 'images'"),
        ({"images": []}, "has no images"),
        ({"categories": [{"id": 1}]}, "1 has no name"),
        ({"annotations": [[]]}, "annotations: expected objects, found []"),
        ({"annotations": [{"image_id": 7}]}, "category_id: None is no id"),
    ],
)
def test_a_json_that_is_not_coco_is_one_line(tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(UserError) as error:
        run("coco", coco(tmp_path, **changes))
    assert message in str(error.value) and "instances_train2017.json" in str(error.value)


@pytest.mark.parametrize(
    ("image", "box", "reason"),
    [
        ({"file_name": "../secret.jpg"}, [1, 1, 2, 2], "leads out of the folder"),
        ({"file_name": "/etc/passwd"}, [1, 1, 2, 2], "leads out of the folder"),
        ({"file_name": "1.jpg"}, [1, 1, 2, 2], "in the list of images twice"),
        ({"file_name": "2.jpg"}, [1, 1, "2", 2], "not four finite numbers"),
        ({"file_name": "2.jpg"}, [1, 1, 1e300, 2], "not four finite numbers"),
        ({"file_name": "2.jpg", "width": 20, "height": 10}, [1, 1, 2, 2], "are for 20 x 10 px"),
        ({"file_name": "gone.jpg"}, [1, 1, 2, 2], "no such file"),
    ],
)
def test_images_of_coco_that_cannot_be_trusted(
    tmp_path: Path, image: dict, box: list, reason: str
) -> None:
    write_image(tmp_path / "coco/secret.jpg", *SIZE)
    images = [IMAGE, {"id": 8, **image}, {"id": 9, "file_name": "3.jpg"}]
    objects = [{"image_id": 8, "category_id": 1, "bbox": box}]
    found, report = run("coco", coco(tmp_path, images=images, annotations=objects))
    assert "train/3" in found and report["splits"]["train"]["left_out"] in (1, 2)
    assert reason in (tmp_path / "out/problems.csv").read_text()


@pytest.mark.parametrize("make", [visdrone, crowdhuman, voc, coco])
def test_a_folder_of_another_format_is_an_error_that_says_what_is_expected(
    tmp_path: Path, make: Callable[[Path], Path]
) -> None:
    source = make(tmp_path)
    for kind in {"visdrone", "crowdhuman", "voc", "coco"} - {make.__name__}:
        with pytest.raises(UserError, match="expected"):
            run(kind, source)
    assert not (tmp_path / "out").exists()


def test_the_yamls_of_published_sets_have_the_classes_of_the_converters() -> None:
    for name, names in (
        ("visdrone", visdrone_format.NAMES),
        ("visdrone-20", visdrone_format.NAMES),
        ("voc", voc_format.NAMES),
        ("crowdhuman", ("head", "person")),
        ("crowdhuman-20", ("head", "person")),
    ):
        content = load_yaml(resolve(name, "data"), names=("names",))
        assert tuple(content["names"]) == names
        assert content.get("fraction") == (0.2 if name.endswith("-20") else None)
        assert ("seed" in content) == ("fraction" in content)
    coco = load_yaml(resolve("coco", "data"))["names"]
    assert len(coco) == 80 and coco == load_yaml(resolve("coco128.yaml", "data"))["names"]
    with pytest.raises(UserError, match="visdrone' not found.*the first lines of the YAML say"):
        load_data("VisDrone.yaml")


def test_options_of_other_formats_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--difficult: means nothing for visdrone"):
        run("visdrone", visdrone(tmp_path), difficult=True)
    with pytest.raises(UserError, match="has no split 'test' .found: train, val"):
        run("visdrone", visdrone(tmp_path), split=("test",))
    with pytest.raises(UserError, match="unknown annotation format 'visdron'; did you mean"):
        run("visdron", visdrone(tmp_path))


def test_the_converter_of_the_page_converts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (ROOT / "docs/data.md").read_text(encoding="utf-8")
    (code,) = [c for c in re.findall(r"```python\n(.*?)```", page, re.S) if "CONVERTERS" in c]
    monkeypatch.setattr(base.CONVERTERS, "_items", dict(base.CONVERTERS._items))
    exec(code, {**vars(base), "__name__": "docs"})
    write_image(tmp_path / "my/train/a.jpg", *SIZE)
    put(tmp_path / "my/train/a.csv", "1,10,20,30,40\n0,0,0,5,5\n")
    found, _ = run("mine", tmp_path / "my")
    np.testing.assert_allclose(found["train/a"], [[1, 10, 20, 30, 40], [0, 0, 0, 5, 5]], atol=0.01)
