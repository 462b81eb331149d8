"""A checkpoint that is damaged, edited or hostile is refused at the door, in one line, at once."""

import io
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from models import build_model, load_model, save_model
from models.archive import opened
from models.checkpoint import load_checkpoint
from models.importer import is_official, read_official
from utils.errors import UserError
from utils.options.meta import MOST_PIXELS

TINY = {
    "nc": 2,
    "anchors": [[10, 13, 16, 30]],
    "backbone": [[-1, 1, "Conv", [8, 3, 2]]],
    "head": [[[0], 1, "Detect", ["nc", "anchors"]]],
}


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("good") / "good.pt"
    save_model(build_model(TINY), path, args={"imgsz": 64}, hyp={"lr0": 0.1}, epoch=3)
    return path


def refusal(read: Callable, path: Path) -> str:
    with pytest.raises(UserError) as error:
        read(path)
    text = str(error.value)
    assert "\n" not in text and len(text) < len(str(path)) + 400 and str(path) in text
    return text


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("model_cfg", 3, "model_cfg: 3 is not a dict"),
        ("model_cfg", {1: 2}, "model_cfg: 1 is not a key that is a word"),
        ("structure", [], "structure: []"),
        ("structure", {"model.0.conv": 3}, "structure: 'model.0.conv'"),
        ("structure", {"model.0.conv": {"shapes": {"weight": [10**9, 9, 9, 9]}}}, "the shape of"),
        ("structure", {"model.0.conv": {"shapes": {}, "groups": "x"}}, "'x' is not a width"),
        ("state_dict", {"a": 1}, "state_dict: 'a' is not a tensor"),
        ("state_dict", [torch.zeros(1)], "state_dict"),
        ("names", "ab", "names: 'ab' is not a list"),
        ("names", [], "names"),
        ("names", [None, 1.5], "names"),
        ("names", ["a"], "1 names for a model of 2 classes"),
        ("names", ["a", "\ud800"], "surrogate"),
        ("stride", [0], "stride"),
        ("stride", "8", "stride"),
        ("anchors", [["a"]], "anchors"),
        ("anchors", 3, "anchors"),
        ("epoch", "3", "epoch: '3' is not a int"),
        ("epoch", 10**30, "more than 64 bits"),
        ("best_fitness", None, "best_fitness"),
        ("history", [3], "history: 3"),
        ("history", [{"epoch": "x"}], "history"),
        ("hyp", [], "hyp"),
        ("args", {"imgsz": 10**9}, f"out of range (0 to {MOST_PIXELS})"),
        ("args", {"imgsz": "large"}, "invalid literal"),
        ("args", 3, "args: 3 is not a dict"),
        ("train_state", 3, "train_state"),
        ("extra", torch.zeros(1).expand(10**9), "a tensor claims to be larger than its data"),
        ("extra", torch.eye(3).to_sparse(), "sparse"),
        ("extra", torch.empty(10**12, device="meta"), "without data"),
        ("format", "1" * 10**6, "checkpoint format"),
    ],
)
def test_a_field_of_a_wrong_type(
    good: Path, tmp_path: Path, field: str, value: Any, said: str
) -> None:
    content = torch.load(good, weights_only=True)
    torch.save(content | {field: value}, tmp_path / "x.pt")
    assert said in refusal(load_model, tmp_path / "x.pt")


def test_nests_and_shared_lists_are_bounded(good: Path, tmp_path: Path) -> None:
    content = torch.load(good, weights_only=True)
    deep: Any = 1
    for _ in range(60):
        deep = [deep]
    shared: Any = [1] * 10
    for _ in range(12):
        shared = [shared] * 10
    for value, said in ((deep, "nested deeper"), (shared, "more than 2000000 values")):
        torch.save(content | {"args": {"a": value}}, tmp_path / "x.pt")
        assert said in refusal(load_checkpoint, tmp_path / "x.pt")


def test_every_cut_and_every_changed_byte_of_the_directory(good: Path, tmp_path: Path) -> None:
    data, path = good.read_bytes(), tmp_path / "x.pt"
    start = data.index(b"PK\x01\x02")
    for place in range(start, len(data), 7):
        for byte in (0, 0xFF, data[place] ^ 1):
            path.write_bytes(data[:place] + bytes([byte]) + data[place + 1 :])
            for read in (load_model, read_official):
                try:
                    read(path)
                except UserError as error:
                    assert "\n" not in str(error)
    for size in range(0, len(data), max(1, len(data) // 40)):
        path.write_bytes(data[:size])
        refusal(load_model, path)


def test_members_that_claim_more_than_the_file(good: Path, tmp_path: Path) -> None:
    data = bytearray(good.read_bytes())
    at = data.index(b"PK\x01\x02")
    data[at + 20 : at + 28] = struct.pack("<II", 2**31, 2**31)
    (tmp_path / "claims.pt").write_bytes(data)
    assert "claim to be larger" in refusal(load_model, tmp_path / "claims.pt")
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"models.yolo" + bytes(10**7))
    assert "compressed" in refusal(load_model, tmp_path / "bomb.pt")
    assert not is_official(tmp_path / "bomb.pt")
    with pytest.raises(UserError), opened(tmp_path / "bomb.pt"):
        pass


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pt")
    (tmp_path / "zero.pt").symlink_to("/dev/zero")
    for read in (load_model, load_checkpoint, read_official):
        assert "a pipe" in refusal(read, tmp_path / "pipe.pt")
        assert "a pipe" in refusal(read, tmp_path / "zero.pt")
        assert "a folder" in refusal(read, tmp_path)


def test_an_old_torch_format_is_not_read_for_ours(tmp_path: Path) -> None:
    """torch would reserve what such a file claims before it reads anything."""
    torch.save({"format": 1}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert "no checkpoint" in refusal(load_checkpoint, tmp_path / "old.pt")


def official_zip(path: Path, data: bytes, storage: bytes = b"\0" * 4) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/data/0", storage)
    return path


def test_bombs_in_official_files(tmp_path: Path) -> None:
    word = b"\x80\x02X\x0b\x00\x00\x00models.yolo"
    index = b"K\x01r\xff\xff\xff\x7f."  # memo index of 2^31: 16 GB in the unpickler in C
    assert refusal(read_official, official_zip(tmp_path / "memo.pt", word + index))
    tensor = (
        b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\n"
        b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x01tQK\x00J\xff\xff\xff\x7f\x85K\x00\x85\x89"
        b"ccollections\nOrderedDict\n)RtR."
    )
    said = refusal(read_official, official_zip(tmp_path / "strides.pt", word + b"0" + tensor))
    assert "larger than its data" in said


def test_shared_yaml_and_modules_of_official_files_are_bounded(tmp_path: Path) -> None:
    out = io.BytesIO()
    out.write(b"\x80\x02cmodels.yolo\nModel\n)\x81")
    shared: Any = [1] * 10
    for _ in range(12):
        shared = [shared] * 10
    state = pickle.dumps({"_modules": {}, "yaml": {"a": shared}, "names": []}, 2)
    out.write(state[2:-1] + b"b.")
    said = refusal(read_official, official_zip(tmp_path / "x.pt", out.getvalue()))
    assert "more than 100000 values" in said
