"""Train a detector that also learns from a larger one.

python distill.py --cfg yolov5n --teacher runs/train/exp/weights/best.pt --data demo --hyp demo
--feature-loss cwd

See docs/distillation.md.
"""

from utils.cli import run_script
from utils.options.distill import DistillOptions


def main(opt: DistillOptions) -> None:
    """Check the options, then hand over to the recipe, which imports torch."""
    opt.check()
    from recipes.distill import distill

    distill(opt)


if __name__ == "__main__":
    run_script(DistillOptions, main, __doc__)
