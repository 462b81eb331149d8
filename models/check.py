"""Run check.py for `python -m models.check my.yaml`.

The script stands outside of this package, because the package knows nothing of pruning.
"""

import runpy

from utils.config import ROOT

if __name__ == "__main__":
    runpy.run_path(str(ROOT / "check.py"), run_name="__main__")
