"""Gates against their equations, torchvision and PyTorch's own 1-D convolution."""

import pytest
import torch
import torch.nn.functional as F
from torchvision.ops import SqueezeExcitation

from models.blocks.attention import CBAM, ECA, SE
from models.registry import BuildContext
from tests.block_checks import assert_prunes, built, fused_difference, without_gradient


def test_se_is_torchvisions() -> None:
    torch.manual_seed(0)
    ours, theirs = SE(16, 4), SqueezeExcitation(16, 4)
    theirs.load_state_dict(
        {k.replace("m.0", "fc1").replace("m.2", "fc2"): v for k, v in ours.state_dict().items()}
    )
    x = torch.randn(2, 16, 5, 5)
    assert torch.allclose(ours(x), theirs(x), atol=1e-6)


@pytest.mark.parametrize(("channels", "k"), [(16, 3), (64, 3), (256, 5), (512, 5)])
def test_eca_is_a_1d_convolution_along_the_channels(channels: int, k: int) -> None:
    torch.manual_seed(0)
    block = ECA(channels)
    assert len(block.weight) == k
    x = torch.randn(2, channels, 3, 3)
    gate = F.conv1d(x.mean((2, 3))[:, None], block.weight[None, None], padding=k // 2)[
        :, 0
    ].sigmoid()
    assert torch.allclose(block(x), x * gate[..., None, None], atol=1e-6)


def test_cbam_by_its_equations() -> None:
    torch.manual_seed(0)
    block = CBAM(16, 4)
    x = torch.randn(2, 16, 9, 9)
    first, last = block.m[0].weight.flatten(1), block.m[2].weight.flatten(1)
    hidden = [(s @ first.T).relu() @ last.T for s in (x.mean((2, 3)), x.amax((2, 3)))]
    y = x * (hidden[0] + hidden[1]).sigmoid()[..., None, None]
    seen = torch.stack((y.mean(1), y.amax(1)), 1)
    assert torch.allclose(
        block(x), y * F.conv2d(seen, block.place.weight, padding=3).sigmoid(), atol=1e-6
    )


def test_eca_needs_a_window_with_a_middle() -> None:
    with pytest.raises(ValueError, match="odd"):
        ECA.from_yaml(BuildContext(in_channels=(16,), in_strides=(8.0,)), 4)


@pytest.mark.parametrize(
    ("name", "args", "whole"), [("SE", [4], []), ("ECA", [], []), ("CBAM", [4], ["model.3.place"])]
)
def test_they_train_fold_and_prune(name: str, args: list[int], whole: list[str], tmp_path) -> None:
    model = built([-1, 1, name, args])
    assert without_gradient(model) == []
    assert fused_difference(model) < 1e-4
    smaller, stay = assert_prunes(model, tmp_path)
    assert [layer for layer in stay if layer != "model.5.m.0"] == whole
    assert smaller.model[2].conv.out_channels == 16
