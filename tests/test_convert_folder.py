"""The folder that convert.py makes: whole or not at all, never over files of others."""

import errno
import json
import os
from pathlib import Path

import pytest

from data.converters import publish, writer
from data.json_stream import read_lists
from data.parallel import batches, in_order
from recipes.convert import convert
from tests.data_sets import write_image
from tests.test_convert_formats import put, visdrone
from utils.errors import UserError
from utils.options.data.convert import ConvertOptions


def options(root: Path, **more) -> ConvertOptions:
    source, out = str(root / "VisDrone"), str(root / "out")
    return ConvertOptions(**{"format": "visdrone", "source": source, "out": out, **more})


def state(folder: Path) -> dict[str, tuple[bytes, int]]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(p.relative_to(folder)): (p.read_bytes(), p.stat().st_mtime_ns) for p in files}


def test_images_are_linked_and_the_source_is_as_it_was(tmp_path: Path) -> None:
    source = visdrone(tmp_path)
    before, folders = state(source), sorted(source.rglob("*"))
    convert(options(tmp_path))
    assert state(source) == before and sorted(source.rglob("*")) == folders
    image = tmp_path / "out/images/val/0001.jpg"
    assert image.samefile(source / "VisDrone2019-DET-val/images/0001.jpg")
    assert not list(tmp_path.glob(".out*")), "nothing is left of the workshop"


def test_copies_where_they_are_asked_for_or_links_cannot_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = visdrone(tmp_path) / "VisDrone2019-DET-val/images/0001.jpg"
    convert(options(tmp_path, copy=True))
    image = tmp_path / "out/images/val/0001.jpg"
    assert not image.samefile(source) and image.read_bytes() == source.read_bytes()

    def other_disk(*_: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", other_disk)
    convert(options(tmp_path, out=str(tmp_path / "two")))
    assert not (tmp_path / "two/images/val/0001.jpg").samefile(source)
    with pytest.raises(UserError, match="cannot be linked: Invalid cross-device link; leave"):
        convert(options(tmp_path, out=str(tmp_path / "three"), link=True))
    assert not (tmp_path / "three").exists()


def test_a_linked_image_leads_to_the_file_not_to_the_link(tmp_path: Path) -> None:
    source = visdrone(tmp_path)
    image = source / "VisDrone2019-DET-val/images/0001.jpg"
    image.rename(tmp_path / "elsewhere.jpg")
    image.symlink_to(tmp_path / "elsewhere.jpg")
    convert(options(tmp_path))
    linked = tmp_path / "out/images/val/0001.jpg"
    assert not linked.is_symlink() and linked.samefile(tmp_path / "elsewhere.jpg")


def test_a_second_run_changes_nothing_and_a_changed_source_is_converted_anew(
    tmp_path: Path,
) -> None:
    source = visdrone(tmp_path)
    convert(options(tmp_path))
    (tmp_path / "out/labels/val.cache.npz").write_bytes(b"of a scan")
    first = state(tmp_path / "out")
    convert(options(tmp_path))
    assert state(tmp_path / "out") == first
    text = source / "VisDrone2019-DET-val/annotations/0001.txt"
    text.write_text("10,20,30,40,1,2,0,0\n")
    convert(options(tmp_path))
    assert (
        tmp_path / "out/labels/val/0001.txt"
    ).read_text() == "1 0.125000 0.400000 0.150000 0.400000\n"
    assert not (tmp_path / "out/labels/val.cache.npz").exists()
    convert(options(tmp_path, classes=("people",)))
    assert json.loads((tmp_path / "out/report.json").read_text())["names"] == ["people"]


def test_the_same_command_with_copy_makes_copies_of_links_and_the_other_way(tmp_path: Path) -> None:
    source = visdrone(tmp_path) / "VisDrone2019-DET-val/images/0001.jpg"
    image = tmp_path / "out/images/val/0001.jpg"
    for copy in (False, True, True, False):
        convert(options(tmp_path, copy=copy))
        assert image.samefile(source) != copy


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (lambda out: (out / "mine.txt").write_text("x"), "mine.txt"),
        (
            lambda out: (out / "labels/val/0001.txt").write_text("0 .5 .5 .1 .1\n"),
            "labels/val/0001",
        ),
        (lambda out: (out / "images/val/0001.jpg").unlink(), "images/val/0001.jpg"),
        (lambda out: (out / "manifest.json").write_text("{}"), "no conversion has made"),
        (lambda out: (out / "manifest.json").unlink(), "no conversion has made"),
    ],
)
def test_what_a_user_added_or_changed_is_never_replaced(tmp_path: Path, spoil, named: str) -> None:
    visdrone(tmp_path)
    convert(options(tmp_path))
    out = tmp_path / "out"
    spoil(out)
    before = state(out)
    with pytest.raises(UserError, match=f"out: .*{named}.*choose another --out"):
        convert(options(tmp_path, split=("val",)))
    assert state(out) == before


def test_folders_of_others_links_and_the_source_itself_are_refused(tmp_path: Path) -> None:
    source = visdrone(tmp_path)
    (tmp_path / "other").mkdir()
    put(tmp_path / "other/a.txt", "x")
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    for out, message in (
        (tmp_path / "other", "holds files that no conversion has made"),
        (tmp_path / "other/a.txt", "is a file or a link"),
        (tmp_path / "link", "is a file or a link"),
        (source, "the source is never written to"),
        (source / "yolo", "the source is never written to"),
        (tmp_path, "the source is never written to"),
    ):
        with pytest.raises(UserError, match=message):
            convert(options(tmp_path, out=str(out)))
    (tmp_path / "empty").mkdir()
    convert(options(tmp_path, out=str(tmp_path / "empty")))
    with pytest.raises(UserError, match="gone: no such folder"):
        convert(options(tmp_path, source=str(tmp_path / "gone")))


@pytest.mark.parametrize("moment", ["_place", "_write_part", "seal", "publish"])
def test_an_interrupted_run_leaves_no_folder_or_the_earlier_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    visdrone(tmp_path)

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    place = (
        "recipes.convert" if moment in {"seal", "publish"} else "data.converters.writer.SetWriter"
    )
    for _ in range(2):
        before = state(tmp_path / "out")
        with monkeypatch.context() as patch:
            patch.setattr(f"{place}.{moment}", interrupt)
            with pytest.raises(KeyboardInterrupt):
                convert(options(tmp_path, split=("val",)))
        assert state(tmp_path / "out") == before and not list(tmp_path.glob(".out*"))
        convert(options(tmp_path))


def test_a_failed_rename_brings_the_earlier_folder_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    visdrone(tmp_path)
    convert(options(tmp_path))
    before, rename = state(tmp_path / "out"), Path.rename

    def fail(self: Path, target: Path) -> Path:
        if self.name == "fresh":
            raise OSError(errno.ENOSPC, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError, match="No space"):
        convert(options(tmp_path, split=("val",)))
    assert state(tmp_path / "out") == before


def test_workshops_of_killed_programs_are_swept_and_those_at_work_are_not(tmp_path: Path) -> None:
    visdrone(tmp_path)
    killed = tmp_path / ".out-converting-killed00"
    put(killed / "fresh/images/a.jpg", "half")
    put(killed / publish.LOCK, "")
    other = tmp_path / ".out2-converting-killed00"
    put(other / publish.LOCK, "")
    with publish.workshop(tmp_path / "out") as busy:
        convert(options(tmp_path))
        assert busy.exists() and not killed.exists() and other.exists()


def test_stems_that_two_images_share_get_names_of_their_own(tmp_path: Path) -> None:
    source = visdrone(tmp_path)
    more = source / "more-val"
    write_image(more / "images/0001.png", 40, 20)
    put(more / "annotations/0001.txt", "0,0,20,10,1,1,0,0\n")
    convert(options(tmp_path, split=("val",)))
    names = sorted(path.name for path in (tmp_path / "out/images/val").iterdir())
    assert names == ["0001.jpg", "0002.jpg", "images_0001.png"]
    text = (tmp_path / "out/labels/val/images_0001.txt").read_text()
    assert text == "0 0.250000 0.250000 0.500000 0.500000\n"


def test_no_usable_image_is_an_error(tmp_path: Path) -> None:
    source = visdrone(tmp_path)
    for image in (source / "VisDrone2019-DET-train/images").iterdir():
        image.write_bytes(b"no image")
    with pytest.raises(
        UserError, match="train: none of the 2 images can be used; the first: .*0001"
    ):
        convert(options(tmp_path))
    assert not (tmp_path / "out").exists()


def test_several_processes_write_what_one_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = visdrone(tmp_path)
    for number in range(40):
        folder = source / f"VisDrone2019-DET-{'train' if number % 3 else 'val'}"
        write_image(folder / f"images/x{number}.jpg", 60 + number, 50)
        put(folder / f"annotations/x{number}.txt", f"{number},10,20,30,1,{number % 13},0,0\n")
    convert(options(tmp_path))
    monkeypatch.setattr(writer, "FEW", 0)
    monkeypatch.setattr(writer, "PART", 5)
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    convert(options(tmp_path, out=str(tmp_path / "three")))
    one, three = (
        {name: content for name, (content, _) in state(tmp_path / out).items()}
        for out in ("out", "three")
    )
    digests = [json.loads(found.pop("manifest.json"))["digest"] for found in (one, three)]
    assert one == three and digests[0] == digests[1] and b"does not exist" in one["problems.csv"]


def test_work_in_processes_keeps_the_order_and_hands_errors_over() -> None:
    parts = list(batches(range(23), 4))
    assert parts[-1] == [20, 21, 22]
    for processes in (1, 2, 5, 9):
        assert list(in_order(lambda: parts, sum, processes)) == [sum(part) for part in parts]
    assert list(in_order(list, sum, 3)) == []

    def fail(part: list[int]) -> int:
        if 9 in part:
            raise UserError("nine")
        return sum(part)

    found = in_order(lambda: parts, fail, 2)
    assert [next(found), next(found)] == [6, 22]
    with pytest.raises(UserError, match="nine"):
        next(found)
    with pytest.raises(UserError, match="has ended"):
        list(in_order(lambda: parts, lambda part: os._exit(9), 2))


CONTENT = {
    "numbers": [123456, 1.5e3, -7],
    "info": {"a": [1, {"segmentation": [1.5, [2], "x"]}]},
    "list": [
        {"segmentation": [[1.5, -2e3], [3, 4]], "s": 'a \\"segmentation":[1] "b'},
        123456,
        [],
        "é",
    ],
    "other": [1, 2],
    "empty": [],
}


@pytest.mark.parametrize("chunk", [1, 2, 7, 10_000])
@pytest.mark.parametrize("indent", [None, 1])
def test_lists_are_read_as_json_reads_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int, indent: int | None
) -> None:
    monkeypatch.setattr("data.json_stream.CHUNK", chunk)
    text = json.dumps(CONTENT, indent=indent)
    (tmp_path / "a.json").write_text(text)
    characters: list[int] = []
    found = list(read_lists(tmp_path / "a.json", ("numbers", "list", "empty"), characters.append))
    assert [value for key, value in found if key == "numbers"] == CONTENT["numbers"]
    without = [value for key, value in found if key != "numbers"]
    assert without[0]["segmentation"] in (0, CONTENT["list"][0]["segmentation"])
    assert without[0]["s"] == CONTENT["list"][0]["s"] and without[1:] == CONTENT["list"][1:]
    assert sum(characters) == len(text) and {key for key, _ in found} == {"numbers", "list"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected '{', found ''"),
        ("[]", "expected '{', found '['"),
        ('{"a": [1, 2}', "expected ',', found '}'"),
        ('{"a": [1', "expected ',', found ''"),
        ('{"a": [{"b": 1]}', "delimiter"),
        ('{"a": []} x', "something follows"),
        ('{"b": []}', "has no list 'a'"),
        ('{"a": [' + "[" * 100_000, "nested too deep"),
        ('{"a": [' + "1" * 5000 + "]}", "digits"),
    ],
)
def test_broken_json_is_one_line_that_names_the_file(
    tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError) as error:
        list(read_lists(tmp_path / "a.json", ("a",)))
    assert message in str(error.value) and str(tmp_path / "a.json") in str(error.value)


def test_json_that_is_no_text_no_file_or_has_a_huge_value(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a.json"
    for make, message in (
        (lambda: file.write_bytes(b'{"a": ["\xff"]}'), "broken JSON"),
        (lambda: (file.unlink(), os.mkfifo(file)), "a pipe or a device"),
        (lambda: file.unlink(), "no such file"),
    ):
        make()
        with pytest.raises(UserError, match=message):
            list(read_lists(file, ("a",)))
    monkeypatch.setattr("data.json_stream.MOST_VALUE", 1000)
    monkeypatch.setattr("data.json_stream.CHUNK", 100)
    file.write_text(json.dumps({"a": ["x" * 5000]}))
    with pytest.raises(UserError, match="a value of more than"):
        list(read_lists(file, ("a",)))
