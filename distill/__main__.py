"""`python -m distill` is `python distill.py`: the package hides the script of the same name from `-m`."""

import runpy

from utils.config import ROOT

if __name__ == "__main__":  # this file is imported too, with all others of the package
    runpy.run_path(str(ROOT / "distill.py"), run_name="__main__")
