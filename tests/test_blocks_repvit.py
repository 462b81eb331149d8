"""RepViT's parts by their formulas, its published size, and cut."""

import pytest
import torch
import torch.nn.functional as F

from models import build_model
from models.blocks.repvit import SIZES, ChannelMixer, Gate, RepDepthwise, RepViT
from models.registry import BuildContext
from models.yolo import fuse_children
from prune_methods.groups.channel_index import ChannelIndex
from prune_methods.search.cost import Cost
from prune_methods.surgery.verify import deployed_macs
from tests.block_checks import assert_prunes, without_gradient
from tests.prune_toys import randomised
from utils.profiling import count_parameters

IMAGE = BuildContext(in_channels=(3,), in_strides=(1.0,))


def test_published_parameters_as_trained_and_deployed():
    """timm's repvit_m1 as a feature extractor: 4,713,712, and 4,682,056 with its
    branches folded.
    """
    model = RepViT.from_yaml(IMAGE, "m1").eval()
    assert count_parameters(model) == 4_713_712
    with torch.no_grad():
        fuse_children(model)
    assert count_parameters(model) == 4_682_056


def test_token_mixer_deploys_as_one_depthwise_convolution():
    torch.manual_seed(0)
    block = randomised(RepDepthwise(6)).double().eval()
    x = torch.randn(1, 6, 5, 5, dtype=torch.float64)
    fused = block.fuse()
    torch.testing.assert_close(fused(x), block(x), atol=1e-12, rtol=1e-12)
    assert (fused.groups, count_parameters(fused)) == (6, 6 * 9 + 6)
    by_hand = (
        x + block.dense[1](F.conv2d(x, block.dense[0].weight, padding=1, groups=6)) + block.point(x)
    )
    torch.testing.assert_close(block(x), by_hand)


def test_gate_and_channel_mixer_by_their_formulas():
    torch.manual_seed(0)
    gate, mixer, x = Gate(48), randomised(ChannelMixer(8, "GELU")).eval(), torch.randn(2, 48, 4, 4)
    squeezed = F.relu(x.mean((2, 3)) @ gate.squeeze.weight[:, :, 0, 0].T + gate.squeeze.bias)
    factor = torch.sigmoid(squeezed @ gate.excite.weight[:, :, 0, 0].T + gate.excite.bias)
    torch.testing.assert_close(gate(x), x * factor[:, :, None, None], atol=1e-6, rtol=1e-5)
    x = x[:, :8]
    hidden = F.gelu(mixer.expand.bn(mixer.expand.conv(x)))
    torch.testing.assert_close(mixer(x), x + mixer.project.bn(mixer.project.conv(hidden)))


@pytest.mark.parametrize(
    ("channels", "hidden"), [(48, 16), (96, 24), (192, 48), (384, 96), (16, 8)]
)
def test_gates_are_a_quarter_rounded_to_8(channels: int, hidden: int):
    assert Gate(channels).squeeze.out_channels == hidden


def test_every_other_block_has_a_gate_but_none_before_a_down_sampling():
    model = RepViT(3, 16, (2, 3, 1))
    gates = [
        [any(isinstance(part, Gate) for part in block) for block in list(stage)[1:]]
        for stage in model.stages
    ]
    assert gates == [[True, False, False], [True, False, True, False], [True]]


def test_trains_folds_and_prunes(tmp_path, monkeypatch):
    monkeypatch.setitem(SIZES, "m1", (16, (1, 1, 2, 1)))
    torch.manual_seed(0)
    cfg = {
        "nc": 2,
        "anchors": 1,
        "backbone": [[-1, 1, "repvit_m1", [False]]],
        "head": [[[2, 3, 4], 1, "Detect", ["nc", "anchors"]]],
    }
    model = build_model(cfg)
    randomised(model)
    assert [row.index for row in model.rows] == [0, 5] and model.stride.tolist() == [8, 16, 32]
    assert without_gradient(model) == []
    smaller, kept = assert_prunes(model, tmp_path)
    assert set(kept) == {"model.5.m.0", "model.5.m.1", "model.5.m.2"}
    mixer = smaller.get_submodule("model.0.stages.1.1.0")
    assert mixer.dense[0].weight.shape == (16, 1, 3, 3) and mixer.dense[0].groups == 16
    cost = Cost(ChannelIndex(smaller, []), 64)
    assert cost.base == deployed_macs(smaller, 64) and cost.other == 0
