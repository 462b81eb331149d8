"""The moving average against its formula, tensor by tensor."""

import math

import torch
from torch import nn

from utils.engine.ema import ModelEMA


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))


def test_average_follows_the_formula_buffers_too():
    model = net()
    ema = ModelEMA(model, decay=0.9, tau=5)
    expected = {k: v.clone() for k, v in model.state_dict().items()}
    for update in range(1, 4):
        model(torch.randn(2, 3, 4, 4))  # moves the batch-norm statistics
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        ema.update()
        d = 0.9 * (1 - math.exp(-update / 5))
        for name, value in model.state_dict().items():
            old = expected[name]
            expected[name] = (
                d * old + (1 - d) * value if value.is_floating_point() else value.clone()
            )
    for name, value in ema.model.state_dict().items():
        assert torch.allclose(value.float(), expected[name].float(), atol=1e-6), name
    assert ema.model[1].num_batches_tracked == 3 and ema.updates == 3


def test_copy_is_apart_in_eval_mode_and_without_gradients():
    model = net().train()
    ema = ModelEMA(model)
    assert not ema.model.training and not any(p.requires_grad for p in ema.model.parameters())
    assert model.training and all(p.requires_grad for p in model.parameters())
    with torch.no_grad():
        model[0].weight.zero_()
    assert ema.model[0].weight.abs().sum() > 0


def test_equal_weights_stay_bit_identical():
    model = net()
    ema = ModelEMA(model)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    for _ in range(5):
        ema.update()
    assert all(torch.equal(v, before[k]) for k, v in ema.model.state_dict().items())


def test_first_updates_nearly_copy():
    model = net()
    ema = ModelEMA(model)
    with torch.no_grad():
        model[0].weight.fill_(1.0)
    old = ema.model[0].weight.clone()
    ema.update()
    d = 0.9999 * (1 - math.exp(-1 / 2000))
    assert torch.allclose(ema.model[0].weight, d * old + (1 - d), atol=1e-6) and d < 0.001
