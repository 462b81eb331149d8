"""Structured pruning in four steps that know nothing of each other.

    found = find_groups(model)                                   # which channels can only go
      together      survey.py
    criterion = PRUNERS["lamp"]()                           # one score per channel
      one file a family
    plan = keep_masks(model, found, criterion, target=2.0)  # masks that meet the speed-up
      loop.py
    smaller = apply(model, found, plan.masks)               # one physical cut, in a copy
      cut.py

`scores(model, found, criterion)` shows what the ranking is made from. docs/pruning.md explains,
docs/custom_pruner.md shows how to add a method: a file in this folder.
"""

import sys

from prune_methods.criteria.base import PRUNERS, Criterion, GradientCriterion
from prune_methods.criteria.gradients import Losses, gradient_evidence
from prune_methods.criteria.scoring import Evidence, countable, scores
from prune_methods.groups.channel_index import Masks
from prune_methods.groups.graph import ChannelGroup, Member, Skipped
from prune_methods.preflight.check import find_groups, run_preflight
from prune_methods.search.loop import Limits, Plan, Step, keep_masks, reachable_speed_up
from prune_methods.surgery.cut import apply, zeroed
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
    "find_groups",
    "keep_masks",
    "run_preflight",
    "reachable_speed_up",
    "scores",
    "zeroed",
]
