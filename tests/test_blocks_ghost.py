"""Ghost convolutions by their equation."""

import pytest
import torch

from models.blocks.ghost import C3Ghost, GhostBottleneck, GhostConv
from tests.block_checks import assert_prunes, built, fused_difference, without_gradient


def test_half_of_the_channels_are_copies_of_the_others() -> None:
    torch.manual_seed(0)
    block = GhostConv(8, 12, 3, 2).eval()
    x = torch.randn(1, 8, 6, 6)
    y = block(x)
    assert y.shape == (1, 12, 3, 3) and torch.equal(y[:, :6], block.cv1(x))
    assert torch.equal(y[:, 6:], block.cv2(y[:, :6])) and block.cv2.conv.groups == 6


def test_the_bottleneck_is_residual_and_ends_without_activation() -> None:
    torch.manual_seed(0)
    block = GhostBottleneck(8).eval()
    x = torch.randn(1, 8, 4, 4)
    assert torch.equal(block(x), x + block.conv[2](block.conv[0](x)))
    assert isinstance(block.conv[2].cv1.act, torch.nn.Identity)
    assert len(C3Ghost(8, 8, 3).m) == 3


@pytest.mark.parametrize(("name", "args"), [("GhostConv", [32, 3, 2]), ("C3Ghost", [32])])
def test_they_train_fold_and_prune(name: str, args: list[int], tmp_path) -> None:
    model = built([-1, 2, name, args] if name == "C3Ghost" else [-1, 1, name, args])
    assert without_gradient(model) == []
    assert fused_difference(model) < 1e-4
    _, whole = assert_prunes(model, tmp_path)
    last = [f"model.3.m.{i}.conv.2.{part}.conv" for i in (0, 1) for part in ("cv1", "cv2")]
    stream = (
        ["model.3.cv1.conv", *last] if name == "C3Ghost" else []
    )  # channels and their copies are added to others
    assert sorted(whole) == sorted([*stream, "model.5.m.0"])
