"""`python -m models.check my.yaml` is `python check.py my.yaml`: what can be pruned is not for
`models` to know.
"""

import runpy

from utils.config import ROOT

if __name__ == "__main__":
    runpy.run_path(str(ROOT / "check.py"), run_name="__main__")
