"""Reconstruction of a cut: exact where it can be, idle where nothing was lost."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models import build_model
from prune_methods import Prunable
from prune_methods.groups.graph import raw_outputs
from prune_methods.surgery.calibration import Calibration, pixel_weights
from prune_methods.surgery.pixels import PixelSample, input_rows, output_rows
from prune_methods.surgery.recalibrate import renew_bn
from prune_methods.surgery.reconstruct import FitSettings, reconstruct
from tests.prune_toys import TINY_REP, Chain, Csp, Rep, randomised, toy, unit

EXACT = FitSettings(ridge=1e-6)


def calibration(count=12, size=24, batch=5):
    """Return random images with the mean square of the outputs as their loss."""
    images = torch.randint(256, (count, 3, size, size), generator=torch.Generator().manual_seed(0))

    def loss(model, which):
        outputs = raw_outputs(model(images[which] / 255))
        outputs = outputs if isinstance(outputs, list | tuple) else [outputs]
        return sum(y.square().mean() for y in outputs) * len(images[which])

    return Calibration(images.byte(), loss, batch)


def with_copies(layer, norm):
    """Make the second half of a layer's channels copies of the first half."""
    half = layer.weight.shape[0] // 2
    with torch.no_grad():
        layer.weight[half:] = layer.weight[:half]
        for name in ("weight", "bias", "running_mean", "running_var"):
            getattr(norm, name)[half:] = getattr(norm, name)[:half]
    return half


def outputs(model, x):
    with torch.no_grad():
        found = raw_outputs(copy.deepcopy(model).eval()(x))
    return found[0] if isinstance(found, list | tuple) else found


def cut_by(model, **gone):
    """Return the channels of a model, masks without the given ones, and the cut model."""
    prunable = Prunable.of(model)
    masks = prunable.index.by_group(prunable.index.all_kept())
    for name, channels in gone.items():
        masks[name.replace("_", ".")][channels] = False
    return prunable, masks, prunable.cut(masks)


def relative(ours, theirs):
    return float((ours - theirs).abs().max() / theirs.abs().max())


@pytest.mark.parametrize("layer", ["stem", "mid"])
def test_removed_copies_are_made_up_for_exactly(layer):
    model = toy(Chain)
    block = getattr(model, layer)
    half = with_copies(block[0], block[1])
    prunable, masks, smaller = cut_by(model, **{f"{layer}_0": slice(half, None)})
    x = torch.rand(2, 3, 24, 24, generator=torch.Generator().manual_seed(5))
    assert relative(outputs(smaller, x), outputs(model, x)) > 0.05
    reconstruct(prunable.index, masks, smaller, calibration(), EXACT)
    assert relative(outputs(smaller, x), outputs(model, x)) < 1e-4


class Linear(nn.Module):
    """Layers without activation, whose removed channel is a sum of kept ones: bias, norm, none."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.mid = nn.Conv2d(4, 6, 3, bias=False)
        self.last = nn.Conv2d(6, 5, 1)

    def forward(self, x):
        return self.last(self.mid(self.norm(self.stem(x))))


def test_linear_combinations_are_exact_without_activations():
    model = randomised(Linear())
    with torch.no_grad():
        model.stem.weight[3] = model.stem.weight[0] - 2 * model.stem.weight[1]
    prunable, masks, smaller = cut_by(model, stem=[3])
    found = reconstruct(prunable.index, masks, smaller, calibration(), EXACT)
    x = torch.rand(2, 3, 24, 24)
    assert [fit.layer for fit in found.fits] == ["stem", "mid", "last"] and not found.left
    # `mid` has neither bias nor norm: the constant of the removed channel cannot be given to it,
    # but lies in the span of the others' constants or is taken over by the bias of `last`.
    assert relative(outputs(smaller, x), outputs(model, x)) < 1e-3


def test_a_constant_channel_goes_into_the_shift():
    model = toy(Chain)
    with torch.no_grad():
        model.mid[1].weight[2:] = 0  # constant: SiLU(beta)
    prunable, masks, smaller = cut_by(model, mid_0=[2, 3, 4, 5])
    reconstruct(prunable.index, masks, smaller, calibration(), EXACT)
    x = torch.rand(2, 3, 24, 24)
    assert relative(outputs(smaller, x), outputs(model, x)) < 1e-4


def test_without_a_cut_nothing_changes():
    model = toy(Csp)
    prunable, masks, same = cut_by(model)
    found = reconstruct(prunable.index, masks, same, calibration())
    assert found.fits == ()
    for name, value in model.state_dict().items():
        assert torch.equal(value, same.state_dict()[name]), name


@pytest.mark.parametrize("kind", [Csp, Rep])
def test_any_graph_comes_closer_and_the_uncut_model_stays(kind):
    model = toy(kind)
    before = copy.deepcopy(model.state_dict())
    prunable = Prunable.of(model)
    keep = prunable.index.all_kept()
    keep[:-1:3] = False
    masks = prunable.index.by_group(keep)
    smaller = prunable.cut(masks)
    x = torch.rand(2, 3, 24, 24, generator=torch.Generator().manual_seed(9))
    lost = (outputs(smaller, x) - outputs(model, x)).square().mean()
    found = reconstruct(prunable.index, masks, smaller, calibration())
    left = (outputs(smaller, x) - outputs(model, x)).square().mean()
    assert left < 0.6 * lost
    assert all(fit.after <= fit.before + 1e-6 for fit in found.fits)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(p.grad is None for p in model.parameters())


def test_the_recording_batch_does_not_matter():
    results = []
    for batch in (1, 5, 12):
        model = toy(Csp)
        prunable = Prunable.of(model)
        keep = prunable.index.all_kept()
        keep[:-1:4] = False
        masks = prunable.index.by_group(keep)
        smaller = prunable.cut(masks)
        reconstruct(prunable.index, masks, smaller, calibration(batch=batch))
        results.append(outputs(smaller, torch.full((1, 3, 24, 24), 0.4)))
    assert relative(results[1], results[0]) < 1e-3 and relative(results[2], results[0]) < 1e-3


def test_a_yolo_with_branches_and_implicits():
    model = randomised(build_model(TINY_REP))
    prunable = Prunable.of(model)
    keep = prunable.index.all_kept()
    keep[:-1:3] = False
    masks = prunable.index.by_group(keep)
    smaller = prunable.cut(masks)
    x = torch.rand(1, 3, 64, 64)
    lost = (outputs(smaller, x) - outputs(model, x)).square().mean()
    found = reconstruct(prunable.index, masks, smaller, calibration(size=64))
    assert len(found.fits) > 10
    assert (outputs(smaller, x) - outputs(model, x)).square().mean() < 0.6 * lost


class Twice(nn.Module):
    """A layer that runs twice, and one whose padding is not zeros."""

    def __init__(self):
        super().__init__()
        self.stem, self.shared = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 1)
        self.odd = nn.Conv2d(6, 4, 3, padding=1, padding_mode="reflect")
        self.out = nn.Conv2d(4, 2, 1)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        return self.out(torch.relu(self.odd(self.shared(torch.relu(self.shared(x))))))


def test_layers_that_cannot_be_fitted_are_named_and_left():
    model = toy(Twice)
    prunable = Prunable.of(model)
    keep = prunable.index.all_kept()
    keep[0] = False
    masks = prunable.index.by_group(keep)
    smaller = prunable.cut(masks)
    before = copy.deepcopy(smaller.state_dict())
    found = reconstruct(prunable.index, masks, smaller, calibration())
    assert found.left == {"shared": "it runs 2 times", "odd": "its padding mode is reflect"}
    assert torch.equal(smaller.shared.weight, before["shared.weight"])
    assert torch.equal(smaller.odd.weight, before["odd.weight"])


def test_new_statistics_leave_the_function_alone():
    model = toy(Csp).eval()
    x = torch.rand(4, 3, 24, 24)
    before = outputs(model, x)
    renew_bn(model, x)
    assert relative(outputs(model, x), before) < 1e-5
    trained = copy.deepcopy(model).train()(x)[0]  # now train mode computes the same
    assert relative(trained.detach(), before) < 1e-3


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(6, 4, 3, 2, 1),
        nn.Conv2d(6, 4, (1, 3), padding=(0, 2), dilation=(1, 2)),
        nn.Conv2d(6, 6, 3, padding=1, groups=6),
        nn.Conv2d(6, 4, 3, padding=1, groups=2),
    ],
)
def test_rows_times_weights_are_the_outputs(layer):
    x = torch.randn(2, 6, 9, 7)
    y = layer(x)
    at = PixelSample(2, rows=20, rows_per_column=0).of("a", y[0, 0].numel(), 1)
    weight = layer.weight.flatten(1).unflatten(0, (layer.groups, -1)).mT
    bias = layer.bias.unflatten(0, (layer.groups, 1, -1))
    torch.testing.assert_close(
        input_rows(layer, x, at) @ weight + bias, output_rows(layer, y, at), rtol=1e-4, atol=1e-5
    )


def test_rows_of_tokens():
    layer, x = nn.Linear(5, 3), torch.randn(2, 4, 6, 5)
    at = torch.tensor([[0, 7, 23], [1, 1, 5]])
    wanted = layer(x).flatten(1, 2)[torch.arange(2)[:, None], at].flatten(0, 1)
    torch.testing.assert_close(output_rows(layer, layer(x), at)[0], wanted)
    torch.testing.assert_close(layer(input_rows(layer, x, at))[0], wanted)


def test_pixel_weights_by_hand():
    model = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False))
    images = torch.zeros(3, 1, 2, 2, dtype=torch.uint8)
    factors = torch.tensor([3.0, 4.0])[:, None, None]

    def loss(model, which):
        return (model(images[which] / 255) * factors).sum()

    found = pixel_weights(model, ["0"], Calibration(images, loss, 2))
    # d loss / d output is 3 and 4 at every pixel: sqrt(9 + 16)
    torch.testing.assert_close(found["0"], torch.full((3, 4), 5.0))


def test_a_constant_goes_into_the_running_mean_right_behind():
    model = randomised(nn.Sequential(unit(3, 6), unit(6, 4), nn.Conv2d(4, 2, 1)))
    with torch.no_grad():
        model[0][1].weight[4:] = 0  # constants, as large as what is kept
        model[0][1].bias[4:] = 2
    prunable = Prunable.of(model)
    masks = prunable.index.by_group(prunable.index.all_kept())
    masks["0.0"][4:] = False
    smaller = prunable.cut(masks)
    x = torch.rand(2, 3, 24, 24)
    assert relative(outputs(smaller, x), outputs(model, x)) > 0.05
    reconstruct(prunable.index, masks, smaller, calibration(), EXACT)
    assert relative(outputs(smaller, x), outputs(model, x)) < 1e-3


class Lossy(nn.Module):
    """A layer that cannot be fitted, so that the next one sees other inputs in the cut model."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 1)
        self.odd = nn.Conv2d(6, 4, 3, padding=1, padding_mode="reflect")
        self.out = nn.Conv2d(4, 2, 1)

    def forward(self, x):
        return self.out(F.silu(self.odd(F.silu(self.stem(x)))))


def test_the_share_weighs_the_inputs_of_both_models():
    """The uncut model's own inputs ask for its own weights; the cut model's ask for others."""
    moved = {}
    for share in (0.0, 0.5, 1.0):
        model = toy(Lossy)
        prunable, masks, smaller = cut_by(model, stem=[0, 1])
        settings = FitSettings(ridge=1e-6, share=share)
        reconstruct(prunable.index, masks, smaller, calibration(), settings)
        moved[share] = float((smaller.out.weight - model.out.weight).detach().abs().max())
    assert moved[1.0] < 1e-4 and min(moved[0.5], moved[0.0]) > 0.01
    assert abs(moved[0.5] - moved[0.0]) > 0.005
