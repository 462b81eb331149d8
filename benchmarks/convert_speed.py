"""Measure how many images a second convert.py converts, for each format.

python benchmarks/convert_speed.py --images 20000 --objects 20
"""

import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from recipes.convert import convert
from utils.cli import run_script
from utils.options.base import Options, option
from utils.options.data.convert import ConvertOptions

WIDTH, HEIGHT = 960, 540
OBJECT = (
    "<object><name>car</name><pose>Left</pose><truncated>0</truncated><difficult>0</difficult>"
    "<bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"
)


@dataclass(frozen=True)
class SpeedOptions(Options):
    """Options of the measurement."""

    images: int = option(20_000, "images of each set", group="run", least=1)
    objects: int = option(20, "objects of each image", group="run", least=0)


def write_images(folder: Path, count: int) -> list[str]:
    """Write so many names of one JPEG; return the stems."""
    folder.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 255, (HEIGHT // 8, WIDTH // 8, 3), np.uint8)
    _, encoded = cv2.imencode(".jpg", cv2.resize(pixels, (WIDTH, HEIGHT)))
    stems = [f"{number:07d}" for number in range(count)]
    for stem in stems:
        (folder / f"{stem}.jpg").write_bytes(encoded.tobytes())
    return stems


def boxes(count: int, seed: int) -> np.ndarray:
    """Return boxes of left, top, width, height in whole pixels, (count, 4)."""
    rng = np.random.default_rng(seed)
    corners = rng.integers(1, [WIDTH - 101, HEIGHT - 101], (count, 2))
    return np.column_stack([corners, rng.integers(1, 100, (count, 2))])


def visdrone(root: Path, opt: SpeedOptions) -> None:
    """Write a set in the layout of VisDrone-DET."""
    (root / "annotations").mkdir()
    for seed, stem in enumerate(write_images(root / "images", opt.images)):
        lines = [",".join(map(str, [*box, 1, 4, 0, 0])) for box in boxes(opt.objects, seed)]
        (root / "annotations" / f"{stem}.txt").write_text("\n".join(lines))


def crowdhuman(root: Path, opt: SpeedOptions) -> None:
    """Write a set in the layout of CrowdHuman."""
    with (root / "annotation_train.odgt").open("w") as file:
        for seed, stem in enumerate(write_images(root / "Images", opt.images)):
            people = [
                {"tag": "person", "fbox": box, "vbox": box, "hbox": box}
                | {"head_attr": {"ignore": 0, "occ": 0}, "extra": {"box_id": 0, "occ": 0}}
                for box in boxes(opt.objects, seed).tolist()
            ]
            file.write(json.dumps({"ID": stem, "gtboxes": people}) + "\n")


def voc(root: Path, opt: SpeedOptions) -> None:
    """Write a set in the layout of Pascal VOC."""
    (root / "Annotations").mkdir()
    size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>"
    for seed, stem in enumerate(write_images(root / "JPEGImages", opt.images)):
        found = boxes(opt.objects, seed)
        found[:, 2:] += found[:, :2]
        text = f"<annotation>{size}{''.join(OBJECT.format(*box) for box in found)}</annotation>"
        (root / "Annotations" / f"{stem}.xml").write_text(text)


def coco(root: Path, opt: SpeedOptions) -> None:
    """Write a set in the layout of COCO, each object with an outline of 30 points."""
    outline = np.random.default_rng(0).uniform(0, 900, 60).round(2).tolist()
    stems = write_images(root / "train", opt.images)
    images = [
        {"id": number, "file_name": f"{stem}.jpg", "width": WIDTH, "height": HEIGHT}
        for number, stem in enumerate(stems)
    ]
    objects = [
        {"id": number * opt.objects + i, "image_id": number, "category_id": 3, "iscrowd": 0}
        | {"bbox": box, "area": 1.0, "segmentation": [outline]}
        for number in range(len(stems))
        for i, box in enumerate(boxes(opt.objects, number).tolist())
    ]
    content = {"images": images, "annotations": objects, "categories": [{"id": 3, "name": "car"}]}
    (root / "instances_train.json").write_text(json.dumps(content))


FORMATS: dict[str, Callable[[Path, SpeedOptions], None]] = {
    f.__name__: f for f in (visdrone, crowdhuman, voc, coco)
}


def cpu_seconds() -> float:
    """Return CPU seconds of this process and of those that it started and that have ended."""
    found = os.times()
    return found.user + found.system + found.children_user + found.children_system


def main(opt: SpeedOptions) -> None:
    """Print wall and CPU seconds of each format, and images a second."""
    opt.check()
    for name, write in FORMATS.items():
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / "source"
            source.mkdir()
            write(source, opt)
            os.sync()
            wall, before = time.perf_counter(), cpu_seconds()
            convert(ConvertOptions(format=name, source=str(source), out=f"{folder}/out"))
            wall, cpu = time.perf_counter() - wall, cpu_seconds() - before
        print(
            f"{name}: {opt.images / wall:.0f} images/s ({wall:.1f} s); {opt.images / cpu:.0f}"
            f" images/CPU s ({cpu:.1f} CPU s)"
        )


if __name__ == "__main__":
    run_script(SpeedOptions, main, __doc__)
