"""Make a trained detector smaller: cut channels to a stated speed-up, recalibrate, validate,
finetune.

python prune.py --weights runs/train/exp/weights/best.pt --data demo --method lamp --speed-up 2.0
"""

from utils.cli import run_script
from utils.options.prune import PruneOptions


def main(opt: PruneOptions) -> None:
    """Hand over to the recipe, which imports torch and checks the options."""
    from recipes.prune.run import prune

    prune(opt)


if __name__ == "__main__":
    run_script(PruneOptions, main, __doc__)
