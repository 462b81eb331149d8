"""Learning from a teacher: what is compared, and the task that adds it to detection.

`FEATURE_LOSSES` and `LOGIT_LOSSES` are filled by the files of this folder; `taps` reads feature
maps, `teacher` holds the frozen model, `task` sums it all up, `doctor` says at the start whether it
works. docs/distillation.md explains.
"""

import sys

from distill.base import FEATURE_LOSSES, LOGIT_LOSSES, LogitSetup
from utils.registry import import_files_of

import_files_of(sys.modules[__name__])

__all__ = ["FEATURE_LOSSES", "LOGIT_LOSSES", "LogitSetup"]
