"""Check a data set: labels, sizes, classes, and images that are there twice, in train and val too.

python -m data.check my.yaml
"""

from utils.cli import run_script
from utils.options.data.check import DataCheckOptions


def main(opt: DataCheckOptions) -> None:
    """Check the options and the data; exit with 0 for clean data, 1 for warnings, 2 for errors."""
    opt.check()
    from data.check.run import check

    if code := check(opt):
        raise SystemExit(code)


if __name__ == "__main__":
    run_script(DataCheckOptions, main, __doc__)
