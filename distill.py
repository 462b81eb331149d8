"""Train a detector that also learns from a larger one.

python distill.py --cfg yolov5n --teacher runs/train/exp/weights/best.pt --data demo --hyp demo
--feature-loss cwd

See docs/distillation.md.
"""

from utils.cli import run_script
from utils.options.distill import DistillOptions


def main(opt: DistillOptions) -> None:
    """Import the work only now, so that `--help` and wrong options answer at once."""
    opt.check()
    from recipes.distill import distill

    distill(opt)


if __name__ == "__main__":
    run_script(DistillOptions, main, __doc__)
