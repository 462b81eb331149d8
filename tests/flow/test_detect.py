"""detect.py as a user runs it: on a checkpoint and on exported files, and stopped in the middle."""

import csv
import re
import signal
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from data.labels import parse_labels
from data.sources import SourceOptions, open_sources
from models import build_model
from models.checkpoint import save_checkpoint
from tests.detect_toys import read_video, write_video
from tests.flow.runs import run, start

pytestmark = pytest.mark.flow


@pytest.fixture(scope="module")
def setup(tmp_path_factory) -> Path:
    """A folder with an untrained detector that finds something everywhere, photos and a video."""
    folder = tmp_path_factory.mktemp("detect")
    torch.manual_seed(0)
    model = build_model("yolov5n", nc=3)
    model.names = ["red", "green", "blue"]
    with torch.no_grad():
        for layer in model.head.m:
            layer.bias.zero_()
            layer.weight.mul_(10)
    save_checkpoint(folder / "best.pt", model, args={"imgsz": 64})
    for place in ("one", "two"):
        (folder / "photos" / place).mkdir(parents=True)
        noise = Image.effect_noise((96, 64), 80).convert("RGB")
        noise.save(folder / "photos" / place / "a.png")
    Image.effect_noise((64, 96), 80).save(folder / "photos" / "portrait.jpg")
    (folder / "photos" / "broken.jpg").write_bytes(b"\xff\xd8\xff nothing")
    write_video(folder / "photos" / "clip.mp4", 5, 10.0)
    return folder


def detect(folder: Path, *words: str | Path):
    return run("--weights", "best.pt", "--device", "cpu", *words, folder=folder, script="detect.py")


def test_a_folder_with_everything_in_it(setup: Path):
    asked = ("--save-txt", "--save-conf", "--save-csv", "--save-crop", "--max-det", "5")
    before = {p: p.read_bytes() for p in (setup / "photos").rglob("*.*")}
    done = detect(setup, "--source", "photos", *asked, "--conf-thres", ".01")
    assert done.returncode == 0, done.stderr
    assert "8 images and frames were searched; 1 were left out, the first:" in done.stdout
    assert "left out: photos/broken.jpg: cannot be read as an image" in done.stdout
    folder = setup / "runs" / "detect" / "exp"
    frames, fps = read_video(folder / "clip.mp4")
    assert (len(frames), fps) == (5, 10)
    assert {"one/a.png", "two/a.png", "portrait.jpg"} <= {
        p.relative_to(folder).as_posix() for p in folder.rglob("*.*")
    }
    with (folder / "predictions.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert {row["image"] for row in table} >= {"photos/one/a.png", "photos/two/a.png"}
    assert len(list((folder / "crops").rglob("*.jpg"))) == len(table) > 8
    assert all(
        len(line.split()) == 6 for p in (folder / "labels").rglob("*.txt") for line in p.open()
    )
    assert {p: p.read_bytes() for p in (setup / "photos").rglob("*.*")} == before
    assert "Traceback" not in done.stderr and "FFMPEG" not in done.stderr + done.stdout


def test_a_text_without_confidences_is_a_label(setup: Path):
    words = ("--source", "photos/one/a.png", "--save-txt", "--nosave", "--name", "labels")
    done = detect(setup, *words, "--conf-thres", ".01", "--augment", "--classes", "0", "2")
    assert done.returncode == 0, done.stderr
    text = (setup / "runs" / "detect" / "labels" / "labels" / "a.txt").read_text()
    boxes, findings = parse_labels(text, nc=3)
    assert not [finding for finding in findings if finding.fatal]
    assert len(boxes) and set(boxes[:, 0]) <= {0, 2}


def test_a_video_that_is_stopped_is_whole(setup: Path):
    write_video(setup / "long.mp4", 3000)
    process = start(
        *("--weights", "best.pt", "--device", "cpu", "--source", "long.mp4", "--name", "stopped"),
        folder=setup,
        script="detect.py",
    )
    folder = setup / "runs" / "detect" / "stopped"
    deadline = time.monotonic() + 120
    while not list(folder.glob(".long.mp4.*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in out, out
    frames, _ = read_video(folder / "long.mp4")
    assert 0 < len(frames) < 3000
    (counted,) = re.findall(r"SIGINT: stopped after (\d+) images and frames", out)
    assert int(counted) in {len(frames), len(frames) - 1}  # a frame that was just being written
    assert not list(folder.glob(".*.tmp*"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--source", "nowhere.jpg"), "no such file or folder"),
        (("--source", "cut.mp4"), "cut.mp4: cannot be read as a video"),
        (("--source", "photos", "--weights", "half.pt"), "half.pt: "),
    ],
)
def test_bad_input_is_one_line(setup: Path, words: tuple[str, ...], said: str):
    whole = (setup / "best.pt").read_bytes()
    (setup / "half.pt").write_bytes(whole[: len(whole) // 2])
    (setup / "cut.mp4").write_bytes((setup / "photos" / "clip.mp4").read_bytes()[:600])
    done = detect(setup, *words, "--name", "bad")
    assert done.returncode == 2, done.stdout + done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1 and said in lines[0], done.stderr
    assert not (setup / "runs" / "detect" / "bad").exists()


def test_real_photos(shared: Path, tmp_path: Path):
    """The official weights find people and cars on photos of streets, the same ones as val.py."""
    photos = sorted((shared / "datasets" / "vehicles" / "images" / "val").glob("*.jpg"))[:6]
    done = run(
        *("--weights", shared / "weights" / "yolov5n.pt", "--device", "cpu"),
        *("--source", *photos, "--save-csv", "--imgsz", "320"),
        folder=tmp_path,
        script="detect.py",
    )
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs" / "detect" / "exp"
    with (folder / "predictions.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert {row["name"] for row in table} & {"car", "bus", "truck", "motorcycle", "person"}
    feeds = open_sources([str(photo) for photo in photos], SourceOptions())
    for feed in feeds:
        (frame,) = feed.frames()
        drawn = Image.open(folder / Path(feed.place).name)
        assert drawn.size == frame.pixels.shape[1::-1]
