"""Structured pruning around one object, `Prunable`; a folder a stage.

    prunable = Prunable.of(model, ignore=["24"])            # groups/ preflight/: what can go
      together
    criterion = PRUNERS["lamp"]()                           # criteria/: a score for every channel
    plan = prunable.search(criterion, Target(speed_up=2.0)) # search/: masks that meet the target
    smaller = prunable.prune(plan)                          # surgery/: the cut, verified

sparsity/ drives channels towards zero before the cut. docs/pruning.md explains the stages,
docs/custom_pruner.md shows how to add a method: a file in criteria/ (or in this folder).
"""

import sys

from prune_methods.criteria.activations import activation_evidence
from prune_methods.criteria.base import (
    PRUNERS,
    ActivationCriterion,
    CalibrationBatch,
    Criterion,
    GateCriterion,
    GradientCriterion,
    GroupCriterion,
)
from prune_methods.criteria.fisher import gate_evidence
from prune_methods.criteria.gradients import Losses, gradient_evidence
from prune_methods.criteria.scoring import Evidence
from prune_methods.groups.channel_index import ChannelIndex, Masks
from prune_methods.groups.graph import ChannelGroup, Member, Skipped
from prune_methods.preflight.check import find_groups, run_preflight
from prune_methods.prunable import Prunable
from prune_methods.search.pagcp import Watchers
from prune_methods.search.pagcp_rules import PagcpSettings
from prune_methods.search.plan import EvidenceSource, Limits, Pace, Plan, Step, Target
from utils.registry import import_files_of

import_files_of(sys.modules[__name__])

__all__ = [
    "PRUNERS",
    "ActivationCriterion",
    "CalibrationBatch",
    "ChannelGroup",
    "ChannelIndex",
    "Criterion",
    "Evidence",
    "EvidenceSource",
    "GateCriterion",
    "GradientCriterion",
    "GroupCriterion",
    "Limits",
    "Losses",
    "Masks",
    "Member",
    "Pace",
    "PagcpSettings",
    "Plan",
    "Prunable",
    "Skipped",
    "Step",
    "Target",
    "Watchers",
    "activation_evidence",
    "find_groups",
    "gate_evidence",
    "gradient_evidence",
    "run_preflight",
]
