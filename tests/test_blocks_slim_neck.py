"""GSConv and VoVGSCSP: that the shuffle is absorbed, dead convolutions, their cut."""

from pathlib import Path

import torch

from models.blocks.slim_neck import GSConv, VoVGSCSP
from models.registry import BuildContext
from tests.custom_toys import check_cut, check_fuse, check_gradients, skipped_layers, toy_model
from tests.prune_toys import randomised


def test_the_next_layer_absorbs_the_shuffle() -> None:
    """The paper's GSConv, its halves interleaved, then a 1x1; ours, then the same 1x1 with its
    inputs in our order.
    """
    torch.manual_seed(0)
    block, following = GSConv(6, 8, 3).eval(), torch.nn.Conv2d(8, 5, 1)
    x = torch.randn(1, 6, 7, 7)
    first = block.cv1(x)
    shuffled = torch.stack((first, block.cv2(first)), 2).flatten(1, 2)
    expected = following(shuffled)
    with torch.no_grad():
        following.weight.copy_(torch.cat((following.weight[:, 0::2], following.weight[:, 1::2]), 1))
    assert torch.allclose(following(block(x)), expected, atol=1e-6)


def test_one_block_by_its_definition() -> None:
    torch.manual_seed(0)
    block = randomised(VoVGSCSP(8, 12)).eval()
    x = torch.randn(1, 8, 6, 6)
    y = block.cv1(x)
    inner = block.m[0]
    y = inner.cv2(inner.cv1(y)) + inner.shortcut(y)
    assert torch.allclose(block(x), block.cv3(torch.cat((y, block.cv2(x)), 1)), atol=1e-6)


def test_dead_convolutions_only_count() -> None:
    context = BuildContext(in_channels=(8,), in_strides=(4.0,), repeats=2)
    plain, counting = VoVGSCSP.from_yaml(context, 16), VoVGSCSP.from_yaml(context, 16, 0.5, True)
    extra = {n: p for n, p in counting.named_parameters() if n.startswith("dead.")}
    assert sum(p.numel() for p in extra.values()) == 9 * 8 * 8 + 2 * 8
    assert not any(p.requires_grad for p in extra.values())
    counting.load_state_dict(plain.state_dict(), strict=False)
    x = torch.randn(1, 8, 6, 6)
    assert torch.equal(plain.eval()(x), counting.eval()(x))
    assert len(plain.m) == 2


def test_pruning(tmp_path: Path) -> None:
    model = toy_model([[-1, 1, "GSConv", [24, 3, 2]], [-1, 2, "VoVGSCSP", [32]]], [3])
    check_gradients(model)
    check_fuse(model)
    _, skipped, _ = check_cut(model, tmp_path)
    assert skipped_layers(skipped) == set()
