"""Export a detector: TorchScript, ONNX, OpenVINO, ncnn; every file is verified before it takes its
name.

python export.py --weights runs/train/exp/weights/best.pt --include onnx openvino
"""

from utils.cli import run_script
from utils.options.export import ExportOptions


def main(opt: ExportOptions) -> None:
    """Check the options, then hand over to the recipe, which imports torch."""
    opt.check()
    from recipes.export import export

    export(opt)


if __name__ == "__main__":
    run_script(ExportOptions, main, __doc__)
