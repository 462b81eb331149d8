"""Compare the time of a training step on YOLOv5n with and without each penalty.

    python benchmarks/sparse_speed.py [rounds]

Torch-Pruning's own penalties, loops over channels, are timed too. A step is forward, detection
loss, backward, clip, optimizer and EMA on one fixed batch. The penalties and the library's
`regularize` are timed by themselves after a backward, in turns, so that whatever else the machine
does hits all alike.
"""

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import torch_pruning as tp

from models import Model, build_model
from prune_methods import ChannelIndex, find_groups
from prune_methods.groups.graph import raw_outputs
from prune_methods.sparsity.penalties import PENALTIES, make_penalty
from prune_methods.sparsity.slice_penalties import ALPHA
from utils.config import load_hyp
from utils.engine.ema import ModelEMA
from utils.engine.optim import build_optimizer
from utils.engine.trainer import MAX_GRAD_NORM
from utils.losses import build_loss

IMGSZ, BATCH, REG = 160, 16, 5e-4


def training_step(model: Model) -> Callable[[], None]:
    """Return a function that runs a step without a penalty; the gradients stay in place."""
    hyp = load_hyp("scratch-low")
    loss = build_loss(model, hyp.scaled(3, model.nc, IMGSZ))
    optimizer = build_optimizer(model, "SGD", hyp, BATCH)
    ema = ModelEMA(model)
    images = torch.rand(BATCH, 3, IMGSZ, IMGSZ)
    boxes = torch.rand(4 * BATCH, 4) * 0.3 + 0.3
    image = torch.arange(BATCH).repeat(4)[:, None]
    targets = torch.cat((image, torch.zeros(4 * BATCH, 1), boxes), 1)

    def step() -> None:
        optimizer.zero_grad()
        loss(model.train()(images), targets)[0].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
        optimizer.step()
        ema.update()

    return step


def our_penalties(model: Model) -> dict[str, Callable[[], None]]:
    """Return a call of `add` for each method of ours."""
    found, work = find_groups(model), {}
    for name in PENALTIES:
        penalty = make_penalty(name, ChannelIndex(model, found))
        penalty.bind(model)
        work[name] = lambda penalty=penalty: penalty.add(REG)
    return work


def library_penalties(model: Model) -> dict[str, Callable[[], None]]:
    """Return a call of the library's `regularize` for each method, by our names."""

    def pruner(kind: type, importance: tp.importance.Importance, **more: float) -> Any:
        return kind(
            model,
            (torch.rand(1, 3, 64, 64),),
            importance,
            ignored_layers=list(model.head.get_submodule("m").children()),
            output_transform=raw_outputs,
            in_channel_groups={},
            out_channel_groups={},
            num_heads={},
            reg=REG,
            **more,
        )

    magnitude = tp.importance.GroupMagnitudeImportance(p=2, normalizer="max")
    slim = pruner(tp.pruner.BNScalePruner, tp.importance.BNScaleImportance())
    group_slim = pruner(
        tp.pruner.BNScalePruner, tp.importance.BNScaleImportance(), group_lasso=True
    )
    group_sl = pruner(tp.pruner.GroupNormPruner, magnitude)
    group_reg = pruner(tp.pruner.GrowingRegPruner, magnitude, delta_reg=1e-4)
    return {
        "slim": lambda: slim.regularize(model),
        "group_slim": lambda: group_slim.regularize(model),
        "group_sl": lambda: group_sl.regularize(model, alpha=2**ALPHA),
        "group_reg": lambda: group_reg.regularize(model),
    }


def milliseconds(work: Callable[[], None]) -> float:
    """Return the CPU seconds of this process for one call."""
    start = time.process_time()
    work()
    return 1000 * (time.process_time() - start)


def main() -> None:
    """Print a line for each method: medians over the rounds."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = build_model("yolov5n", nc=1)
    step, ours, theirs = training_step(model), our_penalties(model), library_penalties(model)
    work = (
        {("step", ""): step}
        | {("ours", n): w for n, w in ours.items()}
        | {("library", n): w for n, w in theirs.items()}
    )
    times: dict[tuple[str, str], list[float]] = {key: [] for key in work}
    for number in range(1 + (int(sys.argv[1]) if len(sys.argv) > 1 else 10)):
        for key, call in work.items():
            spent = milliseconds(call)
            if number:  # the first round warms up
                times[key].append(spent)
    median = {key: statistics.median(values) for key, values in times.items()}
    plain = median["step", ""]
    print(f"yolov5n, {IMGSZ} px, batch {BATCH}, 1 thread: plain step {plain:.0f} ms of CPU time")
    for name in ours:
        mine, library = median["ours", name], median["library", name]
        print(
            f"{name:<11} {mine:6.1f} ms, +{mine / plain:6.1%}   library {library:7.1f} ms,"
            f" +{library / plain:7.1%}   (aim: 15%)"
        )


if __name__ == "__main__":
    main()
