"""Check a model YAML row by row: shapes, parameters, GFLOPs, what pruning can cut, and where an
error is.

python -m models.check my.yaml
"""

from utils.cli import run_script
from utils.options.check import CheckOptions


def main(opt: CheckOptions) -> None:
    """Check the options, then hand over to the recipe, which imports torch."""
    opt.check()
    from recipes.check import check

    check(opt)


if __name__ == "__main__":
    run_script(CheckOptions, main, __doc__)
