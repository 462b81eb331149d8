"""Parameter groups, optimizers and the schedule, against values worked out by hand."""

import pytest
import torch
from torch import nn

from utils.config import Hyp
from utils.engine.optim import (
    Schedule,
    accumulation,
    apply_step_config,
    build_optimizer,
    cosine,
    linear,
    one_cycle,
    parameter_groups,
)
from utils.errors import UserError


class Implicit(nn.Module):
    def __init__(self):
        super().__init__()
        self.implicit = nn.Parameter(torch.zeros(1, 2, 1, 1))


def net():
    return nn.Sequential(
        nn.Conv2d(3, 2, 1),
        nn.BatchNorm2d(2),
        nn.Conv2d(2, 2, 1, bias=False),
        Implicit(),
        nn.GroupNorm(1, 2),
    )


def test_groups_have_yolos_order_and_members():
    module = net()
    groups = parameter_groups(module)
    found = {
        name: [next(n for n, q in module.named_parameters() if q is p) for p in ps]
        for name, ps in groups.items()
    }
    assert list(found.items()) == [
        ("bias", ["0.bias", "1.bias", "4.bias"]),
        ("decay", ["0.weight", "2.weight"]),
        ("no_decay", ["1.weight", "3.implicit", "4.weight"]),
    ]


def test_frozen_and_shared_parameters():
    module = net()
    module[0].requires_grad_(False)
    module.add_module("again", module[2])
    groups = parameter_groups(module)
    assert [len(ps) for ps in groups.values()] == [2, 1, 3]
    with pytest.raises(UserError, match="every parameter is frozen"):
        build_optimizer(net().requires_grad_(False), "SGD", Hyp(), 16)


@pytest.mark.parametrize(("batch", "expected"), [(16, 4), (64, 1), (128, 1), (24, 3), (40, 2)])
def test_accumulation(batch, expected):
    assert accumulation(64, batch) == expected


def test_weight_decay_is_meant_at_the_nominal_batch():
    decay = [
        g["weight_decay"]
        for g in build_optimizer(net(), "SGD", Hyp(weight_decay=0.0005), 24).param_groups
    ]
    assert decay == [
        0.0,
        pytest.approx(0.0005 * 24 * 3 / 64),
        0.0,
    ]  # 72 images make a step, 64 were meant


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW"])
def test_optimizers_step_as_torchs_plain_ones(name):
    """Fused kernels with our preset momentum against the single-tensor implementation."""
    torch.manual_seed(0)
    ours, plain = nn.Linear(4, 3), nn.Linear(4, 3)
    plain.load_state_dict(ours.state_dict())
    hyp = Hyp(lr0=0.1, momentum=0.9, weight_decay=0.01, nbs=16)
    optimizer = build_optimizer(ours, name, hyp, 16)
    groups = [
        {"params": [plain.bias], "weight_decay": 0.0},
        {"params": [plain.weight], "weight_decay": 0.01},
    ]
    extra = {"momentum": 0.9, "nesterov": True} if name == "SGD" else {"betas": (0.9, 0.999)}
    reference = getattr(torch.optim, name)(groups, lr=0.1, foreach=False, fused=False, **extra)
    for _ in range(4):
        x = torch.randn(5, 4)
        for model, opt in ((ours, optimizer), (plain, reference)):
            opt.zero_grad()
            model(x).pow(2).sum().backward()
            opt.step()
    assert torch.allclose(ours.weight, plain.weight, atol=1e-6) and torch.allclose(
        ours.bias, plain.bias, atol=1e-6
    )


def test_unknown_optimizer():
    with pytest.raises(UserError, match="Lion"):
        build_optimizer(net(), "Lion", Hyp(), 16)


def test_factors():
    assert [linear(0.1, 10)(e) for e in (0, 5, 10)] == pytest.approx([1, 0.55, 0.1])
    assert [cosine(0.1, 10)(e) for e in (0, 5, 10)] == pytest.approx([1, 0.55, 0.1])
    assert cosine(0.1, 4)(1) == pytest.approx(1 - 0.9 * (1 - 2**-0.5) / 2)
    assert [one_cycle(0.01, 10)(e) for e in (0, 3, 10)] == pytest.approx([0.04, 1, 0.01])
    rising = [one_cycle(0.01, 10)(e) for e in range(11)]
    assert rising[:4] == sorted(rising[:4]) and rising[3:] == sorted(rising[3:], reverse=True)


def schedule(epochs=10, batches=100, **hyp):
    values = {
        "lr0": 0.01,
        "lrf": 0.1,
        "warmup_epochs": 2,
        "warmup_bias_lr": 0.1,
        "warmup_momentum": 0.8,
        "momentum": 0.9,
    }
    return Schedule(Hyp(**values | hyp), epochs=epochs, batches=batches, batch_size=16)


def test_warmup_values():
    start, middle, after = (schedule().at(batch) for batch in (0, 150, 200))
    assert (
        start.lrs == pytest.approx((0.1, 0, 0)) and start.momentum == 0.8 and start.accumulate == 1
    )
    lr = 0.01 * (1 - 0.1 * 0.9)  # epoch 1 of 10
    assert middle.lrs == pytest.approx((0.1 + (lr - 0.1) * 0.75, lr * 0.75, lr * 0.75))
    assert middle.momentum == pytest.approx(0.875) and middle.accumulate == round(1 + 3 * 0.75)
    assert (
        after.lrs == pytest.approx((0.01 * (1 - 0.2 * 0.9),) * 3)
        and after.momentum == 0.9
        and after.accumulate == 4
    )


@pytest.mark.parametrize(
    ("epochs", "batches", "warmup_epochs", "expected"),
    [(10, 100, 2, 200), (100, 10, 3, 100), (6, 10, 1, 20), (6, 10, 3, 30), (10, 100, 0, 0)],
)
def test_length_of_warmup(epochs, batches, warmup_epochs, expected):
    """At least 100 batches, but for that reason never more than a third of the run; 0
    means none.
    """
    assert schedule(epochs, batches, warmup_epochs=warmup_epochs).warmup == expected


def test_setting_reaches_the_optimizer():
    sgd, adam = (
        build_optimizer(net(), "SGD", Hyp(), 16),
        build_optimizer(net(), "Adam", Hyp(momentum=0.9), 16),
    )
    for optimizer in (sgd, adam):
        apply_step_config(optimizer, schedule().at(0))
        assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([0.1, 0, 0])
    assert [g["momentum"] for g in sgd.param_groups] == [0.8] * 3
    assert adam.param_groups[0]["betas"] == (0.9, 0.999)
