"""Where the penalty enters a step: after unscale, before clip; what that means for mixed precision,
clipping and short runs.
"""

import copy

import pytest
import torch

from data.config import load_data
from models import build_model
from prune_methods import ChannelIndex, Prunable, find_groups
from prune_methods.sparsity.penalties import PENALTIES, make_penalty
from prune_methods.surgery.recalibrate import FreshStatistics
from recipes.session import TrainingRun
from recipes.train_sparse import sparse_hooks
from tests.prune_toys import TINY_REP
from tests.test_sparsity import residual
from tests.test_sparsity_run import HYP, sparse_trainer
from tests.test_trainer import ToyLoader, same, weights
from utils.config import Hyp
from utils.options.sparse import METHODS, SparseOptions

SCALE = 65536.0  # where fp16's loss scaling starts


def trained(
    method: str, *, scaled: bool = False, bfloat16: bool = False, still: bool = False
) -> dict[str, torch.Tensor]:
    """Weights after a short sparse training."""
    trainer, _ = sparse_trainer(method, 0.5, still=still, epochs=2)
    if scaled:
        trainer.precision.scaler = torch.amp.GradScaler("cpu", init_scale=SCALE)
    if bfloat16:
        trainer.precision.mode = "bf16"
    trainer.fit()
    return weights(trainer.task)


@pytest.mark.parametrize("method", METHODS)
def test_loss_scaling_changes_no_bit(method):
    """A power of two scales and unscales without rounding.

    A penalty added before unscale would act 65536 times too weakly.
    """
    assert same(trained(method), trained(method, scaled=True))


@pytest.mark.parametrize("method", METHODS)
def test_the_penalty_is_float32_under_autocast(method):
    """With a loss that pulls at nothing all that moves gamma is the penalty."""
    assert same(
        trained(method, still=True), trained(method, still=True, scaled=True, bfloat16=True)
    )


def test_autocast_is_really_on():
    """Else the test above would hold for any code."""
    assert not same(trained("slim"), trained("slim", bfloat16=True))


def test_the_penalty_is_clipped_with_the_loss():
    """One step with reg 100 on Chain's 14 gammas: norm 10 is left, 10 / sqrt(14) each; Nesterov's
    first step is lr (1 + m) g.
    """
    hyp = HYP.replace(warmup_epochs=0, lr0=0.05, momentum=0.5)
    trainer, hook = sparse_trainer(
        reg=100.0, still=True, epochs=1, hyp=hyp, loader=ToyLoader(batches=2)
    )
    trainer.fit()
    gamma = trainer.task.model.net.stem[1].weight
    assert trainer.step == 1 and torch.allclose(
        gamma, torch.full((8,), 1 - 0.05 * 1.5 * 10 / 14**0.5), atol=1e-5
    )
    assert hook.clip == pytest.approx(10 / (100 * 14**0.5), rel=1e-4)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("decay", ["linear", "cosine", "constant"])
def test_a_run_of_one_epoch_keeps_its_strength(method, decay, tmp_path):
    """The fall over epochs has epochs - 1 in its denominator."""
    trainer, hook = sparse_trainer(method, None, tmp_path, epochs=1, decay=decay)
    trainer.fit()
    assert hook.reg is not None and hook.strength == hook.reg > 0
    assert all(value.isfinite().all() for value in weights(trainer.task).values())
    assert (tmp_path / "bn" / "stats.csv").read_text().count("\n") == 1 + 2


def course_of(method: str, reg: float, steps: int) -> torch.Tensor:
    """Plain gradient descent of the penalty alone: (steps, stem's and inner's gamma of a coupled
    channel).
    """
    model = residual(stem=(1.0, 1.0), inner=(0.5, 0.5))
    penalty = make_penalty(method, Prunable.of(model).index)
    penalty.bind(model)
    seen = []
    for _ in range(steps):
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        penalty.add(reg)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= parameter.grad
        seen.append(torch.stack([model.stem[1].weight[0], model.inner[1].weight[0]]).detach())
    return torch.stack(seen)


def test_slim_and_group_slim_part_on_coupled_batch_norms():
    """Under group lasso what can only be cut together goes to zero together; under slim the weaker
    gamma goes alone.
    """
    alone, together = course_of("slim", 0.01, 60), course_of("group_slim", 0.01, 60)
    assert alone[49].tolist() == pytest.approx([0.5, 0.0], abs=1e-5)
    assert torch.allclose(together[:, 0], 2 * together[:, 1], atol=1e-5) and together[49, 1] > 0.1


def test_group_reg_and_group_sl_part_in_time():
    """Of equal strength in the first step, then group_reg grows while group_sl keeps its rule;
    group_norm has no penalty.
    """
    model = residual(stem=(1.0, 0.2), inner=(1.0, 0.2))
    found, pulls = find_groups(model), {}
    for method in ("group_sl", "group_reg"):
        net = copy.deepcopy(model)
        penalty = make_penalty(
            method, ChannelIndex(net, found), settings={"delta_reg": 0.1, "delta_every": 1}
        )
        penalty.bind(net)
        pulls[method] = []
        for _ in range(3):
            net.stem[1].weight.grad = torch.zeros(2)
            penalty.add(0.1)
            pulls[method].append((net.stem[1].weight.grad / net.stem[1].weight.detach()).tolist())
    assert pulls["group_reg"] == [
        pytest.approx([0.1, 0.1]),
        pytest.approx([0.1, 0.2]),
        pytest.approx([0.1, 0.3]),
    ]
    assert pulls["group_sl"] == [pytest.approx([0.1, 1.6])] * 3  # 2^4 times for the weakest
    assert set(PENALTIES) == set(METHODS) and "group_norm" not in PENALTIES.names()


def hooks_of(caplog, tmp_path, **options) -> str:
    opt = SparseOptions(cfg="x", data="demo", **options)
    run = TrainingRun(build_model(TINY_REP), load_data("demo"), Hyp(), opt, tmp_path)
    with caplog.at_level("WARNING"):
        hooks = sparse_hooks(run)
    assert any(isinstance(hook, FreshStatistics) for hook in hooks)
    return caplog.text


@pytest.mark.parametrize("options", [{"reg_decay": "linear"}, {"reg_end_factor": 0.1}])
def test_a_decay_given_to_group_reg_is_a_warning(options, caplog, tmp_path):
    assert "no effect on group_reg" in hooks_of(caplog, tmp_path, method="group_reg", **options)


@pytest.mark.parametrize(
    "options",
    [
        {"method": "slim", "delta_reg": 1e-3},
        {"method": "group_reg", "reg": "auto", "delta_reg": 1e-3},
    ],
)
def test_a_growth_that_is_not_used_is_a_warning(options, caplog, tmp_path):
    assert "--delta-reg: no effect" in hooks_of(caplog, tmp_path, **options)


def test_no_warning_where_a_decay_has_an_effect(caplog, tmp_path):
    assert not hooks_of(caplog, tmp_path, method="group_sl", reg_decay="cosine")
    assert not hooks_of(caplog, tmp_path, method="group_reg")
    assert not hooks_of(caplog, tmp_path, method="group_reg", delta_reg=1e-3, delta_every=5)
