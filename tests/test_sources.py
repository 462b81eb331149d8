"""Sources of detect.py: what each kind of `--source` gives, and how each of them fails."""

import os
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

import data.sources.webcam as webcam
from data.sources import SOURCES, Feed, SourceOptions, frames_of, open_sources
from data.sources.live import LiveFeed
from data.sources.stream import without_password
from tests.detect_toys import FakeCamera, mjpeg_server, picture, write_video
from utils.errors import UserError
from utils.log import LOGGER

OPTIONS = SourceOptions(silence=20)


def opened(*texts: str | Path, options: SourceOptions = OPTIONS) -> list[Feed]:
    return open_sources([str(text) for text in texts], options)


def places(feeds: list[Feed], folder: Path) -> list[str]:
    return [Path(feed.place).relative_to(folder).as_posix() for feed in feeds]


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    said: list[str] = []
    monkeypatch.setattr(LOGGER, "warning", said.append)
    return said


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """b.png, a.jpg, sub/c.PNG, a video and a text."""
    (tmp_path / "sub").mkdir()
    for name in ("b.png", "a.jpg", "sub/c.PNG"):
        Image.fromarray(picture(40, 30, (4, 4, 20, 20))).save(tmp_path / name)
    write_video(tmp_path / "v.mp4", frames=3)
    (tmp_path / "notes.md").write_text("no source")
    return tmp_path


def test_kinds_are_registered_and_no_text_is_of_two_kinds(photos: Path):
    assert set(SOURCES) == {"image", "folder", "glob", "list file", "video", "webcam", "stream"}
    (photos / "list.txt").write_text("a.jpg\n")
    texts = {
        "image": photos / "a.jpg",
        "folder": photos,
        "glob": photos / "*.jpg",
        "list file": photos / "list.txt",
        "video": photos / "v.mp4",
        "webcam": 0,
        "stream": "rtsp://host/x",
    }
    for kind, text in texts.items():
        assert [name for name in SOURCES if SOURCES[name].matches(str(text))] == [kind]


def test_a_folder_gives_images_and_videos_below_it_sorted(photos: Path):
    assert places(opened(photos), photos) == ["a.jpg", "b.png", "sub/c.PNG", "v.mp4"]


def test_a_pattern_gives_what_it_matches(photos: Path):
    assert places(opened(photos / "*.jpg", photos / "*.png"), photos) == ["a.jpg", "b.png"]
    deep = places(opened(photos / "**" / "*.[pP][nN][gG]"), photos)
    assert deep == ["b.png", "sub/c.PNG"]


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(photos: Path):
    (photos / "a.jpg").rename(photos / "a[1].jpg")
    assert places(opened(photos / "a[1].jpg"), photos) == ["a[1].jpg"]


def test_a_list_names_files_beside_it_cameras_and_streams_each_once(photos: Path):
    lines = ["b.png", "", str(photos / "v.mp4"), "rtsp://user:secret@host/x", "1", "b.png"]
    (photos / "list.txt").write_text("\ufeff" + "\r\n".join(lines))
    found = [feed.place for feed in opened(photos / "list.txt")]
    assert found == [f"{photos}/b.png", f"{photos}/v.mp4", "rtsp://host/x", "camera 1"]


def test_a_file_that_two_sources_name_counts_once(photos: Path):
    assert len(opened(photos / "a.jpg", photos, photos / "*.jpg")) == 4


def test_a_file_counts_once_however_its_path_is_written(photos: Path, monkeypatch):
    monkeypatch.chdir(photos)
    found = opened("sub", photos / "sub", "./sub/../sub/c.PNG", "sub/*.PNG")
    assert [feed.place for feed in found] == ["sub/c.PNG"]


def test_links_are_files_of_their_own(photos: Path):
    (photos / "sub" / "d.PNG").symlink_to("c.PNG")
    assert places(opened(photos / "sub"), photos) == ["sub/c.PNG", "sub/d.PNG"]


def test_streams_that_differ_in_user_or_query_are_all_opened(tmp_path: Path):
    one, two, three = (
        f"rtsp://{user}@h/cam?channel={n}" for user, n in zip("aab", "122", strict=True)
    )
    (tmp_path / "list.txt").write_text(f"{one}\n{two}\n")
    found = opened(one, two, tmp_path / "list.txt", three, one, "rtsp://h/other", 0, 0)
    shown = ["rtsp://h/cam", "rtsp://h/cam (2)", "rtsp://h/cam (3)", "rtsp://h/other", "camera 0"]
    assert [feed.place for feed in found] == shown
    assert [feed.address for feed in found] == [one, two, three, "rtsp://h/other", "camera 0"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("missing.jpg", "no such file or folder"),
        ("missing", "no such file or folder"),
        ("*.webp", "no image or video matches"),
        ("empty", "no image or video found"),
        ("notes.md", "neither an image nor a video nor a list"),
        ("empty.txt", "the list is empty"),
        ("broken.jpg", "a link to nothing"),
        ("x\0y", "cannot be the path"),
    ],
)
def test_a_source_that_holds_nothing_is_one_line(photos: Path, text: str, said: str):
    (photos / "empty").mkdir()
    (photos / "empty.txt").write_text("\n\n")
    (photos / "broken.jpg").symlink_to("nowhere.jpg")
    with pytest.raises(UserError, match=said):
        opened(photos / text)


@pytest.mark.parametrize("text", ["ftp://host/a.jpg", "file:///etc/passwd", "concat://a"])
def test_other_schemes_are_refused(text: str):
    with pytest.raises(UserError, match="streams begin with rtsp://"):
        opened(text)


@pytest.mark.parametrize("text", ["100", "99999999999999999999"])
def test_a_camera_has_a_small_number(text: str):
    with pytest.raises(UserError, match="from 0 to 99"):
        opened(text)


@pytest.mark.parametrize("text", ["http://", "rtsp://[::1/x"])
def test_an_address_needs_a_host(text: str):
    with pytest.raises(UserError, match="names no host"):
        opened(text)


def test_passwords_and_tokens_are_not_shown():
    assert (
        without_password("rtsp://me:p@ss@cam.local:554/ch1?token=x") == "rtsp://cam.local:554/ch1"
    )


def test_frames_are_upright_rgb_bytes(tmp_path: Path):
    red = picture(40, 30, (0, 0, 20, 30))  # the left half
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise: the left half becomes the upper one
    Image.fromarray(red).save(tmp_path / "turned.png", exif=exif)
    cv2.imwrite(str(tmp_path / "deep.png"), red[..., ::-1].astype(np.uint16) * 257)
    Image.fromarray(np.dstack((red, np.full((30, 40), 128, np.uint8)))).save(tmp_path / "alpha.png")
    Image.new("L", (40, 30), 200).save(tmp_path / "grey.png")
    frames = {Path(f.place).stem: frame.pixels for f, frame in frames_of(opened(tmp_path))}
    assert {f.dtype for f in frames.values()} == {np.dtype(np.uint8)}
    assert frames["turned"].shape == (40, 30, 3) and frames["grey"].shape == (30, 40, 3)
    assert frames["turned"][:20].reshape(-1, 3).tolist() == [[255, 0, 0]] * 600
    assert np.array_equal(frames["deep"], red) and np.array_equal(frames["alpha"], red)
    assert (frames["grey"] == 200).all()


def test_what_cannot_be_read_is_said_counted_and_left_out(photos: Path, warnings: list[str]):
    whole = (photos / "a.jpg").read_bytes()
    (photos / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (photos / "text.png").write_text("no picture")
    (photos / "zero.bmp").write_bytes(b"")
    (photos / "cut.mp4").write_bytes((photos / "v.mp4").read_bytes()[:500])
    os.mkfifo(photos / "pipe.jpg")
    feeds = opened(photos)
    read = [Path(feed.place).name for feed, _ in frames_of(feeds)]
    assert read == ["a.jpg", "b.png", "c.PNG", "v.mp4", "v.mp4", "v.mp4"]
    lost = {Path(feed.place).name for feed in feeds if feed.lost}
    assert lost == {"cut.jpg", "text.png", "zero.bmp", "cut.mp4", "pipe.jpg"}
    assert len(warnings) == 5 and all(line.startswith("left out: ") for line in warnings)
    assert all(line.count("\n") == 0 for line in warnings)


def test_a_missing_line_of_a_list_is_left_out(photos: Path, warnings: list[str]):
    (photos / "list.txt").write_text("a.jpg\nnowhere.png\nnowhere.mp4\n")
    assert len(list(frames_of(opened(photos / "list.txt")))) == 1
    assert [line.endswith("no such file") for line in warnings] == [True, True]


@pytest.mark.parametrize(("suffix", "codec"), [("mp4", "mp4v"), ("avi", "MJPG"), ("webm", "VP80")])
def test_videos_give_all_frames_in_their_order(tmp_path: Path, suffix: str, codec: str):
    (feed,) = opened(write_video(tmp_path / f"v.{suffix}", 12, 20.0, codec))
    assert feed.count() == 12
    frames = list(feed.frames())
    assert [frame.number for frame in frames] == list(range(1, 13)) and feed.fps == 20
    for frame in frames:
        left = np.flatnonzero(frame.pixels[32, :, 0] > 170)[0]
        assert abs(left - 4 * (frame.number - 1)) <= 2
    assert feed.lost == 0


def test_gif_is_a_video(tmp_path: Path):
    images = [Image.new("RGB", (32, 32), (40 * i, 0, 0)) for i in range(5)]
    images[0].save(tmp_path / "a.gif", save_all=True, append_images=images[1:], duration=100)
    (feed,) = opened(tmp_path / "a.gif")
    assert len(list(feed.frames())) == 5 and feed.fps == 10


@pytest.mark.parametrize(("stride", "numbers"), [(1, range(1, 11)), (3, (1, 4, 7, 10)), (99, (1,))])
def test_stride_takes_every_nth_frame_and_keeps_the_time(tmp_path: Path, stride: int, numbers):
    file = write_video(tmp_path / "v.mp4", frames=10, fps=30)
    (feed,) = opened(file, options=SourceOptions(vid_stride=stride))
    assert feed.count() == len(numbers)
    assert [frame.number for frame in feed.frames()] == list(numbers)
    assert feed.fps == pytest.approx(30 / stride)


def test_a_video_that_lacks_frames_says_how_many(tmp_path: Path, warnings: list[str]):
    file = write_video(tmp_path / "v.avi", 20, codec="MJPG")
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    (feed,) = opened(file)
    frames = list(feed.frames())
    assert 0 < len(frames) < 20 and feed.lost == 20 - len(frames)
    assert warnings == [f"left out: {file}: {feed.lost} of 20 frames cannot be decoded"]


def test_a_video_without_frames_is_refused(tmp_path: Path):
    file = write_video(tmp_path / "v.avi", 0, codec="MJPG")
    with pytest.raises(UserError, match="no frame that can be decoded|cannot be read as a video"):
        list(opened(file)[0].frames())


def camera(monkeypatch: pytest.MonkeyPatch, fake: FakeCamera, **options) -> LiveFeed:
    monkeypatch.setattr(webcam, "open_camera", lambda number: fake)
    (feed,) = opened("0", options=SourceOptions(**options))
    assert isinstance(feed, LiveFeed)
    return feed


def test_a_camera_gives_its_newest_frame_and_ends(monkeypatch: pytest.MonkeyPatch):
    fake = FakeCamera(30, fps=15)
    feed = camera(monkeypatch, fake)
    numbers = []
    for frame in feed.frames():
        numbers.append(frame.number)
        assert (frame.pixels == frame.number).all()
        time.sleep(0.03)  # slower than the camera
    assert numbers == sorted(set(numbers)) and numbers[-1] == 30
    assert feed.lost == 1  # frame 2 cannot be decoded
    assert len(numbers) + feed.passed_over + feed.lost == 30 and feed.passed_over > 0
    assert feed.fps == 15 and fake.released


def test_a_camera_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch, warnings: list[str]):
    fake = FakeCamera(3, then="hang")
    feed = camera(monkeypatch, fake, silence=0.6)
    start = time.monotonic()
    assert list(feed.frames())[-1].number == 3
    assert 0.5 < time.monotonic() - start < 15
    assert warnings == ["camera 0: no frame for 0.6 s, given up"]
    fake.asleep.set()


@pytest.mark.parametrize(
    ("fake", "said"),
    [
        (FakeCamera(0, opened=False), "camera 0: cannot be opened"),
        (FakeCamera(0), "camera 0: ended without a frame"),
        (FakeCamera(0, then="error"), "camera 0: cannot be read: .*cable"),
    ],
)
def test_a_camera_without_a_frame_is_an_error(monkeypatch, fake: FakeCamera, said: str):
    with pytest.raises(UserError, match=said):
        list(camera(monkeypatch, fake).frames())


def test_a_reader_that_is_not_needed_any_more_ends(monkeypatch: pytest.MonkeyPatch):
    fake = FakeCamera(100_000)
    frames = camera(monkeypatch, fake).frames()
    next(frames)
    frames.close()  # type: ignore[attr-defined]
    deadline = time.monotonic() + 10
    while not fake.released and time.monotonic() < deadline:
        time.sleep(0.01)
    assert fake.released
    assert not [t for t in threading.enumerate() if t.name == "reader of camera 0"]


def test_several_live_feeds_take_turns_and_one_bad_one_is_left_out(
    monkeypatch: pytest.MonkeyPatch, warnings: list[str]
):
    fakes = {0: FakeCamera(8), 1: FakeCamera(8), 2: FakeCamera(0, opened=False)}
    monkeypatch.setattr(webcam, "open_camera", fakes.__getitem__)
    feeds = opened("0", "1", "2")
    order = [feed.place for feed, _ in frames_of(feeds)]
    assert {"camera 0", "camera 1"} == set(order)
    assert warnings == ["left out: camera 2: cannot be opened"] and feeds[2].lost == 1


def test_an_http_stream_is_read_to_its_end():
    with mjpeg_server(10) as address:
        (feed,) = opened(address)
        frames = list(feed.frames())
    assert feed.place == address and 0 < len(frames) <= 10
    last = frames[-1]
    assert last.pixels.shape == (64, 96, 3)
    left = np.flatnonzero(last.pixels[32, :, 0] > 170)[0]
    assert abs(left - (last.number - 1)) <= 2


def test_an_http_stream_that_falls_silent_is_given_up(warnings: list[str]):
    with mjpeg_server(10, hang=True) as address:
        (feed,) = opened(address, options=SourceOptions(silence=2))
        start = time.monotonic()
        assert list(feed.frames())
        assert time.monotonic() - start < 30


def test_a_stream_that_nobody_serves_is_one_line(warnings: list[str]):
    feeds = opened("http://127.0.0.1:9/x", options=SourceOptions(silence=10))
    assert list(frames_of(feeds)) == []
    assert warnings == ["left out: http://127.0.0.1:9/x: cannot be opened"]
