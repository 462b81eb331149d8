"""Detect objects in images, folders, videos, streams and cameras with a model of any format.

python detect.py --weights runs/train/exp/weights/best.pt --source photos
"""

from utils.cli import run_script
from utils.options.detect import DetectOptions


def main(opt: DetectOptions) -> None:
    """Check the options, then hand over to the recipe, which imports torch."""
    opt.check()
    from recipes.detect.run import detect

    detect(opt)


if __name__ == "__main__":
    run_script(DetectOptions, main, __doc__)
