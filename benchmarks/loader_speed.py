"""Measure the cost of a training image: CPU milliseconds to read, augment and batch it.

python benchmarks/loader_speed.py [--imgsz 160] [--data demo]
"""

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from data.config import load_data
from data.loader import build_loader
from utils.config import Hyp, load_hyp

SETTINGS: dict[str, tuple[Hyp | str, str | None]] = {
    "warp and colours": (Hyp(mosaic=0), "ram"),
    "mosaic (scratch-low)": ("scratch-low", "ram"),
    "mosaic, mixup .15 (scratch-p5)": ("scratch-p5", "ram"),
    "demo.yaml": ("demo", "ram"),
    "mosaic, no cache": ("scratch-low", None),
}


def main() -> None:
    """Print the CPU milliseconds an image of each setting: medians over epochs, in turns."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--imgsz", type=int, default=160)
    parser.add_argument("--data", default="demo")
    parser.add_argument("--epochs", type=int, default=5)
    opt = parser.parse_args()
    data = load_data(opt.data)
    loaders = {
        name: build_loader(
            data,
            "train",
            imgsz=opt.imgsz,
            batch_size=16,
            hyp=load_hyp(hyp),
            augment=True,
            cache=cache,
        )
        for name, (hyp, cache) in SETTINGS.items()
    }
    times: dict[str, list[float]] = {name: [] for name in loaders}
    for epoch in range(opt.epochs):
        for name, loader in loaders.items():
            loader.set_epoch(epoch)
            start = time.process_time()
            for _ in loader:
                pass
            times[name].append((time.process_time() - start) / len(loader.dataset) * 1e3)
    print(f"{opt.data}, {opt.imgsz} px, batch 16, one process, median of {opt.epochs} epochs")
    for name, values in times.items():
        print(f"  {name:32s} {sorted(values)[len(values) // 2]:.2f} ms an image")


if __name__ == "__main__":
    main()
