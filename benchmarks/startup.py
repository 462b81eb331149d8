"""Measure start-up: `train.py --help` as a process; build, fuse and info of YOLOv7-tiny.

python benchmarks/startup.py
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
    """Return the wall time of one `train.py --help` in seconds."""
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, str(ROOT / "train.py"), "--help"], check=True, stdout=subprocess.DEVNULL
    )
    return time.perf_counter() - start


def info_seconds() -> float:
    """Return the seconds of build, fuse and info in a fresh process, without imports."""
    done = subprocess.run(
        [sys.executable, "-c", INFO], check=True, capture_output=True, text=True, cwd=ROOT
    )
    return float(done.stdout.split()[-1])


def main() -> None:
    """Print median and best times; the best is the time of a machine that does nothing else."""
    measurements = {
        "train.py --help": help_seconds,
        "build + fuse + info of yolov7-tiny": info_seconds,
    }
    for name, measure in measurements.items():
        seconds = [measure() for _ in range(REPEATS)]
        median, best = statistics.median(seconds), min(seconds)
        print(f"{name}: median {median:.2f} s, best {best:.2f} s of {REPEATS}")


if __name__ == "__main__":
    main()
