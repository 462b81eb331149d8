"""Gather and distribute against its equations, and the whole model."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from models import build_model
from models.blocks.goldyolo import (
    IFM,
    AdvPoolFusion,
    GlobalAttention,
    Injection,
    PyramidPoolAgg,
    SimFusion3,
    SimFusion4,
    TopBasicLayer,
    resized,
)
from models.registry import BuildContext
from prune_methods import PRUNERS, Prunable, Target, run_preflight
from prune_methods.groups.channel_index import ChannelIndex
from prune_methods.search.cost import Cost
from prune_methods.surgery.cut import largest_difference
from prune_methods.surgery.verify import verify
from tests.block_checks import assert_prunes, built, fused_difference, without_gradient
from tests.prune_toys import randomised
from utils.errors import UserError
from utils.profiling import count_macs, count_parameters, macs_by_module

INJECT = "InjectionMultiSum_Auto_pool"
ROWS = [
    [2, 1, "Conv", [32, 3, 2]],  # 3, stride 32
    [[0, 1, 2, 3], 1, "SimFusion_4in", []],  # 4, stride 16
    [-1, 1, "IFM", [[16, 8], 16, 1]],
    [[0, 1, 2], 1, "SimFusion_3in", [24]],  # 6, stride 8
    [[-1, 5], 1, INJECT, [40, [16, 8], 1]],
    [[7, 2, 3], 1, "PyramidPoolAgg", [48, 2]],  # 8, stride 64
    [-1, 1, "TopBasicLayer", [48, [16, 8], 1, 2, 4]],
    [[7, 2], 1, "AdvPoolFusion", []],  # 10, stride 16
    [[-1, 9], 1, INJECT, [16, [16, 8], 0]],
]


def test_resizing_averages_down_and_interpolates_up() -> None:
    x = torch.arange(16.0).view(1, 1, 4, 4)
    assert resized(x, (2, 2)).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    assert torch.equal(resized(x, (8, 8)), F.interpolate(x, scale_factor=2.0, mode="bilinear"))
    assert resized(x, (4, 4)) is x


def test_levels_meet_at_the_size_of_the_last_but_one() -> None:
    x = [torch.full((1, c, size, size), float(c)) for c, size in ((1, 16), (2, 8), (3, 4), (4, 2))]
    y = SimFusion4()(x)
    assert y.shape == (1, 10, 4, 4)
    assert y[0, :, 1, 2].tolist() == [1, 2, 2, 3, 3, 3, 4, 4, 4, 4]
    assert AdvPoolFusion()([x[0], x[2]]).shape == (1, 4, 4, 4)


def test_three_levels_by_their_equation() -> None:
    torch.manual_seed(0)
    block = SimFusion3((6, 4, 8), 4).eval()
    large, middle, small = torch.randn(1, 6, 8, 8), torch.randn(1, 4, 4, 4), torch.randn(1, 8, 2, 2)
    a, c = (
        block.align[0](F.avg_pool2d(large, 2)),
        block.align[2](F.interpolate(small, size=(4, 4), mode="bilinear")),
    )
    assert torch.allclose(
        block([large, middle, small]), block.fuse_levels(torch.cat((a, middle, c), 1)), atol=1e-6
    )
    assert isinstance(block.align[1], torch.nn.Identity)  # has c2 channels already


@pytest.mark.parametrize("size", [2, 8])  # the gathered map is larger, or smaller
def test_injection_is_a_gated_sum_whether_it_pools_or_enlarges(size: int) -> None:
    torch.manual_seed(0)
    block = Injection(5, 7, [3, 4], 1).eval()
    randomised(block)
    local, gathered = torch.randn(1, 5, size, size), torch.randn(1, 7, 4, 4)
    part = gathered[:, 3:]

    def fit(x: torch.Tensor) -> torch.Tensor:
        return F.avg_pool2d(x, 2) if size == 2 else F.interpolate(x, size=(8, 8), mode="bilinear")

    gate = F.relu6(block.gate.bn(block.gate.conv(part)) + 3) / 6
    expected = block.local(local) * fit(gate) + fit(block.shift(part))
    assert torch.allclose(block([local, gathered]), expected, atol=1e-6)


def test_injection_refuses_a_part_that_is_not_there() -> None:
    context = BuildContext(in_channels=(8, 24), in_strides=(8.0, 16.0), width=0.25)
    assert Injection.from_yaml(context, 512, [16, 8], 1).local.conv.out_channels == 512  # unscaled
    with pytest.raises(ValueError, match="part 2"):
        Injection.from_yaml(context, 512, [16, 8], 2)
    with pytest.raises(ValueError, match="input of 24"):
        Injection.from_yaml(context, 512, [16, 16], 0)


def test_aggregation_rounds_sizes_up() -> None:
    block = PyramidPoolAgg(6, 8, 2).eval()
    assert block([torch.rand(1, 4, 10, 14), torch.rand(1, 2, 5, 7)]).shape == (1, 8, 3, 4)


def test_attention_cell_by_cell() -> None:
    torch.manual_seed(0)
    block = GlobalAttention(6, heads=2, key=3, ratio=2).eval()
    x = torch.randn(2, 6, 2, 3)
    with torch.no_grad():
        query, key, value = (layer(x).flatten(2) for layer in (block.query, block.key, block.value))
        seen = torch.zeros(2, 12, 6)
        for n in range(2):
            for head in range(2):
                rows, wide = slice(3 * head, 3 * head + 3), slice(6 * head, 6 * head + 6)
                for cell in range(6):
                    scores = [
                        float(query[n, rows, cell] @ key[n, rows, other]) / math.sqrt(3)
                        for other in range(6)
                    ]
                    weights = [math.exp(s) / sum(map(math.exp, scores)) for s in scores]
                    seen[n, wide, cell] = sum(
                        w * value[n, wide, other] for other, w in enumerate(weights)
                    )
        assert torch.allclose(block(x), block.project(seen.relu().view(2, 12, 2, 3)), atol=1e-5)


def test_transformer_blocks_are_residual() -> None:
    torch.manual_seed(0)
    layer = TopBasicLayer(8, [4, 2], n=1, heads=2, key=4).eval()
    block = layer.m[0]
    x = torch.randn(1, 8, 3, 3)
    y = x + block.attention(x)
    y = y + block.shrink(block.wise(block.expand(y)).clamp(0, 6))
    assert torch.allclose(layer(x), layer.split(y), atol=1e-6)
    with pytest.raises(ValueError, match="16 channels"):
        TopBasicLayer.from_yaml(BuildContext(in_channels=(16,), in_strides=(64.0,)), 8, [4, 4])


def test_a_small_neck_trains_folds_and_prunes(tmp_path) -> None:
    model = built(*ROWS)
    assert without_gradient(model, 128) == []
    assert fused_difference(model, 128) < 1e-4
    assert isinstance(model.model[5], IFM)
    smaller, whole = assert_prunes(model, tmp_path, 128)
    assert {"model.5.split.conv", "model.9.split", "model.13.m.0"} == set(whole)
    assert smaller.model[7].local.conv.out_channels == smaller.model[7].gate.conv.out_channels == 20
    assert smaller.model[9].m[0].wise.groups == 96 and smaller.model[8].conv.conv.out_channels == 24


def test_an_attention_loses_whole_heads() -> None:
    """Three heads with keys of 4 channels and values of 8; the middle one goes."""
    torch.manual_seed(0)
    model = built([2, 1, "Conv", [16]], [-1, 1, "TopBasicLayer", [16, [8, 8], 1, 3, 4]])
    found, _ = run_preflight(model)
    masks = {g.name: np.ones(g.size, dtype=bool) for g in found}
    heads = next(g for g in found if g.name == "model.4.m.0.attention.query.conv")
    assert (heads.size, heads.per_channel) == (3, 4)
    masks[heads.name][1] = False
    smaller = Prunable(model, found).cut(masks)
    ours, theirs = smaller.model[4].m[0].attention, model.model[4].m[0].attention
    keys, values = [*range(4), *range(8, 12)], [*range(8), *range(16, 24)]
    assert torch.equal(ours.query.conv.weight, theirs.query.conv.weight[keys])
    assert torch.equal(ours.key.bn.weight, theirs.key.bn.weight[keys])
    assert torch.equal(ours.value.conv.weight, theirs.value.conv.weight[values])
    assert torch.equal(ours.project.conv.weight, theirs.project.conv.weight[:, values])
    assert largest_difference(smaller, Prunable(model, found).zero_channels(masks), 128) < 1e-5

    cost, index = Cost(ChannelIndex(model, found), 128), ChannelIndex(model, found)
    cells = (128 // 16) ** 2
    layers = sum(macs for macs, _, _ in macs_by_module(model, 128).values())
    assert cost.other == 0 and cost.base == layers + 3 * cells * cells * (4 + 8)
    assert cost.macs(index.flatten(masks)) == count_macs(smaller.fuse(), 128)
    plan = Prunable(model, [heads]).search(PRUNERS["lamp"](), Target(1e9, imgsz=128))
    assert plan.masks[heads.name].sum() == 1  # --min-channels counts channels: a head has four


def test_ignored_heads_stay() -> None:
    model = built([2, 1, "Conv", [16]], [-1, 1, "TopBasicLayer", [16, [8, 8], 1, 3, 4]])
    found, skipped = run_preflight(model, ["model.4.m.0.attention.key"])
    parts = {f"model.4.m.0.attention.{part}.conv" for part in ("query", "key", "value")}
    assert not parts & {m.name for g in found for m in g.members if m.kind == "out"}
    assert {s.layer for s in skipped if s.reason == "ignored by the user"} == parts
    found, _ = run_preflight(
        model, ["model.4.m.0.attention.project"]
    )  # whose outputs stay; what it reads may go
    assert "model.4.m.0.attention.query.conv" in [g.name for g in found]


def test_an_error_names_the_row() -> None:
    with pytest.raises(UserError, match=r"backbone row 3 .*InjectionMulti.*: .*part 0"):
        built([[0, 1], 1, INJECT, [16, [16, 16], 0]])


def test_the_model_of_the_tables_prunes_to_half_its_cost() -> None:
    torch.manual_seed(0)
    model = build_model("models/configs/custom/yolov5n-fasternet-goldyolo-asf.yaml", nc=2)
    assert (count_parameters(model), count_parameters(model.fuse())) == (6_455_662, 6_408_866)
    found, skipped = run_preflight(model)
    assert len(skipped) == 5  # both splits, the head's three
    plan = Prunable(model, found).search(PRUNERS["lamp"](), Target(2.0))
    smaller = Prunable(model, found).cut(plan.masks)
    verify(ChannelIndex(model, found), plan.masks, plan.macs, smaller)
    assert plan.steps[-1].speed_up == pytest.approx(2, abs=0.01)
    assert count_parameters(smaller) < 0.3 * count_parameters(model)
