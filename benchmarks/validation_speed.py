"""Compare the images a second of the whole evaluation with those of the bare fused network.

    python benchmarks/validation_speed.py

Both take turns on the same tensors in one process, so that the ratio is the price of NMS, matching
and metrics. The price depends on the number of detections: a network with `--weights` finds what it
has learnt; the untrained network finds hundreds of boxes in every image, the worst case.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from data.config import load_data  # noqa: E402
from data.loader import build_loader  # noqa: E402
from models import Model, build_model  # noqa: E402
from models.checkpoint import load_model  # noqa: E402
from utils.cli import run_script  # noqa: E402
from utils.evaluator import evaluate  # noqa: E402
from utils.images import unit_range  # noqa: E402
from utils.options.base import option  # noqa: E402
from utils.timing import alternate, median_ms, ratio_line  # noqa: E402


@dataclass(frozen=True)
class Options:
    """Options of the benchmark."""

    weights: str = option("", "trained checkpoint; without one an untrained --cfg")
    cfg: str = option("yolov5n", "model YAML")
    data: str = option("demo", "data YAML")
    imgsz: int = option(160, "image size")
    batch_size: int = option(16, "images a batch", "batch")
    seconds: float = option(60.0, "time to measure")
    threads: int = option(2, "torch threads")


def main(opt: Options) -> None:
    """Measure and print."""
    torch.set_num_threads(opt.threads)
    data = load_data(opt.data)
    model = load_model(opt.weights).fuse() if opt.weights else talkative(opt.cfg, data.nc)
    batches = list(build_loader(data, "val", imgsz=opt.imgsz, batch_size=opt.batch_size))
    tensors = [unit_range(batch.images) for batch in batches]
    speeds: list[dict[str, float]] = []
    found: list[int] = []

    def bare() -> None:
        with torch.no_grad():
            for images in tensors:
                model(images)

    def count(_: object, detections: list[torch.Tensor]) -> None:
        found.extend(len(boxes) for boxes in detections)

    def whole() -> None:
        found.clear()
        result = evaluate(model, batches, names=data.names, progress=False, on_batch=count)
        speeds.append(result.speed)

    times = alternate({"bare forward": bare, "evaluate": whole}, opt.seconds)
    images = sum(len(images) for images in tensors)
    print(
        f"{opt.weights or opt.cfg}, {opt.imgsz} px, batch {opt.batch_size}, CPU, {opt.threads}"
        " threads"
    )
    for name, seconds in times.items():
        print(f"{name}: {1000 * images / median_ms(seconds):.0f} images/s")
    parts = ", ".join(
        f"{name} {sum(speed[name] for speed in speeds) / len(speeds):.2f}" for name in speeds[0]
    )
    print(f"inside evaluate, ms an image: {parts}; {sum(found) / images:.0f} detections an image")
    pairs = zip(times["bare forward"], times["evaluate"], strict=True)
    ratios = [alone / everything for alone, everything in pairs]
    print(ratio_line("images/s of evaluate over the bare forward's", ratios))


def talkative(cfg: str, nc: int) -> Model:
    """Return an untrained deployed model whose predictions all have a confidence near a quarter."""
    torch.manual_seed(0)
    model = build_model(cfg, nc=nc)
    with torch.no_grad():
        for name, parameter in model.head.named_parameters():
            if name.startswith("m.") and name.endswith("bias"):
                parameter.zero_()
    return model.fuse()


if __name__ == "__main__":
    run_script(Options, main, __doc__ or "")
