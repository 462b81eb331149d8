"""Images and labels under any name and of any kind: used or left out with a line, never a crash."""

import csv
import os
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest

from data.cache import write_report
from data.config import load_data
from data.dataset import DetectionDataset
from data.images import read_image
from data.options import LoaderOptions
from utils.log import LOGGER, logging_to, setup_logging

NOT_UTF8 = os.fsdecode(b"caf\xe9")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A set with one image whose name is not UTF-8."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
    (tmp_path / "images" / f"{NOT_UTF8}.png").write_bytes(png())
    (tmp_path / "labels" / f"{NOT_UTF8}.txt").write_text("0 .5 .5 .5 .5\n")
    return tmp_path


def png(depth: type = np.uint8) -> bytes:
    return cv2.imencode(".png", np.full((8, 8, 3), 7, depth))[1].tobytes()


def opened(folder: Path, cache: str | None = None) -> DetectionDataset:
    data = load_data({"path": str(folder), "train": "images", "names": ["a"]})
    assert len(data.hash) == 10
    return DetectionDataset(data.images("train"), 1, LoaderOptions(64, 1, cache=cache))


@pytest.mark.parametrize("cache", [None, "ram", "disk"])
def test_a_name_that_is_not_utf8_is_used(folder: Path, cache: str | None) -> None:
    for _ in range(2):  # scanned, then from the cache
        assert opened(folder, cache)[0].boxes.tolist() == [[0, 0.5, 0.5, 0.5, 0.5]]
    (folder / "images" / f"{NOT_UTF8}16.png").write_bytes(png(np.uint16))
    assert read_image(folder / "images" / f"{NOT_UTF8}16.png").shape == (8, 8, 3)


def test_its_report_and_log_can_be_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # pytest would keep the lines for its report, and pytest-xdist cannot send such names.
    monkeypatch.setattr(LOGGER, "handlers", [])
    monkeypatch.setattr(LOGGER, "propagate", False)
    setup_logging()
    (folder / "images" / f"{NOT_UTF8}2.png").write_bytes(b"no image")
    report = opened(folder).report
    write_report(folder / "report.csv", report)
    with (folder / "report.csv").open(errors="surrogateescape", newline="") as file:
        assert next(csv.DictReader(file))["file"] == str(report[0].file)
    with logging_to(folder / "log.txt"):
        LOGGER.info(f"{report[0].file}")
    assert "caf\\udce92.png" in (folder / "log.txt").read_text()
    assert "caf\\udce92.png" in capsys.readouterr().out


def test_pipes_devices_and_folders_are_left_out(folder: Path) -> None:
    images = folder / "images"
    os.mkfifo(images / "pipe.png")
    (images / "device.jpg").symlink_to("/dev/zero")
    (images / "labelled.png").write_bytes(png())
    os.mkfifo(folder / "labels" / "labelled.txt")
    dataset = opened(folder)
    assert len(dataset) == 1
    found = {problem.file.name: problem.reason for problem in dataset.report}
    assert "a pipe or a device" in found["pipe.png"] and "a pipe" in found["device.jpg"]
    assert "no file" in found["labelled.png"]


def test_an_image_of_more_pixels_than_memory_is_left_out(folder: Path) -> None:
    head = bytearray(png())
    head[16:24] = (60_000).to_bytes(4, "big") * 2
    head[29:33] = zlib.crc32(head[12:29]).to_bytes(4, "big")
    (folder / "images" / "bomb.png").write_bytes(head)
    dataset = opened(folder)
    assert len(dataset) == 1 and dataset.report[0].file.name == "bomb.png"


@pytest.mark.parametrize("head", [b"[]", b"3", b"[" * 100_000, b"{", b'{"version": 2, "nc": 1}'])
def test_a_damaged_label_cache_is_scanned_anew(folder: Path, head: bytes) -> None:
    cache = folder / "labels.cache.npz"
    np.savez(cache, head=np.frombuffer(head, np.uint8))
    assert len(opened(folder)) == 1
    cache.unlink()
    os.mkfifo(cache)
    assert len(opened(folder)) == 1
