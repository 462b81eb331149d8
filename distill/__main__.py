"""`python -m distill` is `python distill.py`: the package hides the script of the same name from
`-m`.
"""

import runpy

from utils.config import ROOT

runpy.run_path(str(ROOT / "distill.py"), run_name="__main__")
