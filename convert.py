"""Convert a data set with boxes in another format to YOLO's texts.

python convert.py visdrone downloads/VisDrone --out datasets/visdrone
"""

from utils.cli import run_script
from utils.options.data.convert import ConvertOptions


def main(opt: ConvertOptions) -> None:
    """Check the options, then hand over to the recipe, which imports numpy and OpenCV."""
    opt.check()
    from recipes.convert import convert

    convert(opt)


if __name__ == "__main__":
    run_script(ConvertOptions, main, __doc__)
