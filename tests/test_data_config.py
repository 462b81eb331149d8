from pathlib import Path

import pytest

from data.config import load_data
from data.files import label_path, list_images
from tests.data_sets import write_image, write_set
from utils.config import load_hyp, save_yaml
from utils.errors import UserError


def write_yaml(folder: Path, **content) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_yaml(content, folder / "set.yaml")
    return folder / "set.yaml"


def test_path_is_relative_to_the_yaml_first_then_to_the_working_directory(tmp_path, monkeypatch):
    (tmp_path / "here" / "cells").mkdir(parents=True)
    (tmp_path / "there" / "cells").mkdir(parents=True)
    file = write_yaml(tmp_path / "here", path="cells", train="a", names=["x"])
    monkeypatch.chdir(tmp_path / "there")
    assert load_data(file).root == tmp_path / "here" / "cells"
    (tmp_path / "here" / "cells").rmdir()
    assert load_data(file).root == tmp_path / "there" / "cells"
    (tmp_path / "there" / "cells").rmdir()
    with pytest.raises(UserError) as error:
        load_data(file)
    assert str(tmp_path / "here" / "cells") in str(error.value)
    assert str(tmp_path / "there" / "cells") in str(error.value)


def test_files_of_other_tools_without_path(tmp_path, monkeypatch):
    for folder in ("coco/images", "export/train/images"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    yolov7 = write_yaml(tmp_path / "data", train="./coco/images", names=["x"])
    assert load_data(yolov7).train == [tmp_path / "coco" / "images"], (
        "relative to the working directory"
    )
    (tmp_path / "data" / "coco" / "images").mkdir(parents=True)
    assert load_data(yolov7).train == [tmp_path / "data" / "coco" / "images"], (
        "beside the YAML comes first"
    )
    (tmp_path / "data" / "x").mkdir()
    with_path = write_yaml(tmp_path / "data", path="x", train="coco/images", names=["x"])
    assert load_data(with_path).train == [tmp_path / "data" / "x" / "coco" / "images"], (
        "path counts, nothing else is tried"
    )
    roboflow = write_yaml(
        tmp_path / "export", train="../train/images", names=["x"], roboflow={"workspace": "w"}
    )
    assert load_data(roboflow).train == [tmp_path / "export" / "train" / "images"]


def test_names_as_list_mapping_or_from_nc(tmp_path):
    assert load_data(write_yaml(tmp_path, train=".", names={1: "b", 0: "a"})).names == ["a", "b"]
    assert load_data(write_yaml(tmp_path, train=".", names=["a", "b"], nc=2)).names == ["a", "b"]
    assert load_data(write_yaml(tmp_path, train=".", nc=2)).names == ["class0", "class1"]


WORDS = ["yes", "no", "off", "ON", "y", "n", "true", "007", "0x1F", "1e3", "1_000", "12:30", ".5"]
WORDS += ["null", "~", "None", "2024-13-45", "2024-01-31", "=", "<<", ".nan", ".inf", "a b", "3"]


@pytest.mark.parametrize(
    "form",
    [
        lambda words: "[" + ", ".join(words) + "]",
        lambda words: "".join(f"\n  - {word}" for word in words),
        lambda words: "".join(f"\n  {i}: {word}" for i, word in enumerate(words)),
        lambda words: "".join(f"\n  {i:03}: {word}" for i, word in enumerate(words)),
    ],
)
def test_names_are_text_whatever_yaml_takes_them_for(tmp_path, form):
    file = tmp_path / "set.yaml"
    file.write_text(f"train: .\nnames: {form(WORDS)}\n")
    assert load_data(file).names == WORDS


def test_folders_are_text_whatever_yaml_takes_them_for(tmp_path):
    for name in ("no", "007", "2024-01-31", "1e3"):
        (tmp_path / name / "010").mkdir(parents=True)
        file = tmp_path / "set.yaml"
        file.write_text(f"path: {name}\ntrain: 010\nval: [010]\ntest: ~\nnames: [a]\n")
        data = load_data(file)
        assert data.root == tmp_path / name
        assert (data.train, data.val, data.test) == ([data.root / "010"], [data.root / "010"], [])


@pytest.mark.parametrize(
    ("text", "line", "key"),
    [("nc: 2\ntrain: .\nnc: 3\n", 3, "nc"), ("train: .\nnames:\n  0: a\n  0: b\n", 4, "0")],
)
def test_a_key_that_is_there_twice_is_an_error(tmp_path, text, line, key):
    (tmp_path / "set.yaml").write_text(text)
    with pytest.raises(UserError, match=f"set.yaml:{line}: broken YAML: the key '{key}' is there"):
        load_data(tmp_path / "set.yaml")


def test_an_empty_name_is_an_error(tmp_path):
    (tmp_path / "set.yaml").write_text("train: .\nnames:\n  - a\n  -\n")
    with pytest.raises(UserError, match="names: expected a list"):
        load_data(tmp_path / "set.yaml")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"train": ".", "names": ["a"], "nc": 2}, "nc is 2, but there are 1 names"),
        ({"train": ".", "names": {0: "a", 2: "b"}}, "ids must be 0 to 1"),
        ({"train": ".", "names": "abc"}, "expected a list"),
        ({"train": ".", "nc": 0}, "nc: 0"),
        ({"train": "."}, "has no 'names'"),
        ({"names": ["a"]}, "neither 'train' nor 'val'"),
        ({"trian": ".", "names": ["a"]}, "did you mean 'train'?"),
        ({"train": {"a": 5}, "names": ["a"]}, "train: expected a folder"),
        ({"train": ".", "names": ["a"], "fraction": 1.5}, "fraction: 1.5 is out of range"),
        ({"train": ".", "names": ["a"], "seed": -1}, "seed: -1 is no whole number from 0"),
        ({"train": ".", "names": ["a"], "seed": True}, "seed: True is no whole number from 0"),
        (
            {"train": ".", "names": ["a"], "generator": "os.system"},
            "generator: 'os.system' is not known",
        ),
    ],
)
def test_mistakes_are_one_line_that_names_the_file(tmp_path, content, message):
    file = write_yaml(tmp_path, **content)
    with pytest.raises(UserError) as error:
        load_data(file)
    assert message in str(error.value)
    assert str(file) in str(error.value)
    assert "\n" not in str(error.value)


def test_download_is_never_run(tmp_path, caplog):
    bait = tmp_path / "bait"
    file = write_yaml(tmp_path, train=".", names=["a"], download=f"touch {bait}")
    from utils.log import LOGGER

    LOGGER.addHandler(caplog.handler)
    load_data(file)
    LOGGER.removeHandler(caplog.handler)
    assert not bait.exists()
    assert "'download' is never run" in caplog.text


def test_missing_split_and_empty_folder(tmp_path):
    data = load_data(write_yaml(tmp_path, train="void", val="absent", names=["a"]))
    (tmp_path / "void").mkdir()
    for split, message in (
        ("test", "no 'test' split"),
        ("val", "no such folder"),
        ("train", "no images found"),
    ):
        with pytest.raises(UserError, match=message):
            data.images(split)


def test_entries_are_folders_lists_or_both(tmp_path):
    write_set(tmp_path / "a", [(8, 8), (8, 8)])
    write_set(tmp_path / "b", [(8, 8)])
    listing = tmp_path / "b" / "list.txt"
    listing.write_bytes(b"\xef\xbb\xbf./images/train/000.png\r\n\r\n")
    (tmp_path / "a" / "images" / "notes.md").write_text("no image")
    found = list_images([tmp_path / "a" / "images", listing, tmp_path / "a" / "images" / "train"])
    assert found == [
        tmp_path / f
        for f in ("a/images/train/000.png", "a/images/train/001.png", "b/images/train/000.png")
    ]


def test_linked_folders_are_looked_into_once(tmp_path):
    """As a data set spread over disks has them; a link back up must not list everything again and
    again.
    """
    write_image(tmp_path / "images" / "a.png", 8, 8)
    write_image(tmp_path / "elsewhere" / "b.png", 8, 8)
    (tmp_path / "images" / "more").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / "images" / "up").symlink_to(tmp_path / "images", target_is_directory=True)
    assert [
        path.relative_to(tmp_path).as_posix() for path in list_images([tmp_path / "images"])
    ] == [
        "images/a.png",
        "images/more/b.png",
    ]


def test_labels_replace_the_last_images_folder_only():
    assert label_path(Path("/images/my/images/train/images.jpg")) == Path(
        "/images/my/labels/train/images.txt"
    )
    assert label_path(Path("/my_images/a.b.jpg")) == Path("/my_images/a.b.txt")


def test_hash_notices_data_and_names(tmp_path):
    content = write_set(tmp_path, [(8, 8), (8, 8)])
    first = load_data(content).hash
    assert first == load_data(content).hash
    assert first != load_data(content | {"names": ["c0", "c1", "x"]}).hash
    (tmp_path / "labels/train/000.txt").write_text("")
    assert first != load_data(content).hash


def test_published_hyper_parameters():
    low, med, high = (load_hyp(f"hyp.scratch-{size}.yaml") for size in ("low", "med", "high"))
    assert [
        (h.lrf, h.box, h.cls, h.obj, h.scale, h.mixup, h.copy_paste, h.loss)
        for h in (low, med, high)
    ] == [
        (0.01, 0.05, 0.5, 1.0, 0.5, 0.0, 0.0, "yolo"),
        (0.1, 0.05, 0.3, 0.7, 0.9, 0.1, 0.0, "yolo"),
        (0.1, 0.05, 0.3, 0.7, 0.9, 0.1, 0.1, "yolo"),
    ]
    tiny, p5 = load_hyp("hyp.scratch.tiny.yaml"), load_hyp("data/hyp.scratch.p5.yaml")
    assert [
        (h.lrf, h.cls, h.obj, h.translate, h.scale, h.mixup, h.paste_in, h.loss) for h in (tiny, p5)
    ] == [
        (0.01, 0.5, 1.0, 0.1, 0.5, 0.05, 0.05, "ota"),
        (0.1, 0.3, 0.7, 0.2, 0.9, 0.15, 0.15, "ota"),
    ]
