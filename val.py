"""Validate a detector: precision, recall, mAP as YOLOv5 reports them, COCO's metric, speed,
pictures.

python val.py --weights runs/train/exp/weights/best.pt --data demo
"""

from utils.cli import run_script
from utils.options.val import ValOptions


def main(opt: ValOptions) -> None:
    """Check the options, then hand over to the recipe, which imports torch."""
    opt.check()
    from recipes.val import val

    val(opt)


if __name__ == "__main__":
    run_script(ValOptions, main, __doc__)
