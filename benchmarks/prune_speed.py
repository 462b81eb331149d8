"""Measure the CPU time of cutting YOLOv7-tiny to 2x with LAMP.

Our masks and one cut are compared with Torch-Pruning's own loop of 200 steps.

python benchmarks/prune_speed.py
"""

import copy
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import torch_pruning as tp

from models import Model, build_model
from prune_methods import PRUNERS, Prunable, Target, find_groups
from prune_methods.groups.graph import raw_outputs
from utils.profiling import count_macs

TARGET = 2.0


def ours(model: Model) -> tuple[Any, int]:
    """Graph, masks and cut; gives the pruned model and the steps."""
    found = find_groups(model)
    plan = Prunable(model, found).search(PRUNERS["lamp"](), Target(TARGET, imgsz=64))
    return Prunable(model, found).cut(plan.masks), len(plan.steps)


def library(model: Model) -> tuple[Any, int]:
    """The library's loop: prune 0.5 %, count, until the ratio of its own counter is met."""
    x: Any = (torch.rand(1, 3, 64, 64),)
    pruner = tp.pruner.BasePruner(
        model,
        x,
        importance=tp.importance.LAMPImportance(p=2),
        global_pruning=True,
        pruning_ratio=1.0,
        iterative_steps=200,
        ignored_layers=list(model.head.get_submodule("m").children()),
        output_transform=raw_outputs,
        in_channel_groups={},
        out_channel_groups={},
        num_heads={},
    )
    base = tp.utils.count_ops_and_params(model, x)[0]
    for step in range(1, 201):
        pruner.step()
        if base / tp.utils.count_ops_and_params(model, x)[0] >= TARGET:
            return model, step
    return model, 200


def cpu_seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    """Return the CPU seconds of this process for one call, and the call's result."""
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


def main() -> None:
    """Run ours, the library's and ours again, and compare."""
    torch.set_num_threads(2)
    torch.manual_seed(0)
    model = build_model("yolov7-tiny", nc=1)
    base = count_macs(model.fuse())
    ours(copy.deepcopy(model))  # what torch and the library import on first use belongs to neither
    times = []
    for name, work in (("ours", ours), ("library", library), ("ours again", ours)):
        seconds, (pruned, steps) = cpu_seconds(lambda work=work: work(copy.deepcopy(model)))
        reached = base / count_macs(pruned.eval().fuse())
        parameters = sum(p.numel() for p in pruned.parameters())
        print(
            f"{name:<11} {seconds:7.2f} CPU s  {steps:3d} steps  {reached:.4f}x  {parameters:,}"
            " parameters"
        )
        times.append(seconds)
    print(
        f"the library takes {2 * times[1] / (times[0] + times[2]):.1f} times our CPU time (aim: at"
        " least 15)"
    )


if __name__ == "__main__":
    main()
