"""Backbones of timm in one row."""

import sys

import pytest
import torch

from models import build_model, load_model, save_model
from models.blocks.timm_backbone import Timm
from models.registry import BuildContext
from prune_methods import Prunable, find_groups
from prune_methods.groups.channel_index import ChannelIndex
from prune_methods.search.cost import Cost
from prune_methods.surgery.verify import deployed_macs
from tests.block_checks import assert_prunes, fused_difference, without_gradient
from tests.prune_toys import randomised
from utils.errors import UserError
from utils.profiling import count_parameters

SITE = BuildContext(in_channels=(3,), in_strides=(1.0,))


def with_backbone(*row) -> dict:
    return {
        "nc": 2,
        "anchors": [[10, 13, 16, 30], [30, 61, 62, 45]],
        "backbone": [[-1, 1, *row]],
        "head": [
            [4, 1, "Conv", [24, 1, 1]],  # 5
            [-1, 1, "nn.Upsample", ["None", 2, "nearest"]],
            [[-1, 3], 1, "Concat", [1]],
            [[7, 5], 1, "Detect", ["nc", "anchors"]],
        ],
    }


def test_a_missing_timm_is_named_with_the_command(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"backbone row 0 \[-1, 1, Timm.*pip install timm"):
        build_model(with_backbone("Timm", ["mobilenetv3_small_100"]))
    with pytest.raises(
        UserError, match=r"unknown block 'edgenext_small'; as a model of timm .*pip install timm"
    ):
        build_model(with_backbone("edgenext_small", [False]))
    with pytest.raises(
        UserError, match="unknown block 'Covn'; did you mean 'Conv'"
    ):  # not taken for one of theirs
        build_model(with_backbone("Covn", [8]))


def test_levels_count_from_stride_2() -> None:
    pytest.importorskip("timm")
    maps = Timm.from_yaml(SITE, "mobilenetv3_small_050").eval()(torch.zeros(1, 3, 64, 64))
    assert [(y.shape[1], 64 // y.shape[2]) for y in maps if y is not None] == [
        (16, 2),
        (8, 4),
        (16, 8),
        (24, 16),
        (288, 32),
    ]
    first, *rest = Timm.from_yaml(SITE, "resnet10t").eval()(torch.zeros(1, 3, 64, 64))
    assert first is not None and len(rest) == 4
    assert [
        y is None for y in Timm.from_yaml(SITE, "repvit_m0_9").eval()(torch.zeros(1, 3, 64, 64))
    ] == [True, *[False] * 4]


def test_an_unknown_model_is_met_with_a_suggestion() -> None:
    pytest.importorskip("timm")
    with pytest.raises(UserError, match="no model 'mobilenetv3_smal_100'; did you mean"):
        Timm.from_yaml(SITE, "mobilenetv3_smal_100")


def test_weights_are_downloaded_when_asked_for_and_not_by_a_checkpoint(
    monkeypatch, tmp_path
) -> None:
    timm = pytest.importorskip("timm")
    asked, create = [], timm.create_model

    def record(name, pretrained, **options):
        asked.append(pretrained)
        return create(name, pretrained=False, **options)

    monkeypatch.setattr(timm, "create_model", record)
    model = build_model(with_backbone("Timm", ["mobilenetv3_small_050", True]))
    save_model(model, tmp_path / "a.pt")
    load_model(tmp_path / "a.pt")
    assert asked == [True, False]


def test_it_trains_folds_and_prunes_under_its_own_name(tmp_path) -> None:
    pytest.importorskip("timm")
    torch.manual_seed(0)
    model = build_model(with_backbone("mobilenetv3_small_050", [False]))
    randomised(model)
    assert without_gradient(model) == []
    assert fused_difference(model) < 1e-4
    norms = [m for m in model.fuse().modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert norms == []
    smaller, whole = assert_prunes(model, tmp_path)
    assert set(whole) == {"model.8.m.0", "model.8.m.1"}
    assert count_parameters(smaller) < 0.4 * count_parameters(model)


def test_what_a_cut_leaves_is_known_before_it() -> None:
    pytest.importorskip("timm")
    model = build_model(with_backbone("mobilenetv3_small_050", [False]))
    found = find_groups(model)
    index = ChannelIndex(model, found)
    half = index.all_kept()
    for start, size in zip(index.starts, index.sizes, strict=True):
        half[start + 1 : start + size : 2] = False
    smaller, cost = Prunable(model, found).cut(index.by_group(half)), Cost(index, 64)
    assert cost.parameters(half) == count_parameters(
        smaller
    )  # its norms with an activation inside count once
    assert cost.macs(half) == deployed_macs(smaller, 64)
