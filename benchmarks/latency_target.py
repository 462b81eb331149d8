"""Compare `--target latency` with `--target macs` at the same speed-up: time and MACs.

All models run in turn.

python benchmarks/latency_target.py --models yolov5n yolov7-tiny --imgsz 160
"""

import argparse
import sys
from pathlib import Path
from typing import Any, cast

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


import torch

from models import Model, build_model
from prune_methods import PRUNERS, Limits, Plan, Prunable, Target
from recipes.prune.latency import LEAST_ROUNDS, latency_plan, latency_setup, time_model, timing_of
from recipes.report import forward_of
from utils.log import LOGGER
from utils.options.prune import PruneOptions
from utils.timing import alternate


def options() -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--models",
        nargs="+",
        default=["yolov5n", "yolov7-tiny"],
        help="untrained: their time is the same",
    )
    parser.add_argument("--imgsz", type=int, default=160)
    parser.add_argument("--batch", type=int, default=0, help="images; 0 as prune.py")
    parser.add_argument("--speed-up", type=float, default=1.5)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measuring")
    return parser.parse_args()


def rows(name: str, args: argparse.Namespace) -> None:
    """Cut one model both ways and print a line for each way."""
    torch.manual_seed(0)
    model = build_model(name, nc=3)
    prunable, lamp = Prunable.of(model), PRUNERS["lamp"]
    opt = PruneOptions(
        imgsz=args.imgsz,
        speed_up=args.speed_up,
        latency_batch=args.batch,
        latency_seconds=args.seconds,
    )
    setting = latency_setup(model, opt)
    seconds = time_model(prunable, Limits(), setting)

    def search(goal: float) -> Plan:
        return prunable.search(lamp(), Target(goal, seconds))

    plans: dict[str, Any] = {
        "latency": latency_plan(prunable, search, opt),
        "macs": prunable.search(lamp(), Target(args.speed_up)),
    }
    cut = {target: cast(Model, prunable.cut(plan.masks)) for target, plan in plans.items()}
    work = {
        n: forward_of(m.fuse(), args.imgsz, setting.batch, False, setting.device)
        for n, m in {"base": model, **cut}.items()
    }
    times = alternate(work, args.seconds, LEAST_ROUNDS, setting.device)
    for target, plan in plans.items():
        timing = timing_of(times["base"], times[target])
        print(
            f"{name:<12} --target {target:<8} --speed-up {args.speed_up:g}: {plan.speed_up:.2f}x"
            f" fewer MACs, time {timing}"
        )
    print(f"{'':<12} {setting}")


def main() -> None:
    """Cut all models, one after the other."""
    args = options()
    LOGGER.info(f"lamp; {args.seconds:g} s for each measuring")
    for name in args.models:
        rows(name, args)


if __name__ == "__main__":
    main()
