"""Names of earlier versions that a user's own block may carry: understood, with one line each."""

import pytest
import torch
from torch import nn

from models.pruning_rules import InnerLayer, detach_channels
from models.registry import BuildContext
from prune_methods.groups.graph import layers_to_keep
from utils.log import LOGGER, deprecated


@pytest.fixture
def lines(monkeypatch):
    deprecated.cache_clear()
    seen: list[str] = []
    monkeypatch.setattr(LOGGER, "warning", seen.append)
    return seen


class Old(nn.Module):
    keep_whole = {"gate": "one gate for all"}

    def __init__(self):
        super().__init__()
        self.gate, self.free = nn.Conv2d(3, 1, 1), nn.Conv2d(3, 1, 1)


def test_keep_whole_is_no_prune(lines):
    kept = layers_to_keep(nn.Sequential(Old(), Old()), [])
    assert kept == dict.fromkeys(
        ("0.gate", "1.gate"), "its block (Old) keeps it whole: one gate for all"
    )
    assert lines == ["keep_whole: old name, still understood; write no_prune"]


def test_cut_and_inner_are_understood_at_their_old_place(lines):
    from utils.tracing import Inner, cut

    x = torch.ones(1, requires_grad=True)
    assert cut(x) is x and cut(x) is detach_channels(x)
    assert Inner is InnerLayer
    assert lines == [
        "utils.tracing: old name, still understood; write models.pruning_rules",
        "Inner: old name, still understood; write InnerLayer",
        "cut: old name, still understood; write detach_channels",
    ]


def test_site_is_build_context(lines):
    from models.registry import Site

    assert Site is BuildContext
    assert lines == ["Site: old name, still understood; write BuildContext"]
