"""Learning from a teacher: the losses, and the training task that adds them to detection.

The files of this folder fill `FEATURE_LOSSES` and `LOGIT_LOSSES`. `feature_hooks` reads feature
maps, `teacher` holds the frozen model, `task` adds the losses up, and `diagnostics` reports at the
start of a run whether distillation works. See docs/distillation.md.
"""

import sys

from distill.base import FEATURE_LOSSES, LOGIT_LOSSES, LogitSetup
from utils.registry import import_files_of

import_files_of(sys.modules[__name__])

__all__ = ["FEATURE_LOSSES", "LOGIT_LOSSES", "LogitSetup"]
