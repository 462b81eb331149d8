"""The deployed form equals the training form, with every statistic and vector away from its initial
value.
"""

import copy

import pytest
import torch
from torch import nn

from models import Model, build_model
from models.blocks.repconv import RepConv
from models.heads.detect import Detect, ImplicitA, ImplicitM
from utils.config import CONFIG_FOLDERS

NAMES = sorted(
    path.stem
    for path in CONFIG_FOLDERS["model"].rglob("*.yaml")
    if path.parent.name in ("yolov5", "yolov7")
)
BIG = {"yolov5m", "yolov5l", "yolov5x", "yolov7", "yolov7-deploy", "yolov7x", "yolov7x-deploy"}


def randomise(model: nn.Module, seed: int = 0) -> None:
    """At initialisation a wrong fold passes: give batch norms and implicits values that show it."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(tensor: torch.Tensor, low: float, high: float) -> None:
        tensor.copy_(
            torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype) * (high - low) + low
        )

    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                uniform(module.weight, 0.5, 1.5)
                uniform(module.bias, -0.5, 0.5)
                uniform(module.running_mean, -0.5, 0.5)
                uniform(module.running_var, 0.5, 2.0)
            elif isinstance(module, ImplicitA | ImplicitM):
                uniform(module.implicit, 0.5, 1.5)


def test_all_yamls_are_tried() -> None:
    assert len(NAMES) == 11


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in BIG else n for n in NAMES]
)
def test_fused_equals_training_form(name: str) -> None:
    torch.manual_seed(0)
    model = build_model(name)
    randomise(model)
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        for dtype, absolute, relative in ((torch.float32, 1e-3, 1e-4), (torch.float64, 1e-6, 0.0)):
            model = model.to(dtype).eval()
            expected, expected_maps = model(x.to(dtype))
            boxes, maps = model.fuse()(x.to(dtype))
            torch.testing.assert_close(boxes, expected, atol=absolute, rtol=relative)
            for one, other in zip(maps, expected_maps, strict=True):
                torch.testing.assert_close(one, other, atol=absolute, rtol=relative)


def test_fuse_leaves_the_training_model_alone_and_no_batch_norm_behind() -> None:
    model = build_model("yolov7-tiny", nc=3)
    before = copy.deepcopy(model.state_dict())
    fused = model.fuse()
    assert model.training
    assert not any(module.training for module in fused.modules())
    assert list(before) == list(model.state_dict())
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())
    assert not any(isinstance(m, nn.BatchNorm2d | ImplicitA | ImplicitM) for m in fused.modules())
    assert type(fused.head) is Detect
    assert torch.equal(fused.stride, model.stride)


@pytest.mark.parametrize(
    ("c1", "c2", "s", "g"), [(8, 8, 1, 1), (8, 8, 1, 2), (8, 12, 1, 4), (8, 8, 2, 1)]
)
def test_repconv_folds_with_and_without_identity(c1: int, c2: int, s: int, g: int) -> None:
    torch.manual_seed(0)
    block = RepConv(c1, c2, s, g).double().eval()
    assert (block.rbr_identity is not None) == (c1 == c2 and s == 1)
    randomise(block)
    x = torch.randn(2, c1, 9, 9, dtype=torch.float64)
    torch.testing.assert_close(block.fuse()(x), block(x), atol=1e-10, rtol=0)


def test_fusing_twice_changes_nothing() -> None:
    fused = build_model("yolov5n", nc=2).fuse()
    x = torch.rand(1, 3, 64, 64)
    assert isinstance(fused, Model)
    assert torch.equal(fused.fuse()(x)[0], fused(x)[0])
