"""Seconds until something happens: `train.py --help` as a process, and build + fuse + info of
YOLOv7-tiny after import.

`python benchmarks/startup.py`
"""

import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REPEATS = 5
INFO = """
import time
from models import build_model
start = time.perf_counter()
model = build_model("yolov7-tiny")
model.fuse()
model.info()
print(time.perf_counter() - start)
"""


def help_seconds() -> float:
    """Wall time of one `train.py --help`."""
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, str(ROOT / "train.py"), "--help"], check=True, stdout=subprocess.DEVNULL
    )
    return time.perf_counter() - start


def info_seconds() -> float:
    """Build, fuse and info in a fresh process, imports not counted."""
    done = subprocess.run(
        [sys.executable, "-c", INFO], check=True, capture_output=True, text=True, cwd=ROOT
    )
    return float(done.stdout.split()[-1])


def main() -> None:
    """Print the medians and the best; the best is what the machine does when nothing else runs."""
    for name, measured in (
        ("train.py --help", help_seconds),
        ("build + fuse + info of yolov7-tiny", info_seconds),
    ):
        seconds = [measured() for _ in range(REPEATS)]
        print(
            f"{name}: median {statistics.median(seconds):.2f} s, best {min(seconds):.2f} s of"
            f" {REPEATS}"
        )


if __name__ == "__main__":
    main()
