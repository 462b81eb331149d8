"""FasterNet against its paper's formulas, and cut."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models import build_model
from models.blocks.fasternet import SIZES, C3_Faster, FasterNet, FasterNetBlock, PConv, _Size
from models.registry import BLOCKS, BuildContext
from prune_methods import Prunable, run_preflight
from tests.block_checks import assert_prunes, built, fused_difference, without_gradient
from tests.prune_toys import randomised
from utils.errors import UserError
from utils.profiling import count_macs, count_parameters

IMAGE = BuildContext(in_channels=(3,), in_strides=(1.0,))


def on_backbone(row: list[object], *read: int) -> dict[str, object]:
    """A YAML with a backbone of five outputs, and a head on some of them."""
    return {
        "nc": 2,
        "anchors": 1,
        "backbone": [row],
        "head": [[list(read), 1, "Detect", ["nc", "anchors"]]],
    }


def test_pconv_touches_the_first_quarter_only():
    torch.manual_seed(0)
    block, x = PConv(8), torch.randn(2, 8, 5, 5)
    y = block(x)
    assert torch.equal(y[:, 2:], x[:, 2:])
    windows = F.pad(x[:, :2], (1, 1, 1, 1))
    by_hand = sum(
        torch.einsum(
            "nihw,oi->nohw", windows[:, :, r : r + 5, c : c + 5], block.conv.weight[:, :, r, c]
        )
        for r in range(3)
        for c in range(3)
    )
    torch.testing.assert_close(y[:, :2], by_hand, atol=1e-5, rtol=1e-5)
    assert count_parameters(block) == 9 * 2 * 2
    assert count_parameters(PConv.from_yaml(BuildContext((12,), (8.0,)), 3)) == 9 * 4 * 4


def test_block_by_its_formula():
    torch.manual_seed(0)
    block = randomised(FasterNetBlock(8, "GELU")).eval()
    x = torch.randn(1, 8, 6, 6)
    expected = x + block.project(F.gelu(block.expand.bn(block.expand.conv(block.mix(x)))))
    assert torch.equal(block(x), expected)
    assert count_parameters(block) == 9 * 2 * 2 + 8 * 16 + 2 * 16 + 16 * 8


# timm's fasternet_t0, t1, t2 as feature extractors, and one batch norm more on each map
@pytest.mark.parametrize(
    ("size", "width", "timm"),
    [("t0", 40, 2_214_900), ("t1", 64, 5_659_008), ("t2", 96, 12_718_848)],
)
def test_sizes_have_the_published_parameters(size: str, width: int, timm: int):
    with torch.device("meta"):
        model = FasterNet.from_yaml(IMAGE, size)
    assert count_parameters(model) == timm + 2 * 15 * width
    first = model.stages[0][0].expand.act
    assert type(first) is (nn.ReLU if size == "t2" else nn.GELU)


def test_maps_take_the_last_of_five_places():
    torch.manual_seed(0)
    model = FasterNet(3, 8, (1, 1, 2, 1)).eval()
    maps = model(torch.zeros(1, 3, 64, 64))
    assert [None if m is None else tuple(m.shape[1:]) for m in maps] == [
        None,
        (8, 16, 16),
        (16, 8, 8),
        (32, 4, 4),
        (64, 2, 2),
    ]


def test_both_ways_to_write_the_row_are_one_model():
    models = []
    for row in ([-1, 1, "fasternet_t0", [False]], [-1, 1, "FasterNet", ["t0"]]):
        torch.manual_seed(0)
        models.append(build_model(on_backbone(row, 2, 3, 4)))
    first, second = (m.state_dict() for m in models)
    assert first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)
    assert models[0].stride.tolist() == [8, 16, 32] and models[0].rows[1].index == 5


def test_errors_name_what_is_right():
    with pytest.raises(
        UserError, match="output 0 of fasternet_t0 is empty; it gives maps as outputs 1, 2, 3, 4"
    ):
        build_model(on_backbone([-1, 1, "fasternet_t0", [False]], 0, 3, 4))
    with pytest.raises(UserError, match="FasterNet has no size 't9'; there are t0, t1"):
        build_model(on_backbone([-1, 1, "FasterNet", ["t9"]], 2, 3, 4))
    with pytest.raises(UserError, match="no pretrained weights"):
        BLOCKS["fasternet_t0"].from_yaml(IMAGE, True)


def test_c3_faster_takes_its_repeats_inside():
    block = C3_Faster.from_yaml(BuildContext((16,), (4.0,), repeats=2, act="nn.ReLU()"), 32)
    assert [type(step) for step in block.m] == [FasterNetBlock] * 2
    assert isinstance(block.m[0].expand.act, nn.ReLU)


@pytest.mark.parametrize("row", [[-1, 2, "C3_Faster", [32]], [-1, 1, "PConv", []]])
def test_blocks_train_fold_and_prune(row, tmp_path):
    model = built(row)
    assert without_gradient(model) == []
    assert fused_difference(model) < 1e-4
    smaller, kept = assert_prunes(model, tmp_path)
    assert list(kept) == ["model.5.m.0"]
    convs = [m.conv for m in smaller.modules() if isinstance(m, PConv)]
    before = [m.conv for m in model.modules() if isinstance(m, PConv)]
    assert all(
        a.in_channels == a.out_channels == b.in_channels // 2
        for a, b in zip(convs, before, strict=True)
    )


def test_backbone_prunes_with_a_map_that_nobody_reads(tmp_path, monkeypatch):
    """The batch norm on the stride 4 map makes no output and has to shrink with the stage all the
    same.
    """
    monkeypatch.setitem(SIZES, "t0", _Size(16, (1, 1, 2, 1), "GELU"))
    torch.manual_seed(0)
    model = build_model(on_backbone([-1, 1, "fasternet_t0", [False]], 2, 3, 4))
    randomised(model)
    assert model.has_idle_layers and without_gradient(model) == [
        "model.0.norms.0.weight",
        "model.0.norms.0.bias",
    ]
    smaller, kept = assert_prunes(model, tmp_path)
    assert set(kept) == {"model.5.m.0", "model.5.m.1", "model.5.m.2"}
    assert smaller.model[0].norms[0].num_features == 8
    assert count_macs(smaller.fuse(), 64) < 0.35 * count_macs(model.fuse(), 64)


def test_parts_of_a_stage_are_groups_of_their_own():
    model = built([-1, 1, "C3_Faster", [64]])
    found, _ = run_preflight(model)
    sizes = {g.name: g.size for g in found if g.name.startswith("model.3.cv1")}
    assert sizes == {"model.3.cv1.conv": 8, "model.3.cv1.conv#2": 24}
    masks = {
        g.name: torch.arange(g.size).numpy() % 3 > 0
        if "#2" in g.name
        else torch.ones(g.size).bool().numpy()
        for g in found
    }
    smaller = Prunable(model, found).cut(masks)
    block = smaller.get_submodule("model.3.m.0")
    assert (block.mix.conv.in_channels, block.project.out_channels) == (8, 8 + 16)


def test_models_without_such_maps_have_no_idle_layers():
    assert not built().has_idle_layers
