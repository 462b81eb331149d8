"""Time the first scan of a data set: CPU seconds for many label files, and for one large file.

python benchmarks/label_scan_speed.py /path/to/images/train
"""

import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from data.cache import _look_at_all
from data.files import label_path, list_images, stamp
from data.labels import parse_labels

ROWS = (1000, 4000, 10_000)


def main() -> None:
    """Print the times; the cache is neither read nor written."""
    rng = np.random.default_rng(0)
    for rows in ROWS:
        boxes = rng.uniform(0.2, 0.4, (rows, 4)).tolist()
        text = "".join("0 {:.6f} {:.6f} {:.6f} {:.6f}\n".format(*box) for box in boxes)
        start = time.process_time()
        parse_labels(text, 1)
        print(f"{rows} boxes in one file: {(time.process_time() - start) * 1e3:.1f} ms")
    if len(sys.argv) > 1:
        images = list_images([Path(sys.argv[1])])
        start = time.process_time()
        stamps = [stamp(image) + stamp(label_path(image)) for image in images]
        _look_at_all(images, stamps, nc=1000)
        print(f"{len(images)} images and their labels: {time.process_time() - start:.1f} CPU s")


if __name__ == "__main__":
    main()
