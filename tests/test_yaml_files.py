"""A YAML of a stranger ends in one short line, whatever is in it, and soon."""

import os
from pathlib import Path

import pytest

from data.config import load_data
from utils.config import load_yaml
from utils.errors import UserError, brief, suggest


def nested_aliases(merge: str = "") -> str:
    """Nine collections, each of nine aliases of the one before: 9^9 values."""
    lines = ["a: &a {x: 1}" if merge else "a: &a [1]"]
    for before, name in zip("abcdefgh", "bcdefghi", strict=True):
        aliases = f"[{', '.join([f'*{before}'] * 9)}]"
        lines.append(f"{name}: &{name} " + (f"{{<<: {aliases}}}" if merge else aliases))
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nb: 2024-13-45", ":2: broken YAML: this value is no valid timestamp"),
        ("b: 2001-12-14t21:59:43.10-99:30", "no valid timestamp"),
        ("b: !!timestamp soon", "no valid timestamp"),
        ("b: !!int x", "no valid int"),
        ("b: !!int ''", "no valid int"),
        ("b: !!float x", "no valid float"),
        ("b: !!bool maybe", "no valid bool"),
        (f"b: {'9' * 5000}", "no valid int"),
        (f"b: 0x{'f' * 5000}", "more than 18 digits"),
        (f"b: {':'.join(['59'] * 3000)}", "more than 18 digits"),
        ("[" * 100_000, "nested deeper than 50"),
        ("{a: " * 3000, "nested deeper than 50"),
        (nested_aliases(), "more than 1000000 values"),
        (nested_aliases("merge"), "more than 1000000 values"),
        ("b: &b [*b]", "*b stands for what holds it"),
        ('b: "\\ud800"', "half a surrogate pair"),
        ('b: "\\0"', "NUL"),
        ("b: \0", "broken YAML"),
        ("b: [=]", "could not determine a constructor"),
        ("[a]: b", "unhashable key"),
        ("!!python/object/apply:os.getcwd []", "could not determine a constructor"),
        ("- a", "expected 'key: value' lines"),
        ("", "found nothing"),
    ],
)
def test_what_no_yaml_should_hold(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "some.yaml"
    file.write_text(text)
    with pytest.raises(UserError) as error:
        load_yaml(file)
    assert said in str(error.value) and str(file) in str(error.value)
    assert len(str(error.value)) < len(str(file)) + 300


def test_aliases_of_a_usual_size_are_fine(tmp_path: Path) -> None:
    (tmp_path / "some.yaml").write_text("a: &a {x: [1, 2]}\nb: {<<: *a, y: 3}\nc: [*a, *a]\n")
    content = load_yaml(tmp_path / "some.yaml")
    assert content["b"] == {"x": [1, 2], "y": 3} and content["c"][1] == {"x": [1, 2]}


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "link.yaml").symlink_to("/dev/zero")
    (tmp_path / "large.yaml").write_bytes(b"# nothing\n" * 1_000_000)
    said = {
        "pipe.yaml": "a pipe or a device",
        "link.yaml": "a pipe or a device",
        "large.yaml": "has 10 MB; such a file has at most 8",
        "missing.yaml": "no such file",
        "": "a folder, not a file",
        "x" * 300: "too long",
        "a\0b": "null",
    }
    for name, words in said.items():
        with pytest.raises(UserError, match=words):
            load_yaml(tmp_path / name)


@pytest.mark.parametrize("path", ["x" * 300, "a/" * 3000, "a\0b", 3, ["a"]])
@pytest.mark.parametrize("key", ["path", "train", "val"])
def test_data_of_no_path(tmp_path: Path, key: str, path: object) -> None:
    content = {"path": str(tmp_path), "train": "images", "names": ["a"], key: path}
    if key != "path" and path == ["a"]:
        return  # a list of one folder
    with pytest.raises(UserError, match=key) as error:
        load_data(content)
    assert len(str(error.value)) < 400


@pytest.mark.parametrize("nc", [10**9, 10**17, -1, True, [0] * 10**5, {"a": "b" * 10**6}])
def test_numbers_of_classes_are_bounded(tmp_path: Path, nc: object) -> None:
    with pytest.raises(UserError, match="nc") as error:
        load_data({"path": str(tmp_path), "train": ".", "nc": nc})
    assert len(str(error.value)) < 400


def test_values_in_messages_are_short() -> None:
    deep: list = []
    for _ in range(10_000):
        deep = [deep]
    assert len(brief(deep)) < 50 and len(brief("a" * 10**6)) <= 80
    assert len(brief({i: [i] * 100 for i in range(1000)})) < 700
    assert brief("Conv") == "'Conv'" and suggest("a" * 10**6, ["a"]) == ""
