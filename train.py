"""Train a detector: `python train.py --cfg yolov5n --data demo --hyp demo`.

See docs/training.md.
"""

from utils.cli import run_script
from utils.options.train import TrainOptions


def main(opt: TrainOptions) -> None:
    """Check the options, then hand over to the recipe, which imports torch."""
    opt.check()
    from recipes.train import train

    train(opt)


if __name__ == "__main__":
    run_script(TrainOptions, main, "Train a detector.")
