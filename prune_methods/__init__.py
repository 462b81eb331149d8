"""Structured pruning in four steps that know nothing of each other.

    found = groups(model)                                   # which channels can only go together      survey.py
    criterion = PRUNERS["lamp"]()                           # one score per channel                    one file a family
    plan = keep_masks(model, found, criterion, target=2.0)  # masks that meet the speed-up             loop.py
    smaller = apply(model, found, plan.masks)               # one physical cut, in a copy              cut.py

`scores(model, found, criterion)` shows what the ranking is made from. docs/pruning.md explains, docs/custom_pruner.md shows
how to add a method: a file in this folder.
"""

import sys

from prune_methods.base import PRUNERS, Criterion, GradientCriterion
from prune_methods.cut import apply, zeroed
from prune_methods.gradients import Losses, gradient_evidence
from prune_methods.graph import ChannelGroup, Member, Skipped
from prune_methods.loop import Limits, Plan, Step, keep_masks, reachable_speed_up
from prune_methods.slices import Evidence, countable, scores
from prune_methods.survey import groups, preflight
from prune_methods.wiring import Masks
from utils.registry import import_files_of

import_files_of(sys.modules[__name__])

__all__ = [
    "PRUNERS",
    "ChannelGroup",
    "Criterion",
    "Evidence",
    "GradientCriterion",
    "Limits",
    "Losses",
    "Masks",
    "Member",
    "Plan",
    "Skipped",
    "Step",
    "apply",
    "countable",
    "gradient_evidence",
    "groups",
    "keep_masks",
    "preflight",
    "reachable_speed_up",
    "scores",
    "zeroed",
]
