"""Run distill.py for `python -m distill`, where this package hides the script of the same name."""

import runpy

from utils.config import ROOT

runpy.run_path(str(ROOT / "distill.py"), run_name="__main__")
