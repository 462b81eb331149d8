"""ReXNet against timm's, its widths, its cut."""

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import nn

from models.blocks.rexnet import ReXBlock, ReXNet
from models.registry import BuildContext
from tests.custom_toys import check_cut, check_gradients, skipped_layers, toy_model
from tests.prune_toys import randomised
from utils.errors import UserError


def test_widths_and_parameters_are_the_published_ones() -> None:
    net = ReXNet().eval()
    maps = net(torch.zeros(1, 3, 64, 64))
    assert [tuple(m.shape[1:]) for m in maps] == [
        (16, 32, 32),
        (38, 16, 16),
        (61, 8, 8),
        (128, 4, 4),
        (185, 2, 2),
    ]
    squeezed = sum(m.squeeze.conv.out_channels for m in net.modules() if hasattr(m, "squeeze"))
    assert squeezed == 687
    assert (
        sum(p.numel() for p in net.parameters()) + squeezed == 3_276_513
    )  # with the biases that we leave out


def test_the_same_weights_give_what_timm_gives() -> None:
    timm = pytest.importorskip("timm")
    peer = randomised(timm.create_model("rexnet_100", features_only=True, pretrained=False)).eval()
    theirs = []
    for name, p in peer.named_parameters():
        if name.endswith(".se.fc1.bias"):  # before a batch norm: what we leave out
            nn.init.zeros_(p)
        else:
            theirs.append(p)
    net = ReXNet().eval()
    ours = list(net.parameters())
    assert [p.shape for p in ours] == [p.shape for p in theirs]
    for mine, other in zip(ours, theirs, strict=True):
        mine.data.copy_(other.data)
    buffers = zip(net.buffers(), peer.buffers(), strict=True)
    for mine, other in buffers:
        mine.copy_(other)
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        for mine, other in zip(net(x), peer(x), strict=True):
            assert torch.allclose(mine, other, rtol=1e-3, atol=1e-3 * float(other.abs().max()))


def test_the_residual_covers_the_first_channels_only() -> None:
    torch.manual_seed(0)
    block = randomised(ReXBlock(4, 7, 1, 6, squeeze=True)).eval()
    x = torch.randn(1, 4, 5, 5)
    bare = cast(Any, block)
    inside = bare.project(bare.act(bare.excite(bare.depthwise(bare.expand(x)))))
    assert torch.allclose(block(x)[:, :4], inside[:, :4] + x, atol=1e-6)
    assert torch.equal(block(x)[:, 4:], inside[:, 4:])


def test_pruning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.blocks.rexnet.STAGES", ((1, 1), (2, 2), (2, 2)))
    monkeypatch.setattr("models.blocks.rexnet.MAPS", (0, 2, 4))
    model = toy_model([[-1, 1, "ReXNet", [0.5]]], [4])
    check_gradients(model, 128)
    groups, skipped, _ = check_cut(model, tmp_path)
    whole = skipped_layers(skipped)
    assert whole == {f"model.2.blocks.{i}.project.conv" for i in range(5)}
    names = {g.name for g in groups}
    assert {f"model.2.blocks.{i}.expand.conv" for i in range(1, 5)} <= names


def test_unknown_widths_are_told() -> None:
    with pytest.raises(UserError, match="no width"):
        ReXNet.from_yaml(BuildContext(in_channels=(3,), in_strides=(1.0,)), "90")
