"""The recipe of detect.py with a detector that finds red rectangles: every output by its values."""

import csv
import os
import signal
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import data.sources.webcam as webcam
import recipes.detect.run as run_module
import recipes.detect.video as video_module
from data.labels import parse_labels
from data.sources import SourceOptions, open_sources
from recipes.detect.detector import fitted
from recipes.detect.names import class_folders, feed_names
from recipes.detect.run import detect
from recipes.detect.tally import Tally
from recipes.detect.video import VideoFile
from recipes.detect.window import Window
from tests.detect_toys import FakeCamera, RedFinder, mjpeg_server, picture, read_video, write_video
from utils.boxes import scale_boxes
from utils.errors import UserError
from utils.files import StorageError
from utils.log import LOGGER
from utils.options.base import parse_options
from utils.options.detect import DetectOptions
from utils.plots.drawing import draw_boxes, style_for


@pytest.fixture
def finder(monkeypatch: pytest.MonkeyPatch) -> RedFinder:
    """Stands for every model."""
    found = RedFinder()
    monkeypatch.setattr(run_module, "load_runtime", lambda path, device: found)
    return found


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(LOGGER, "info", lines.append)
    monkeypatch.setattr(LOGGER, "warning", lines.append)
    return lines


def run(folder: Path, *words: str | Path | int, name: str = "exp") -> Tally:
    options = ["--weights", "red.red", "--device", "cpu", "--project", folder, "--name", name]
    return detect(parse_options(DetectOptions, [str(word) for word in (*options, *words)]))


def save(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "predictions.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def corners(row: dict[str, str]) -> list[float]:
    return [float(row[key]) for key in ("x1", "y1", "x2", "y2")]


SIZES = [(96, 64), (64, 96), (640, 480), (1080, 1920), (3840, 2160), (17, 11), (1000, 30)]


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_boxes_lie_where_the_objects_are_at_every_size(finder, tmp_path, width: int, height: int):
    box = (width // 4, height // 3, width * 3 // 4, height * 2 // 3 + 1)
    file = save(tmp_path / "photos" / "a.png", picture(width, height, box))
    run(tmp_path, "--source", file, "--save-csv")
    (row,) = rows(tmp_path / "exp")
    assert row["image"] == str(file) and (row["frame"], row["class"], row["name"]) == (
        "",
        "1",
        "red",
    )
    assert float(row["confidence"]) == pytest.approx(0.9)
    pixel = max(1.0, max(width, height) / 320)  # one pixel of the network
    assert corners(row) == pytest.approx(box, abs=1.5 * pixel)
    assert all(height % 32 == 0 == width % 32 for *_, height, width in finder.seen)
    assert max(finder.seen[-1][2:]) == 320 and min(finder.seen[-1][2:]) <= 320


def test_sixteen_bits_alpha_and_exif_give_the_same_boxes(finder, tmp_path: Path):
    box = (40, 20, 120, 60)
    red = picture(160, 100, box)
    photos = tmp_path / "photos"
    save(photos / "plain.png", red)
    cv2.imwrite(str(photos / "deep.png"), red[..., ::-1].astype(np.uint16) * 257)
    save(photos / "alpha.png", np.dstack((red, np.full((100, 160), 255, np.uint8))))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    Image.fromarray(red[::-1, ::-1].copy()).save(photos / "turned.png", exif=exif)
    tally = run(tmp_path, "--source", photos, "--save-csv")
    found = {Path(row["image"]).stem: corners(row) for row in rows(tmp_path / "exp")}
    assert set(found) == {"plain", "deep", "alpha", "turned"} and tally.frames == 4
    assert all(place == pytest.approx(box, abs=1.5) for place in found.values())


def test_fitted_is_the_smallest_rectangle_and_can_be_undone():
    image, shapes = fitted(picture(1280, 720, (0, 0, 10, 10)), (640, 640), 32)
    assert image.shape == (384, 640, 3) and shapes == ((720, 1280), ((0.5, 0.5), (0, 12)))
    corners = torch.tensor([[0.0, 12, 640, 372]])
    assert scale_boxes(corners, shapes).tolist() == [[0, 0, 1280, 720]]
    assert fitted(picture(1, 5000, (0, 0, 1, 1)), (640, 640), 32)[0].shape == (640, 32, 3)
    assert fitted(picture(100, 100, (0, 0, 9, 9)), (320, 640), 32)[0].shape == (320, 320, 3)


def test_annotated_images_keep_name_format_and_size(finder, tmp_path: Path):
    box = (40, 30, 120, 80)
    names = ["a.jpg", "b.PNG", "c.webp", "d.bmp", "e.tif"]
    for name in names:
        save(tmp_path / "photos" / name, picture(160, 100, box))
    Image.fromarray(picture(160, 100, box)).save(tmp_path / "photos" / "f.jfif", "JPEG")
    run(tmp_path, "--source", tmp_path / "photos")
    folder = tmp_path / "exp"
    assert {p.name for p in folder.iterdir() if p.suffix not in {".txt", ".yaml"}} == {
        *names,
        "f.jpg",
        ".run.lock",
    }
    colour = (230, 159, 0)  # of class 1
    for name in ("b.PNG", "d.bmp", "e.tif"):
        pixels = np.asarray(Image.open(folder / name))
        assert pixels.shape == (100, 160, 3)
        outline = (pixels == colour).all(-1)
        assert outline[55, 38:42].any() and outline[78:82, 80].any()
        assert tuple(pixels[55, 80]) == (255, 0, 0) and tuple(pixels[5, 5]) == (90, 90, 90)


def test_options_of_drawing(finder, tmp_path: Path):
    save(tmp_path / "a.png", picture(160, 100, (40, 50, 120, 90)))

    def drawn(*words: str, name: str) -> np.ndarray:
        run(tmp_path, "--source", tmp_path / "a.png", *words, name=name)
        return np.asarray(Image.open(tmp_path / name / "a.png")).astype(int)

    plain, bare = drawn(name="plain"), drawn("--hide-labels", name="bare")
    short, thick = drawn("--hide-conf", name="short"), drawn("--line-thickness", "9", name="thick")
    colour = np.array((230, 159, 0))

    def inked(pixels: np.ndarray) -> int:
        return int((pixels == colour).all(-1).sum())

    assert inked(bare) < inked(short) < inked(plain) < inked(thick)
    assert (thick[58, 60:100] == colour).all()
    assert not (plain[58, 60:100] == colour).all(-1).any()
    assert (bare[:49] == 90).all()


def test_texts_are_read_back_by_our_own_reader(finder, tmp_path: Path):
    box = (33, 17, 121, 64)
    save(tmp_path / "a.png", picture(160, 100, box))
    save(tmp_path / "none.png", picture(160, 100, (0, 0, 0, 0)))
    source = ["--source", tmp_path / "a.png", tmp_path / "none.png"]
    run(tmp_path, *source, "--save-txt", "--nosave")
    labels = tmp_path / "exp" / "labels"
    assert [file.name for file in labels.iterdir()] == ["a.txt"]
    read, findings = parse_labels((labels / "a.txt").read_text(), nc=2)
    assert findings == [] and read[0, 0] == 1
    size = np.array([160, 100, 160, 100])
    low_high = (
        np.concatenate((read[0, 1:3] - read[0, 3:] / 2, read[0, 1:3] + read[0, 3:] / 2)) * size
    )
    assert low_high == pytest.approx(box, abs=1)
    assert not list((tmp_path / "exp").glob("*.png"))

    run(tmp_path, *source, "--save-txt", "--save-conf", "--nosave", name="sure")
    words = (tmp_path / "sure" / "labels" / "a.txt").read_text().split()
    assert len(words) == 6 and float(words[5]) == pytest.approx(0.9)


def test_a_text_of_an_earlier_run_does_not_outlive_its_boxes(finder, tmp_path: Path):
    file = save(tmp_path / "photos" / "a.png", picture(160, 100, (33, 17, 121, 64)))
    words = ["--source", file, "--save-txt", "--nosave", "--exist-ok"]
    run(tmp_path, *words)
    save(file, picture(160, 100, (0, 0, 0, 0)))
    run(tmp_path, *words)
    assert (tmp_path / "exp" / "labels" / "a.txt").read_text() == ""


def test_crops_are_the_boxes_without_a_drawing(finder, tmp_path: Path):
    box = (32, 16, 128, 64)
    save(tmp_path / "a.png", picture(160, 96, box))
    run(tmp_path, "--source", tmp_path / "a.png", "--save-crop")
    (crop,) = (tmp_path / "exp" / "crops").rglob("*.jpg")
    assert crop.relative_to(tmp_path / "exp" / "crops").as_posix() == "red/a_1.jpg"
    pixels = np.asarray(Image.open(crop)).astype(int)
    assert pixels.shape[:2] == pytest.approx((48, 96), abs=2)
    assert np.abs(pixels[8:-8, 8:-8] - (255, 0, 0)).max() < 12


def test_folders_of_classes_are_plain_and_different():
    names = ["car", "traffic light", "a/b", "a:b", "..", "", "Car ", "x" * 300]
    folders = class_folders(names)
    assert len({folder.lower() for folder in folders}) == len(names)
    assert folders[1] == "traffic light" and all("/" not in f and f.strip(".") for f in folders)


@pytest.mark.parametrize(
    ("names", "folders"),
    [
        (["a", "A", "0_a"], ["0_0_a", "1_A", "0_a"]),
        (["0_a", "1_a", "a", "A"], ["0_a", "1_a", "2_a", "3_A"]),
        (["a", "a", "0_A", "0_0_a", "1_a"], ["0_0_0_a", "1_1_a", "0_A", "0_0_a", "1_a"]),
        (["", "0_"], ["0_0_", "0_"]),
    ],
)
def test_a_numbered_folder_is_not_that_of_another_class(names: list[str], folders: list[str]):
    found = class_folders(names)
    assert len({folder.lower() for folder in found}) == len(names)
    assert found == folders


def test_one_name_in_two_folders_keeps_both_outputs(finder, tmp_path: Path):
    for place in ("one", "two"):
        save(tmp_path / place / "a.png", picture(160, 100, (40, 30, 120, 80)))
        write_video(tmp_path / place / "v.mp4", 4)
    save(tmp_path / "one" / "a.jpg", picture(160, 100, (40, 30, 120, 80)))
    run(tmp_path, "--source", tmp_path / "one", tmp_path / "two", "--save-txt")
    folder = tmp_path / "exp"
    found = {p.relative_to(folder).as_posix() for p in folder.rglob("*.*") if p.suffix != ".yaml"}
    pictures = {"one/a.png.png", "one/a.jpg.jpg", "two/a.png", "one/v.mp4", "two/v.mp4"}
    texts = {"one/a.png", "one/a.jpg", "two/a"}
    texts |= {f"{place}/v_{number}" for place in ("one", "two") for number in range(1, 5)}
    assert found - {".run.lock", "log.txt"} == pictures | {f"labels/{t}.txt" for t in texts}


def test_no_frame_of_a_video_has_the_name_of_an_image(tmp_path: Path):
    for name in ("v_1.png", "v_2.jpg", "v.png", "w.png"):
        save(tmp_path / name, picture(8, 8, (0, 0, 4, 4)))
    write_video(tmp_path / "v.mp4", 2)
    write_video(tmp_path / "x.mp4", 2)
    names = feed_names(open_sources([str(tmp_path)], SourceOptions()))
    stems = [
        f"{name}_{number}" if feed.moving else name
        for feed, name in names.items()
        for number in ((1, 2) if feed.moving else (0,))
    ]
    assert len(set(stems)) == len(stems) == 8


def test_pictures_do_not_lie_among_the_texts_and_crops(tmp_path: Path):
    for place in ("labels", "crops", "x"):
        save(tmp_path / place / "a.png", picture(8, 8, (0, 0, 4, 4)))
    names = feed_names(open_sources([str(tmp_path)], SourceOptions()))
    assert sorted(names.values()) == ["_crops/a", "_labels/a", "x/a"]


@pytest.mark.parametrize("place", [".", "sub"])
def test_a_source_inside_the_run_folder_is_refused_and_untouched(finder, tmp_path, place: str):
    file = save(tmp_path / "mine" / place / "a.png", picture(160, 100, (40, 30, 120, 80)))
    before = file.read_bytes()
    with pytest.raises(UserError, match="holds the source"):
        run(tmp_path, "--source", tmp_path / "mine", "--exist-ok", "--save-txt", name="mine")
    assert file.read_bytes() == before and len(list((tmp_path / "mine").rglob("*.*"))) == 1


@pytest.mark.parametrize("linked", ["mine/images/a.png", "mine/a.png", "mine/images"])
@pytest.mark.parametrize("through", ["mine", "alias"])
def test_a_source_linked_into_the_run_folder_is_refused(finder, tmp_path, linked, through: str):
    file = save(tmp_path / "photos" / "a.png", picture(160, 100, (40, 30, 120, 80)))
    labels = tmp_path / "mine" / "labels" / "a.txt"
    labels.parent.mkdir(parents=True)
    labels.write_text("0 .5 .5 .1 .1\n")
    (tmp_path / "mine" / "opt.yaml").write_text("{source: [], vid_stride: 1, save_crop: false}")
    link = tmp_path / linked
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(file if link.suffix else file.parent)
    (tmp_path / "alias").symlink_to("mine")
    source = tmp_path / through / Path(linked).relative_to("mine")
    with pytest.raises(UserError, match="holds the source"):
        run(tmp_path, "--source", source, "--exist-ok", "--save-txt", name="mine")
    assert labels.read_text() == "0 .5 .5 .1 .1\n" and link.is_symlink()


@pytest.mark.parametrize("record", ["", "epochs: 3\nsource: x\n", "[1]", ": {"])
def test_a_folder_that_is_no_run_of_detect_is_refused(finder, tmp_path, record: str):
    file = save(tmp_path / "photos" / "a.png", picture(160, 100, (40, 30, 120, 80)))
    labels = tmp_path / "mine" / "labels" / "a.txt"
    labels.parent.mkdir(parents=True)
    labels.write_text("0 .5 .5 .1 .1\n")
    if record:
        (tmp_path / "mine" / "opt.yaml").write_text(record)
    with pytest.raises(UserError, match="no run of detect.py has made"):
        run(tmp_path, "--source", file, "--exist-ok", "--save-txt", name="mine")
    assert labels.read_text() == "0 .5 .5 .1 .1\n"


def test_an_empty_folder_and_a_source_beside_it_are_taken(finder, tmp_path: Path):
    file = save(tmp_path / "photos" / "a.png", picture(160, 100, (40, 30, 120, 80)))
    (tmp_path / "mine").mkdir()
    source = tmp_path / "mine" / ".." / "photos" / file.name
    for _ in range(2):
        run(tmp_path, "--source", source, "--exist-ok", name="mine")
    assert (tmp_path / "mine" / "a.png").exists()


def test_a_link_in_the_run_folder_does_not_lead_to_the_source(finder, tmp_path: Path):
    file = save(tmp_path / "photos" / "a.png", picture(160, 100, (40, 30, 120, 80)))
    video = write_video(tmp_path / "photos" / "v.mp4", 3)
    before = file.read_bytes(), video.read_bytes()
    run(tmp_path, "--source", tmp_path / "photos")
    for name, source in (("a.png", file), ("v.mp4", video)):
        (tmp_path / "exp" / name).unlink()
        (tmp_path / "exp" / name).symlink_to(source)
    run(tmp_path, "--source", tmp_path / "photos", "--exist-ok")
    assert (file.read_bytes(), video.read_bytes()) == before
    assert not (tmp_path / "exp" / "a.png").is_symlink()


@pytest.mark.parametrize(("codec", "suffix"), [("mp4v", "mp4"), ("MJPG", "avi"), ("VP80", "webm")])
def test_a_video_has_all_frames_its_rate_and_the_boxes(finder, tmp_path, codec: str, suffix: str):
    file = write_video(tmp_path / f"v.{suffix}", 12, 20.0, codec)
    tally = run(tmp_path, "--source", file, "--save-csv", "--save-txt", "--save-crop")
    frames, fps = read_video(tmp_path / "exp" / "v.mp4")
    assert (len(frames), fps, tally.frames) == (12, 20, 12) and frames[0].shape == (64, 96, 3)
    places = {int(row["frame"]): corners(row) for row in rows(tmp_path / "exp")}
    for number in range(1, 13):
        left = 4 * (number - 1)
        assert places[number] == pytest.approx((left, 16, left + 32, 48), abs=3)
    assert len(list((tmp_path / "exp" / "labels").glob("v_*.txt"))) == 12
    assert len(list((tmp_path / "exp" / "crops" / "red").glob("v_*_1.jpg"))) == 12
    assert not list((tmp_path / "exp").glob(".*.tmp*"))


def test_stride_of_a_video_keeps_its_length(finder, tmp_path: Path):
    file = write_video(tmp_path / "v.mp4", 12, 24.0)
    run(tmp_path, "--source", file, "--vid-stride", "4", "--save-csv")
    frames, fps = read_video(tmp_path / "exp" / "v.mp4")
    assert (len(frames), fps) == (3, 6)
    assert [row["frame"] for row in rows(tmp_path / "exp")] == ["1", "5", "9"]


@pytest.mark.parametrize(("width", "height"), [(96, 64), (33, 17), (2, 2), (1, 1), (1, 200)])
@pytest.mark.parametrize("fps", [0.0, 0.5, 23.976, 29.97, 240.0])
def test_videos_of_every_size_and_rate_read_back_whole(tmp_path, width, height, fps: float):
    pixels = np.full((height, width, 3), 200, np.uint8)
    video = VideoFile(tmp_path / "v", pixels, fps)
    for _ in range(5):
        video.add(pixels)
    video.close()
    frames, found = read_video(video.path)
    assert len(frames) == 5 and found == pytest.approx(fps or 30, rel=1e-3)
    assert frames[0].shape == (height + height % 2, width + width % 2, 3)
    assert np.abs(frames[0].astype(int) - 200).max() < 8


def test_a_stream_that_changes_its_size_stays_one_video(tmp_path: Path):
    video = VideoFile(tmp_path / "v", picture(96, 64, (0, 0, 96, 64)), 10)
    for width, height in ((96, 64), (64, 96), (200, 20)):
        video.add(picture(width, height, (0, 0, width, height)))
    video.close()
    frames, _ = read_video(video.path)
    assert [frame.shape for frame in frames] == [(64, 96, 3)] * 3
    assert abs(int(frames[1][32, 48, 0]) - 255) < 25 and abs(int(frames[1][32, 3, 0]) - 114) < 25


def test_a_live_video_keeps_the_time_of_its_frames(tmp_path: Path):
    pixels = picture(32, 32, (0, 0, 8, 8))
    video = VideoFile(tmp_path / "v", pixels, 10, live=True)
    for seconds in (0.0, 0.05, 1.0, 1.1, 100.0):
        video.add(pixels, seconds)
    video.close()
    # by then 1, 2, 11 and 12 frames are due; a gap shows one frame for ten seconds at most
    assert video.written == len(read_video(video.path)[0]) == 12 + 101


def test_a_video_that_lacks_frames_is_an_error_and_leaves_no_file(tmp_path, monkeypatch):
    pixels = picture(32, 32, (0, 0, 8, 8))
    video = VideoFile(tmp_path / "v", pixels, 10)
    video.add(pixels)
    monkeypatch.setattr(video_module, "stored_frames", lambda file: 0)
    with pytest.raises(StorageError, match=r"incomplete \(0 of 1 frames\)|disk full"):
        video.close()
    assert list(tmp_path.iterdir()) == []


def test_a_camera_is_searched_and_filmed(finder, tmp_path: Path, monkeypatch, said: list[str]):
    monkeypatch.setattr(webcam, "open_camera", lambda number: FakeCamera(20, fps=10))
    tally = run(tmp_path, "--source", "0")
    frames, fps = read_video(tmp_path / "exp" / "camera_0.mp4")
    assert 0 < tally.frames <= 20 and fps == 10 and len(frames) >= tally.frames
    assert any("the stream has ended after 20 frames" in line for line in said)


def test_an_http_stream_is_searched_and_its_password_is_kept_out(
    finder, tmp_path, said, monkeypatch
):
    with mjpeg_server(12) as address:
        secret = address.replace("http://", "http://me:hush@")
        monkeypatch.setattr("sys.argv", ["detect.py", "--source", secret])
        run(tmp_path, "--source", secret, "--save-csv")
    folder = tmp_path / "exp"
    (video,) = folder.glob("*.mp4")
    assert "127.0.0.1" in video.name and "hush" not in video.name
    assert rows(folder)[0]["image"] == address and yaml.safe_load((folder / "opt.yaml").read_text())
    texts = [(folder / name).read_text() for name in ("opt.yaml", "predictions.csv", "log.txt")]
    assert "hush" not in "".join([*texts, *said])


@pytest.mark.parametrize("password", ["hush", "hu'sh", 'hu"sh', "hu sh", "h$(u)sh", "hu=sh"])
@pytest.mark.parametrize("form", ["--source={}", "--source {}"])
def test_no_form_of_a_password_is_recorded(tmp_path, monkeypatch, form: str, password: str):
    address = f"rtsp://me:{password}@host/x?token=hidden"
    words = [word.format(address) for word in form.split(" ")]
    monkeypatch.setattr("sys.argv", ["detect.py", *words, "--name", "a=b"])
    opt = parse_options(DetectOptions, words)
    run_module.record_options(opt, tmp_path, torch.device("cpu"))
    found = yaml.safe_load((tmp_path / "opt.yaml").read_text())
    assert found["source"] == ["rtsp://host/x"]
    assert found["command"] == f"python detect.py {form.format('rtsp://host/x')} --name a=b"


def test_what_is_left_out_is_in_the_summary(finder, tmp_path: Path, said: list[str]):
    photos = tmp_path / "photos"
    save(photos / "a.png", picture(160, 100, (40, 30, 120, 80)))
    (photos / "bad.png").write_bytes(b"nothing")
    tally = run(tmp_path, "--source", photos)
    assert tally.frames == 1
    assert any(
        line.startswith("1 images and frames were searched; 1 were left out") for line in said
    )
    table = next(line for line in said if line.startswith("Class"))
    assert [row.split() for row in table.splitlines()] == [
        ["Class", "Objects", "Images"],
        ["red", "1", "1"],
        ["all", "1", "1"],
    ]
    speed = next(line for line in said if line.startswith("Speed"))
    assert all(f"ms {stage}" in speed for stage in ("pre", "inference", "nms", "write"))


@pytest.mark.parametrize("name", ["bad.png", "bad.mp4", "void.avi"])
def test_nothing_readable_is_an_error_without_a_run_folder(finder, tmp_path: Path, name: str):
    write_video(tmp_path / "void.avi", 0, codec="MJPG")
    for bad in ("bad.png", "bad.mp4"):
        (tmp_path / bad).write_bytes(b"nothing")
    with pytest.raises(UserError, match=f"{name}: "):
        run(tmp_path / "runs", "--source", tmp_path / name)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--imgsz", "100"], "no multiple of the model's stride 32; 96 or 128"),
        (["--imgsz", "7"], "; 32 would be right"),
        (["--classes", "0", "2"], r"--classes 2: the model has the classes 0 to 1 \(blue, red\)"),
        (["--classes", "-1"], "must be at least 0"),
        (["--augment"], "needs a .pt"),
        (["--view-img"], "no window can be opened"),
        (["--data", "names.yaml"], "has 3 names, red.red has 2 classes"),
        (["--vid-stride", "0"], "from 1 to"),
        (["--conf-thres", "1.5"], "from 0 to 1"),
    ],
)
def test_options_that_do_not_fit_are_one_line(finder, tmp_path, monkeypatch, words, said: str):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cv2, "getBuildInformation", lambda: "  GUI:              NONE\n")
    (tmp_path / "names.yaml").write_text("names: [a, b, c]\n")
    save(tmp_path / "a.png", picture(160, 100, (40, 30, 120, 80)))
    with pytest.raises(UserError, match=said):
        run(tmp_path / "runs", "--source", "a.png", *words)
    assert not (tmp_path / "runs").exists()


def test_classes_names_and_thresholds_choose(finder, tmp_path: Path):
    save(tmp_path / "a.png", picture(160, 100, (40, 30, 120, 80)))
    (tmp_path / "names.yaml").write_text("names: [azul, rojo]\npath: nowhere\nval: nothing\n")
    source = ["--source", tmp_path / "a.png", "--save-csv", "--data", tmp_path / "names.yaml"]
    run(tmp_path, *source, "--classes", "1", name="one")
    assert [row["name"] for row in rows(tmp_path / "one")] == ["rojo"]
    run(tmp_path, *source, "--classes", "0", name="none")
    run(tmp_path, *source, "--conf-thres", "0.95", name="sure")
    assert rows(tmp_path / "none") == rows(tmp_path / "sure") == []


def test_the_window_shows_what_is_drawn_and_q_ends_the_run(finder, tmp_path, monkeypatch, said):
    shown: list[np.ndarray] = []
    monkeypatch.setattr(cv2, "getBuildInformation", lambda: "GUI:   GTK3")
    monkeypatch.setenv("DISPLAY", ":0")
    for name in ("namedWindow", "resizeWindow", "destroyAllWindows"):
        monkeypatch.setattr(cv2, name, lambda *_: None)
    monkeypatch.setattr(cv2, "imshow", lambda title, pixels: shown.append(pixels))
    monkeypatch.setattr(cv2, "waitKey", lambda _: ord("q") if len(shown) == 3 else -1)
    file = write_video(tmp_path / "v.mp4", 9)
    tally = run(tmp_path, "--source", file, "--view-img")
    assert len(shown) == 3 and "--view-img: the window was closed" in "".join(said)
    assert len(read_video(tmp_path / "exp" / "v.mp4")[0]) == tally.frames == 2
    assert isinstance(Window(), Window)


def test_ctrl_c_leaves_whole_files_and_says_what_was_done(finder, tmp_path, said: list[str]):
    file = write_video(tmp_path / "v.mp4", 40)
    kept = finder.run

    def slow(images):
        if len(finder.seen) == 7:  # the first one warms up
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.05)
        return kept(images)

    finder.run = slow
    with pytest.raises(SystemExit) as stopped:
        run(tmp_path, "--source", file, "--save-csv")
    assert stopped.value.code == 130
    assert len(read_video(tmp_path / "exp" / "v.mp4")[0]) == len(rows(tmp_path / "exp")) == 6
    assert "stopped after 6 images and frames with 6 objects" in "".join(said)


def test_outputs_that_are_not_finite_are_said(finder, tmp_path: Path, said: list[str]):
    save(tmp_path / "a.png", picture(160, 100, (40, 30, 120, 80)))
    kept = finder.run
    finder.run = lambda images: kept(images)._replace(decoded=torch.full((1, 3, 7), float("nan")))
    run(tmp_path, "--source", tmp_path / "a.png")
    assert any("not finite" in line for line in said)


@pytest.mark.parametrize("size", [(6, 6), (20, 10), (64, 64), (640, 480), (3840, 2160)])
def test_labels_are_legible_and_stay_inside(size: tuple[int, int]):
    width, height = size
    image = Image.new("RGB", size)
    boxes = torch.tensor([[0.6 * width, 0.5 * height, width, height, 0.9, 1]])
    draw_boxes(image, boxes, ["a", "traffic light"], style_for(*size))
    inked = np.asarray(image).any(-1)
    assert inked.any()
    if width >= 64:
        rows = np.flatnonzero(inked.sum(1) > 0)
        assert rows[0] > 0  # the patch ends above: letters are whole
        assert style_for(*size).font_size >= 8
        assert not inked[:, 0].any()
    assert style_for(3840, 2160).font_size > 2 * style_for(640, 480).font_size
