"""The check of a data set finds the one fault that is put into a small clean set, and no other."""

import json
import shutil
from itertools import combinations
from pathlib import Path

import cv2
import numpy as np
import pytest

from data.cache import Scan, scan
from data.check import twins
from data.check.issues import Split
from data.check.label_checks import class_counts, odd_aspects, short_sides
from data.check.looks import LOW, SIDE, hashes_of, oriented, read_looks
from data.check.run import check
from data.check.short import same_files, warn_of_data
from data.config import load_data
from tests.data_sets import write_set
from utils.config import save_yaml
from utils.log import LOGGER
from utils.options.data.check import DataCheckOptions


@pytest.fixture
def clean(tmp_path: Path) -> Path:
    """A data YAML whose set has no fault."""
    root = tmp_path / "set"
    content = write_set(root, [(64, 48)] * 8) | write_set(root / "b", [(64, 48)] * 11)
    content |= {"path": str(root)}
    (root / "b/images/train").rename(root / "images/val")
    (root / "b/labels/train").rename(root / "labels/val")
    for number in range(8):  # the pictures of write_set depend on the number alone
        for kind, suffix in (("images", "png"), ("labels", "txt")):
            (root / kind / "val" / f"{number:03d}.{suffix}").unlink()
    save_yaml(content | {"train": "images/train", "val": "images/val"}, tmp_path / "my.yaml")
    return tmp_path / "my.yaml"


def found(yaml: Path, **options) -> tuple[int, dict[str, dict]]:
    out = yaml.parent / "runs"
    settings = {"imgsz": 64, "project": str(out), "exist_ok": True, **options}
    code = check(DataCheckOptions(data=str(yaml), **settings))
    report = json.loads((out / "exp/check.json").read_text())
    assert report["exit_code"] == code
    return code, {item["kind"]: item for item in report["findings"]}


def test_a_clean_set_is_clean(clean: Path) -> None:
    assert found(clean) == (0, {})
    page = (clean.parent / "runs/exp/check.html").read_text()
    assert "Nothing odd was found" in page and "<td>boxes</td><td>16</td><td>6</td>" in page


def files(yaml: Path, kind: str, split: str = "train") -> list[Path]:
    return sorted((yaml.parent / "set" / kind / split).glob("0*"))


def cut(yaml: Path) -> None:
    files(yaml, "images")[0].write_bytes(b"no image")


def wrong_class(yaml: Path) -> None:
    files(yaml, "labels")[1].write_text("7 .5 .5 .2 .2\n")


def no_label(yaml: Path) -> None:
    files(yaml, "labels")[2].unlink()


def stray(yaml: Path) -> None:
    (yaml.parent / "set/labels/train/zzz.txt").write_text("0 .5 .5 .2 .2\n")


def twice(yaml: Path) -> None:
    text = files(yaml, "labels")[3]
    text.write_text(text.read_text().splitlines()[0] + "\n" + text.read_text())


def tiny(yaml: Path) -> None:
    files(yaml, "labels")[4].write_text("0 .5 .5 .02 .02\n0 .5 .5 .2 .3\n")


def no_val(yaml: Path) -> None:
    for text in files(yaml, "labels", "val"):
        text.write_text(text.read_text().replace("2 ", "1 ", 1))
        text.write_text("".join(f"1{line[1:]}\n" for line in text.read_text().splitlines()))


def copied(yaml: Path) -> None:
    shutil.copy(files(yaml, "images")[5], files(yaml, "images", "val")[0])


def copied_within(yaml: Path) -> None:
    shutil.copy(files(yaml, "images")[5], files(yaml, "images")[6])


def mirrored(yaml: Path) -> None:
    image = cv2.imread(str(files(yaml, "images")[7]))
    changed = cv2.resize(image[:, ::-1], (128, 96)).astype(int) + 9
    target = files(yaml, "images", "val")[1]
    cv2.imwrite(str(target), changed.clip(0, 255).astype(np.uint8))


def brighter(yaml: Path) -> None:
    image = cv2.imread(str(files(yaml, "images")[7])).astype(int)
    cv2.imwrite(str(files(yaml, "images")[0]), (image * 0.9 + 20).astype(np.uint8))


@pytest.mark.parametrize(
    ("spoil", "kind", "code", "words"),
    [
        (cut, "left-out", 2, "train: 1 images cannot be used; the first: {set}/images/train/000"),
        (wrong_class, "left-out", 2, "labels/train/001.txt:1: class id 7 is not one of 0 to 2"),
        (no_label, "unlabelled", 1, "train: 1 of 8 images have no label file; the first: "),
        (stray, "strays", 1, "1 label files belong to no image; the first: {set}/labels/train/zzz"),
        (twice, "corrected", 1, "003.txt:2: box is there twice: dropped"),
        (tiny, "tiny", 1, "train: 1 of 16 boxes are below 2 px at --imgsz 64; the smallest: "),
        (no_val, "classes", 1, "c0: 5 boxes in train, none in val and 1 more"),
        (copied, "leaks", 2, "val: 1 images are the same file as one of train; the first: "
         "{set}/images/val/008.png = {set}/images/train/005.png"),
        (mirrored, "near-leaks", 1, "{set}/images/val/009.png = {set}/images/train/007.png ("),
        (copied_within, "duplicates", 1, "{set}/images/train/006.png = {set}/images/train/005.png"),
        (brighter, "near-duplicates", 0, "{set}/images/train/007.png = {set}/images/train/000.png"),
    ],
)  # fmt: skip
def test_each_fault_is_found_alone_with_its_place(
    clean: Path, spoil, kind: str, code: int, words: str
) -> None:
    spoil(clean)
    got, issues = found(clean)
    assert got == code and set(issues) == {kind}
    assert words.format(set=clean.parent / "set") in issues[kind]["text"]
    assert issues[kind]["count"] == (2 if kind == "classes" else 1)
    page = (clean.parent / "runs/exp/check.html").read_text()
    pictures = {"left-out": spoil is not cut, "strays": 0, "classes": 0}.get(kind, 1)
    pictures = 2 if "leak" in kind or "dup" in kind else int(pictures)
    assert page.count('src="data:image/jpeg;base64,') == pictures and page.count("<h2") == 1
    assert found(clean, allow=(kind,))[0] == 0


def test_without_comparing_no_image_is_read(clean: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copied(clean)
    monkeypatch.setattr("data.check.looks._read", None)
    assert found(clean, compare=False) == (0, {})


def test_train_and_val_of_the_same_images_leak_all_of_them(clean: Path) -> None:
    save_yaml(
        {"path": "set", "train": "images/train", "val": "images/train", "names": ["a", "b", "c"]},
        clean,
    )
    code, issues = found(clean)
    assert code == 2 and issues["leaks"]["count"] == 8 and len(issues["leaks"]["examples"]) == 8


def test_at_most_twenty_cases_are_shown_the_worst_first(clean: Path) -> None:
    lines = [f"0 .5 .5 {side / 4800:.6f} {side / 4800:.6f}\n" for side in range(130, 100, -1)]
    files(clean, "labels")[0].write_text("".join(lines))
    _, issues = found(clean)
    assert issues["tiny"]["count"] == 30 and len(issues["tiny"]["examples"]) == 20
    assert issues["tiny"]["examples"][0].endswith("c0 of 1.01 px")
    page = (clean.parent / "runs/exp/check.html").read_text()
    assert "(the worst 20 are shown)" in page and page.count("<figure>") == 20


def test_sides_counts_and_aspects_by_hand(tmp_path: Path) -> None:
    content = write_set(tmp_path, [(100, 50), (50, 100)])
    (tmp_path / "labels/train/000.txt").write_text("0 .5 .5 .5 .5\n2 .5 .5 .1 .8\n")
    (tmp_path / "labels/train/001.txt").write_text("2 .5 .5 .2 .1\n")
    images = load_data(content).images("train")
    split = Split("train", images, scan(images, 3))
    np.testing.assert_allclose(short_sides(split, 200), [50, 20, 20], rtol=1e-5)
    assert class_counts([split], 3)["train"].tolist() == [1, 0, 2]
    assert list(odd_aspects([split], ["a", "b", "c"])) == []
    rows = [f"0 .5 .5 {w} .2\n" for w in (0.1, 0.11, 0.09, 0.095, 0.105)] + ["0 .5 .5 .9 .02\n"]
    (tmp_path / "labels/train/000.txt").write_text("".join(rows))
    split = Split("train", images, scan(images, 3))
    (issue,) = odd_aspects([split], ["a", "b", "c"])
    assert issue.count == 1 and issue.examples[0].pictures[0].marked == (5,)
    assert issue.examples[0].text.endswith("a: width / height 90.00, usually 1.02")


def pictures(count: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (count, 6, 6)).astype(np.uint8)
    return np.array([cv2.resize(c, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC) for c in coarse])


def test_the_hash_is_the_sign_of_the_low_frequencies() -> None:
    picture = pictures(1)[0]
    place = np.arange(SIDE)
    basis = np.cos(np.pi * (2 * place[None] + 1) * place[:LOW, None] / (2 * SIDE))
    scale = np.sqrt(np.where(place[:LOW] == 0, 1, 2) / SIDE)[:, None]
    low = ((basis * scale) @ picture.astype(float) @ (basis * scale).T).ravel()
    bits = low > np.median(low[1:])
    bits[0] = False
    assert hashes_of(picture[None])[0, 0] == int("".join("01"[int(b)] for b in bits), 2)


@pytest.mark.parametrize("orientation", range(8))
def test_the_hash_of_an_orientation_is_the_hash_of_the_turned_picture(orientation: int) -> None:
    base = pictures(20)
    turned = np.ascontiguousarray(oriented(base, orientation))
    difference = twins.bit_count(hashes_of(base)[orientation] ^ hashes_of(turned)[0])
    assert difference.max() <= 1, "rounding may turn a sign"
    assert orientation == 0 or not np.array_equal(turned, base)


def test_near_hashes_are_found_as_by_comparing_all(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    base = rng.integers(0, 2**64, 300, np.uint64)
    base[100:200] = base[:100]
    for number in range(100, 200):
        for bit in rng.choice(64, number % 16, replace=False).tolist():
            base[number] ^= np.uint64(1 << bit)
    base[200:220] = base[0]
    slow = {
        (a, b)
        for a, b in combinations(range(300), 2)
        if bin(int(base[a]) ^ int(base[b])).count("1") <= twins.MOST_BITS
    }
    for block in (7, 10_000):
        monkeypatch.setattr(twins, "BLOCK", block)
        pairs = [np.stack(pair) for pair in twins.near_pairs(base, base)]
        quick = {(a, b) for a, b in np.concatenate(pairs, 1).T.tolist() if a < b}
        assert quick == slow and len(slow) > 250


def test_flat_and_broken_images_are_near_to_nothing(tmp_path: Path) -> None:
    for number, level in enumerate((10, 10, 11)):
        cv2.imwrite(str(tmp_path / f"{number}.png"), np.full((40, 40), level, np.uint8))
    (tmp_path / "3.png").write_bytes(b"no image")
    names = [tmp_path / f"{number}.png" for number in range(4)]
    looks = read_looks(names, np.full((4, 2), 40))
    assert looks.numbers.tolist() == [0, 1, 2] and looks.flat.all()
    assert twins.near_twins(looks) == []
    assert twins.exact_twins(looks) == [(0, 1, 2.0, 0)]
    empty = read_looks([], np.zeros((0, 2)))
    assert twins.near_twins(empty) == [] and twins.exact_twins(empty) == []


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    said: list[str] = []
    monkeypatch.setattr(LOGGER, "warning", said.append)
    return said


def short(yaml: Path) -> None:
    data = load_data(yaml)
    train, val = (scan(data.images(split), 3) for split in ("train", "val"))
    warn_of_data(train, val, data.names, 64)


def test_the_short_check_is_silent_on_a_clean_set(clean: Path, warnings: list[str]) -> None:
    short(clean)
    assert warnings == []


def test_the_short_check_names_leaks_tiny_boxes_and_classes(
    clean: Path, warnings: list[str]
) -> None:
    for spoil in (copied, tiny, no_val):
        spoil(clean)
    short(clean)
    assert [line.split(":")[0] for line in warnings] == ["data"] * 3
    assert "train: 1 of 16 boxes are below 2 px" in warnings[0]
    assert "classes that cannot be learnt or judged" in warnings[1]
    assert "at least 1 validation images are copies of training images" in warnings[2]
    assert f"{files(clean, 'images', 'val')[0]} = {files(clean, 'images')[5]}" in warnings[2]


def test_the_short_check_reads_only_files_of_one_size(
    clean: Path, monkeypatch: pytest.MonkeyPatch, warnings: list[str]
) -> None:
    copied(clean)
    read: list[Path] = []
    original = Path.open
    monkeypatch.setattr(
        Path, "open", lambda self, *a, **k: (read.append(self), original(self, *a, **k))[1]
    )
    data = load_data(clean)
    train, val = (scan(data.images(split), 3) for split in ("train", "val"))
    read.clear()
    warn_of_data(train, val, data.names, 64)
    sizes = {file.stat().st_size for file in val.files}
    expected = {f for f in [*train.files, *val.files] if f.stat().st_size in sizes}
    assert len(warnings) == 1 and set(read) <= expected
    read.clear()
    warn_of_data(train, train, data.names, 64)
    assert read == [] and "8 of 8 validation images are training images" in warnings[-1]


def scan_of(folder: Path, contents: list[bytes]) -> Scan:
    names = [folder / f"{number}.png" for number in range(len(contents))]
    folder.mkdir()
    for name, content in zip(names, contents, strict=True):
        name.write_bytes(content)
    empty = np.zeros((0, 2))
    return Scan(names, [], empty, empty, [], "", [], np.array([len(c) for c in contents]))


def test_files_that_agree_at_the_end_alone_are_not_the_same(tmp_path: Path) -> None:
    end = bytes(range(256)) * 2
    train = scan_of(tmp_path / "a", [b"x" + end, b"y" + end, b"long" + end])
    val = scan_of(tmp_path / "b", [b"z" + end, b"y" + end, b"LONG" + end, b"other"])
    assert list(same_files(train, val)) == [(val.files[1], train.files[1])]
