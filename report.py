"""Compare runs: parameters, GFLOPs, size, accuracy and latency, each with its change against the
first.

python report.py runs/train/exp runs/prune/exp
"""

from utils.cli import run_script
from utils.options.report import ReportOptions


def main(opt: ReportOptions) -> None:
    """Check the options, then hand over to the recipe, which imports torch."""
    opt.check()
    from recipes.report import report

    report(opt)


if __name__ == "__main__":
    run_script(ReportOptions, main, __doc__)
