"""MAC counts by hand; the model stays untouched."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import DeformConv2d

from models import build_model
from utils.profiling import (
    count_macs,
    count_operations,
    count_parameters,
    macs_by_module,
    macs_by_part,
    time_forward,
)


class Wrapped(nn.Module):
    """Runs a function of the layers it holds."""

    def __init__(self, function, **layers: nn.Module):  # noqa: ANN001
        super().__init__()
        self.layers = nn.ModuleDict(layers)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.layers, x)


@pytest.mark.parametrize(
    ("layer", "macs"),
    [
        (nn.Conv2d(3, 8, 3, padding=1), 8 * 16 * 16 * 3 * 9),
        (nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), 8 * 8 * 8 * 3 * 9),
        (nn.Conv2d(3, 9, (1, 5), groups=3), 9 * 16 * 12 * 1 * 5),
        (nn.ConvTranspose2d(3, 8, 2, stride=2), 3 * 16 * 16 * 8 * 4),
        (nn.Sequential(nn.Flatten(), nn.Linear(3 * 256, 10)), 3 * 256 * 10),
        (nn.Linear(16, 5), 3 * 16 * 16 * 5),
        (nn.Sequential(nn.BatchNorm2d(3), nn.SiLU(), nn.MaxPool2d(2)), 0),
        (Wrapped(lambda layers, x: x @ x.transpose(2, 3)), 3 * 16 * 16 * 16),
        (Wrapped(lambda layers, x: torch.einsum("nchw,ncwk->nchk", x, x)), 3 * 16 * 16 * 16),
        (Wrapped(lambda layers, x: F.scaled_dot_product_attention(x, x, x)), 2 * 3 * 16 * 16 * 16),
        (Wrapped(lambda layers, x: torch.baddbmm(x[0], x[0], x[0])), 3 * 16 * 16 * 16),
        (Wrapped(lambda layers, x: torch.addbmm(x[0, 0], x[0], x[0])), 3 * 16 * 16 * 16),
        (Wrapped(lambda layers, x: torch.mv(x[0, 0], x[0, 0, 0])), 16 * 16),
        (Wrapped(lambda layers, x: torch.dot(x[0, 0, 0], x[0, 0, 1])), 16),
        # a shared layer counts each time it runs
        (
            Wrapped(lambda layers, x: layers["c"](layers["c"](x)), c=nn.Conv2d(3, 3, 1)),
            2 * 3 * 256 * 3,
        ),
    ],
)
def test_formulas_by_hand(layer: nn.Module, macs: int) -> None:
    assert count_macs(layer, 16) == macs


def test_deformable_convolution_by_hand() -> None:
    layers = {"offset": nn.Conv2d(3, 27, 3, padding=1), "deform": DeformConv2d(3, 8, 3, padding=1)}

    def run(layers: nn.ModuleDict, x: Tensor) -> Tensor:
        y = layers["offset"](x)
        return layers["deform"](x, y[:, :18], y[:, 18:].sigmoid())

    assert count_macs(Wrapped(run, **layers), 16) == 256 * 3 * 9 * (27 + 8)


def test_a_block_may_declare_its_own_formula() -> None:
    class Declared(nn.Conv2d):
        def macs(self, x: Tensor, output: Tensor) -> int:
            return 7 * x.shape[1]

    assert (
        count_macs(nn.Sequential(Declared(3, 4, 3), nn.Conv2d(4, 2, 1)), 16) == 21 + 2 * 14 * 14 * 4
    )


def test_only_the_outermost_of_declared_formulas_counts() -> None:
    class Declared(nn.Sequential):
        def macs(self, x: Tensor, output: Tensor) -> int:
            return 5

    first, inner, between, last = (nn.Conv2d(3, 3, 1) for _ in range(4))
    model = nn.Sequential(first, Declared(Declared(inner), between), last)
    assert count_macs(model, 16) == 2 * 16 * 16 * 3 * 3 + 5
    passed = macs_by_part(model, ["0", "1", "1.0", "2"], 16)
    assert [passed[name].macs for name in ("0", "1", "1.0", "2")] == [2304, 5, 0, 2304]


@pytest.mark.parametrize(
    "cfg", ["yolov5n", "yolov7-tiny", "yolov7-tiny-dcn-afpn", "yolov5n-fasternet-goldyolo-asf"]
)
def test_rows_add_up_to_the_whole(cfg: str) -> None:
    model = build_model(cfg, nc=2)
    passed = macs_by_part(model, [f"model.{row.index}" for row in model.rows], 64)
    assert sum(part.macs for part in passed.values()) == count_macs(model, 64)


def test_elements_of_batch_norms_by_hand() -> None:
    norm = nn.BatchNorm2d(4)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), norm, nn.MaxPool2d(2), norm)
    macs = 16 * 16 * 4 * 3
    assert count_operations(model, 16) == (macs, 4 * 16 * 16 + 4 * 8 * 8)


def test_modules_add_up_to_the_whole() -> None:
    model = build_model("yolov5n", nc=2)
    by_module = macs_by_module(model, 128)
    assert sum(macs for macs, _, _ in by_module.values()) == count_macs(model, 128)
    assert by_module["model.0.conv"] == (16 * 64 * 64 * 3 * 36, 64, 64)
    assert set(by_module) == {n for n, m in model.named_modules() if isinstance(m, nn.Conv2d)}


def test_counting_touches_nothing() -> None:
    model = build_model("yolov7-tiny", nc=2)
    model.model[3].eval()
    state, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    count_macs(model, 640)
    macs_by_module(model, 640)
    model.info()
    assert all(
        torch.equal(a, b) for a, b in zip(state.values(), model.state_dict().values(), strict=True)
    )
    assert [m.training for m in model.modules()] == modes
    now = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    assert now == hooks
    assert all(p.device.type == "cpu" for p in model.parameters())


def test_macs_grow_with_the_area() -> None:
    model = build_model("yolov5n", nc=2)
    assert count_macs(model, 256) == 4 * count_macs(model, 128)


def test_half_precision_counts_the_same() -> None:
    model = build_model("yolov5n", nc=2)
    assert count_macs(copy.deepcopy(model).half(), 64) == count_macs(model, 64)


def test_parameters_include_frozen_ones() -> None:
    layer = nn.Linear(3, 4).requires_grad_(False)
    assert count_parameters(layer) == 16


def test_time_is_a_median_in_milliseconds(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 9.0, 9.0, 18.0, 20.0, 20.002, 20.002, 20.01, 20.01, 20.014, 99.0, 200.0])
    monkeypatch.setattr("utils.profiling.time.perf_counter", lambda: next(clock))
    # two warm-up runs of 9 s, then 2 ms (and the end is set), then runs until the clock passes it
    assert time_forward(nn.Identity(), torch.zeros(1), seconds=0.001) == pytest.approx(2.0)
