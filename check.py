"""Check a model YAML row by row: shapes, parameters, GFLOPs, what pruning can cut, and where an
error is.

python -m models.check my.yaml
"""

from utils.cli import run_script
from utils.options.check import CheckOptions


def main(opt: CheckOptions) -> None:
    """Hand over to the recipe; torch is imported only now."""
    from recipes.check import check

    check(opt)


if __name__ == "__main__":
    run_script(CheckOptions, main, __doc__)
