"""A detector that finds red rectangles, and videos and streams for the tests of detect.py."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from deploy.metadata import Metadata
from deploy.runtimes.base import Runtime
from models.heads.base import Detections

RED = (255, 0, 0)


class RedFinder(Runtime):
    """Detects the red region of an image as class 1 with a confidence of 0.9."""

    name, suffix = "red", ".red"

    def __init__(
        self, imgsz: int = 320, names: tuple[str, ...] = ("blue", "red"), stride: int = 32
    ):
        super().__init__(
            Path("red.red"), Metadata(names, (8.0,), stride, (imgsz, imgsz), dynamic=True)
        )
        self.seen: list[tuple[int, ...]] = []  # shapes of the images

    @classmethod
    def open(cls, path, device, threads):
        return cls()

    def run(self, images: Tensor) -> Detections:
        self.seen.append(tuple(images.shape))
        assert images.dtype == torch.float32 and images.min() >= 0 and images.max() <= 1
        decoded = torch.zeros(len(images), 3, 5 + self.nc)
        for number, image in enumerate(images):
            red = (image[0] > 0.6) & (image[1] < 0.3) & (image[2] < 0.3)
            rows, columns = torch.nonzero(red, as_tuple=True)
            if len(rows):
                low = torch.stack((columns.min(), rows.min()))
                high = torch.stack((columns.max(), rows.max())) + 1
                decoded[number, 0, :2], decoded[number, 0, 2:4] = (low + high) / 2, high - low
                decoded[number, 0, 4] = 0.9
                decoded[number, 0, 5 + min(1, self.nc - 1)] = 1
        return Detections(decoded, [])


def picture(width: int, height: int, box: tuple[int, int, int, int]) -> np.ndarray:
    """A grey picture, uint8 RGB, with a red rectangle at x1, y1, x2, y2."""
    pixels = np.full((height, width, 3), 90, np.uint8)
    x1, y1, x2, y2 = box
    pixels[y1:y2, x1:x2] = RED
    return pixels


def write_video(path: Path, frames: int = 12, fps: float = 25.0, codec: str = "mp4v") -> Path:
    """A video of 96 x 64 px whose red square moves right by 4 px a frame."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), fps, (96, 64))
    assert writer.isOpened()
    for number in range(frames):
        pixels = picture(96, 64, (4 * number, 16, 4 * number + 32, 48))
        writer.write(cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))
    writer.release()
    return path


def read_video(path: Path) -> tuple[list[np.ndarray], float]:
    """All frames of a video, RGB, and its frames per second."""
    video, frames = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG), []
    fps = video.get(cv2.CAP_PROP_FPS)
    while True:
        good, image = video.read()
        if not good:
            return frames, fps
        frames.append(cv2.cvtColor(image, cv2.COLOR_BGR2RGB))


@contextmanager
def mjpeg_server(frames: int, hang: bool = False, pause: float = 0.02) -> Iterator[str]:
    """Serve `frames` pictures as Motion JPEG on this machine, then end, or hang without a word."""
    done = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # noqa: N802
            self.send_response(200)
            self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
            self.end_headers()
            try:
                for number in range(frames):
                    pixels = picture(96, 64, (number, 16, number + 32, 48))
                    jpeg = cv2.imencode(".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))[1]
                    head = f"Content-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n"
                    self.wfile.write(b"--frame\r\n" + head.encode() + jpeg.tobytes() + b"\r\n")
                    time.sleep(pause)
                if hang:
                    done.wait(60)
            except OSError:
                return

        def log_message(self, *_) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/camera.mjpg"
    finally:
        done.set()
        server.shutdown()
        server.server_close()


class FakeCamera:
    """What `cv2.VideoCapture(0)` is for the reader: frames, then the end, silence or an error."""

    def __init__(self, frames: int, *, then: str = "end", opened: bool = True, fps: float = 0.0):
        self.frames, self.then, self.opened, self.fps = frames, then, opened, fps
        self.number, self.released = 0, False
        self.asleep = threading.Event()

    def isOpened(self) -> bool:  # noqa: N802
        return self.opened

    def get(self, _: int) -> float:
        return self.fps

    def grab(self) -> bool:
        self.number += 1
        if self.number <= self.frames:
            time.sleep(0.01)
            return True
        if self.then == "hang":
            self.asleep.wait(30)
        if self.then == "error":
            raise cv2.error("the cable was pulled")
        return False

    def retrieve(self) -> tuple[bool, np.ndarray]:
        return self.number != 2, np.full((64, 96, 3), min(self.number, 255), np.uint8)

    def release(self) -> None:
        self.released = True
