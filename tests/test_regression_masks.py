"""The masks of every pruning method on YOLOv5n and YOLOv7-tiny stay what they are, to the last
channel.

Whoever changes masks on purpose writes the record anew: `python -m tests.test_regression_masks`.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from models import build_model
from prune_methods import PRUNERS, GradientCriterion, Prunable, Target, find_groups
from prune_methods.criteria.base import Criterion
from prune_methods.criteria.scoring import counted_weights, kernel_sums
from tests.prune_toys import randomised, source_of

RECORD = Path(__file__).parent / "regression" / "masks.json"
MODELS = ("yolov5n", "yolov7-tiny")
METHODS = sorted(json.loads(RECORD.read_text())["yolov5n"])


def make(cfg: str):
    torch.manual_seed(0)
    model = randomised(build_model(cfg, nc=3))
    return model, find_groups(model)


def drawn_evidence(model, found, criterion: Criterion):
    """Stands for gradients, which other CPUs sum in another order."""
    rng = np.random.default_rng(0)
    tables = {
        name: kernel_sums(w).shape for name, w in counted_weights(model, found, criterion).items()
    }
    return {name: rng.exponential(size=tuple(shape)) for name, shape in tables.items()}


def drawn_losses(found):
    """Losses for PAGCP: each channel that is gone costs what was drawn for it."""
    rng = np.random.default_rng(0)
    costs = {group.name: rng.exponential(size=(3, group.size)) / 3e3 for group in found}

    def losses(masks, ceilings):
        return 1 + np.sum([costs[name][:, ~keep].sum(1) for name, keep in masks.items()], axis=0)

    return losses


def masks_of(model, found, method: str):
    criterion = PRUNERS[method](seed=0)
    if criterion.search:
        return (
            Prunable(model, found)
            .search_by_losses(criterion, drawn_losses(found), Target(2.0))
            .masks
        )
    measure = None
    if isinstance(criterion, GradientCriterion):
        tables = drawn_evidence(model, found, criterion)
        measure = lambda masks: tables  # noqa: E731
    return Prunable(model, found).search(criterion, Target(2.0), source=source_of(measure)).masks


def digest(masks) -> str:
    lines = [f"{name} {''.join('01'[int(bit)] for bit in keep)}\n" for name, keep in masks.items()]
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:16]


@pytest.fixture(scope="module", params=MODELS)
def prepared(request):
    return request.param, *make(request.param)


@pytest.mark.parametrize("method", METHODS)
def test_masks_stay_what_they_are(prepared, method):
    cfg, model, found = prepared
    assert digest(masks_of(model, found, method)) == json.loads(RECORD.read_text())[cfg][method]


if __name__ == "__main__":
    record = {
        cfg: {m: digest(masks_of(*made, m)) for m in METHODS}
        for cfg in MODELS
        for made in [make(cfg)]
    }
    RECORD.write_text(json.dumps(record, indent=1) + "\n")
