"""Sparse training in the loop: how far gamma gets, resuming, accumulation, weight decay, and what
is recorded.
"""

import copy
import csv
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from prune_methods import Prunable
from prune_methods.sparsity.bn_stats import BNStatsLogger, SparsestCheckpoints, free_speed_up
from prune_methods.sparsity.estimate import Outcome, describe_estimate
from prune_methods.sparsity.hook import Sparsity
from prune_methods.sparsity.penalties import Forecast, QuadraticPenalty, make_penalty
from prune_methods.sparsity.slice_penalties import GroupRegPenalty
from prune_methods.sparsity.step_sizes import StepSizes, decay_factor, step_sizes
from prune_methods.surgery.recalibrate import FreshStatistics
from tests.prune_toys import Chain, toy
from tests.test_trainer import Batch, ToyLoader, make_trainer, same, weights
from utils.config import Hyp
from utils.engine.hooks import Hook
from utils.engine.optim import Schedule
from utils.engine.tasks import Task
from utils.errors import UserError
from utils.options.sparse import METHODS, SparseOptions

HYP = Hyp(warmup_epochs=1, nbs=4, lr0=0.01, ema_tau=1)


class Outputs(nn.Module):
    """Chain with one number an image, as the toy loader's targets want it."""

    def __init__(self):
        super().__init__()
        self.net = toy(Chain)

    def forward(self, x):
        return self.net(x).mean((1, 2, 3))


def penalty_of(model, method, **more):
    return make_penalty(method, Prunable.of(model).index, settings=more)


class Still(Task):
    """A loss without influence on the weights: only the penalty moves them."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images, targets):
        nothing = sum(p.sum() for p in self.model.parameters()) * 0.0
        return {"loss": nothing, "box": nothing.detach()}


def sparse_trainer(
    method="slim",
    reg: float | None = 0.05,
    record=None,
    still=False,
    hyp=HYP,
    epochs=4,
    more=(),
    **options,
):
    """A trainer with the hooks of train_sparse.py; `still`: only the penalty acts."""
    torch.manual_seed(1)
    model = Outputs()
    if still:
        for norm in (model.net.stem[1], model.net.mid[1]):
            nn.init.ones_(norm.weight)
    hook = Sparsity(
        model,
        penalty_of(model, method, delta_every=2, delta_reg=0.01),
        reg,
        decay=options.pop("decay", "linear"),
    )
    hooks = [
        hook,
        *([] if record is None else [BNStatsLogger(hook, record, pictures=False)]),
        *more,
    ]
    trainer = make_trainer(epochs=epochs, hooks=hooks, model=model, hyp=hyp, **options)
    if still:
        trainer.task = trainer.net = Still(model)
    return trainer, hook


@pytest.mark.parametrize(
    ("batches", "reg", "left"),
    [
        (25, 5e-4, 0.93),
        (25, 2e-3, 0.73),
        (25, 1e-2, 0.0),
        (13, 5e-4, 0.965),
        (13, 2e-3, 0.86),
        (13, 1e-2, 0.31),
    ],
)
def test_reach_is_what_a_simulated_run_does(batches, reg, left):
    """100 epochs of SGD .01 with momentum .937, lr and reg falling linearly: the published table,
    and torch's own optimizer.
    """
    hyp = Hyp(lr0=0.01, lrf=0.01, momentum=0.937, warmup_epochs=0, nbs=16)
    schedule, factor = (
        Schedule(hyp, epochs=100, batches=batches, batch_size=16),
        decay_factor("linear", 0.01, 100),
    )
    penalty = penalty_of(toy(Chain), "slim")
    told, _ = penalty.expected_gamma(step_sizes(schedule, 100, factor), reg, 1.0)
    gamma = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([gamma], lr=1.0, momentum=0.937, nesterov=True)
    for number in range(100 * batches):
        optimizer.param_groups[0]["lr"] = schedule.at(number).lrs[2]
        gamma.grad = reg * factor(number // batches) * gamma.detach().sign()
        optimizer.step()
    assert told == pytest.approx(left, abs=0.015) and abs(gamma.item()) == pytest.approx(
        left, abs=0.015
    )


@pytest.mark.parametrize("method", METHODS)
def test_auto_gets_there_at_seventy_percent(method):
    schedule = Schedule(Hyp(nbs=16), epochs=100, batches=25, batch_size=16)
    penalty = penalty_of(toy(Chain), method)
    steps = step_sizes(schedule, 100, decay_factor("linear", 0.01, 100))
    reg = penalty.forecast(steps, 1.5, None).reg
    if isinstance(penalty, GroupRegPenalty):
        # the strongest are hardly touched
        assert penalty.expected_gamma(steps, reg, 1.5)[1] == pytest.approx(0.9 * 1.5)
    left, strongest = penalty.expected_gamma(steps.early(), reg, 1.5)
    wanted = {"group_sl": 0.01, "group_reg": 0.75}.get(method, 0.0)  # of 1.5
    assert left == pytest.approx(wanted, abs=1e-6) and strongest >= left
    if isinstance(penalty, GroupRegPenalty):
        penalty.delta_reg /= 2
    assert penalty.expected_gamma(steps.early(), reg / 2, 1.5)[0] > 1.1 * left


class PlainL2(QuadraticPenalty):
    """reg * gamma: what a user might add."""

    def bind(self, model):
        self._gammas = [model.get_submodule(name).weight for name in self.norms]

    def add(self, reg):
        for gamma in self._gammas:
            gamma.grad.add_(gamma.detach(), alpha=reg)


def test_the_estimate_of_a_penalty_of_the_users_own_is_its_own():
    """All channels are pulled alike: auto leaves .01 of each, and half of it the root of that."""
    hyp = Hyp(lr0=0.01, lrf=0.01, momentum=0.937, warmup_epochs=0, nbs=16)
    schedule = Schedule(hyp, epochs=50, batches=10, batch_size=16)
    factor = decay_factor("linear", 0.01, 50)
    steps = step_sizes(schedule, 50, factor)
    model = toy(Chain)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
    penalty = PlainL2(Prunable.of(model).index)
    reg = penalty.forecast(steps, 1.0, None).reg
    assert penalty.expected_gamma(steps.early(), reg, 1.0) == pytest.approx((0.01, 0.01))
    reg /= 10
    penalty.bind(model)
    gammas = [model.get_submodule(name).weight for name in penalty.norms]
    optimizer = torch.optim.SGD(gammas, lr=1.0, momentum=0.937, nesterov=True)
    for number in range(500):
        optimizer.param_groups[0]["lr"] = schedule.at(number).lrs[2]
        optimizer.zero_grad(set_to_none=False)
        for gamma in gammas:
            gamma.grad = torch.zeros_like(gamma)
        penalty.add(reg * factor(number // 10))
        optimizer.step()
    weakest, strongest = penalty.expected_gamma(steps, reg, 1.0)
    assert weakest == strongest == pytest.approx(float(gammas[0][0]), rel=0.03)
    assert 0.5 < weakest < 0.7


def test_decay_factors():
    assert [decay_factor("linear", 0.01, 5)(e) for e in (0, 2, 4)] == pytest.approx(
        [1, 0.505, 0.01]
    )
    assert [decay_factor("cosine", 0.01, 5)(e) for e in (0, 1, 4)] == pytest.approx(
        [1, 0.01 + 0.99 * (2 + 2**0.5) / 4, 0.01]
    )
    assert [decay_factor("constant", 0.01, 5)(e) for e in (0, 4)] == [1, 1]
    assert decay_factor("linear", 0.01, 1)(0) == 1 and decay_factor("cosine", 0.01, 1)(0) == 1


def test_course_follows_warm_up_and_accumulation():
    """Batches of 8 for a nominal 16: steps after two batches and at the end of the epoch; warm-up
    of one epoch.
    """
    hyp = Hyp(nbs=16, warmup_epochs=1, lr0=0.1, lrf=1.0, momentum=0.9, warmup_momentum=0.5)
    schedule = Schedule(hyp, epochs=3, batches=3, batch_size=8)
    steps = step_sizes(schedule, 3, lambda epoch: 1.0 / (epoch + 1))
    first = [
        (0.1 * b / 3) / (1 - (0.5 + 0.4 * b / 3)) for b in (0, 2)
    ]  # accumulation is 1 at batch 0, then 1.33 and 1.67
    assert steps.moves[-4:].tolist() == pytest.approx([1.0] * 4) and steps.factors[
        -4:
    ].tolist() == pytest.approx([0.5, 0.5, 1 / 3, 1 / 3])
    assert steps.moves[0] == pytest.approx(first[0]) and first[1] == pytest.approx(
        steps.moves[len(steps.moves) - 5]
    )


def test_a_penalty_longer_than_the_clip_norm_pulls_no_harder():
    """Chain has 8 + 6 gammas: a gradient of norm 10 has 10 / sqrt(14) in each."""
    penalty, steps = (
        penalty_of(toy(Chain), "slim"),
        StepSizes(torch.full((4,), 0.01).numpy(), torch.ones(4).numpy()),
    )
    assert penalty.cap == pytest.approx(10 / 14**0.5)
    left = penalty.expected_gamma(steps, 1e6, 1.0)[0]
    assert left == pytest.approx(1 - 0.04 * penalty.cap, rel=1e-5)
    assert penalty.auto_reg(steps, 1.0) == penalty.cap
    told = penalty.forecast(steps, 1.0, None)
    assert told.reg == penalty.cap and told.wanted == pytest.approx(1 / 0.03)  # 3 of the 4 steps
    times = f"{told.wanted / penalty.cap:.2g}x the epochs"
    assert (
        f"no more than reg {penalty.cap:.2g}: what is missing takes {times}"
        in describe_estimate(told, 64)
    )


def test_told_reach_is_what_the_loop_does():
    """The whole machinery with a loss that pulls at nothing; no clipping, the penalty's gradient is
    short.
    """
    hyp = HYP.replace(momentum=0.5, warmup_epochs=0, lr0=0.05)
    trainer, hook = sparse_trainer(reg=0.5, still=True, epochs=12, hyp=hyp)
    trainer.fit()
    gammas = torch.cat(
        [
            g
            for n, g in trainer.task.model.state_dict().items()
            if n in ("net.stem.1.weight", "net.mid.1.weight")
        ]
    )
    expected = hook.forecast.expected[0]
    assert 0.2 < expected < 0.8
    assert torch.allclose(gammas, gammas.mean(), atol=1e-5) and float(
        gammas.mean()
    ) == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize("method", METHODS)
def test_resume_is_exact(method, tmp_path):
    """With the statistics and the checkpoint state, and auto solved only once."""
    reg = None if method in ("slim", "group_reg") else 0.05

    class Keep(Hook):
        def on_epoch_end(self, trainer):
            if trainer.epoch == 1:
                torch.save(copy.deepcopy(trainer.state_dict()), tmp_path / "state.pt")

    whole, hook = sparse_trainer(method, reg, tmp_path / "whole", more=[Keep()])
    whole.fit()
    resumed, again = sparse_trainer(method, reg, tmp_path / "resumed", more=[Keep()])
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    resumed.fit()
    assert same(weights(whole.task), weights(resumed.task)) and same(
        weights(whole.ema.model), weights(resumed.ema.model)
    )
    assert whole.history == resumed.history and (hook.reg, hook.start, hook.clip) == (
        again.reg,
        again.start,
        again.clip,
    )
    if isinstance(hook.penalty, GroupRegPenalty):
        assert (
            hook.penalty.delta_reg == again.penalty.delta_reg == hook.forecast.wanted != 0.01
        )  # what auto solved for
    first, second = (
        (tmp_path / name / "bn" / "stats.csv").read_text() for name in ("whole", "resumed")
    )
    assert first == second and len(first.splitlines()) == 1 + 4 * 2


def test_strength_zero_is_plain_training():
    """slim touches no weight decay, since gammas have none."""
    torch.manual_seed(1)
    plain = make_trainer(epochs=3, model=Outputs(), hyp=HYP)
    sparse, _ = sparse_trainer(reg=0.0, epochs=3)
    plain.fit()
    sparse.fit()
    assert same(weights(plain.task), weights(sparse.task)) and same(
        weights(plain.ema.model), weights(sparse.ema.model)
    )


@pytest.mark.parametrize("method", METHODS)
def test_the_penalty_works_and_weight_decay_does_not(method):
    """Without loss: weights under a penalty fall, and where reg is 0 nothing regularised moves,
    whatever the weight decay.
    """
    hyp = HYP.replace(weight_decay=0.5)
    for reg in (0.0, 0.05):
        trainer, hook = sparse_trainer(method, reg, still=True, hyp=hyp)
        hook.penalty.delta_reg = 0.0
        names = [f"{name}.weight" for name in hook.penalty.layers]
        assert all(
            f"net.{n}.weight" in names
            for n in (("stem.0", "out") if hook.penalty.quadratic else ("stem.1", "mid.1"))
        )
        before = weights(trainer.task.model)
        trainer.fit()
        after = trainer.task.model.state_dict()
        for name in names:
            lighter = after[name].norm() < before[name].norm()
            assert lighter if reg else torch.equal(after[name], before[name]), name
        free = [
            n for n, p in trainer.task.model.named_parameters() if p.dim() > 1 and n not in names
        ]
        assert all(after[name].norm() < before[name].norm() for name in free)
        assert not any(hasattr(m, "decay_free") for m in trainer.task.model.modules())


class FixedLoader(ToyLoader):
    """Eight images an epoch, the same however many make a batch."""

    def __iter__(self):
        images = torch.arange(8 * 3 * 25).reshape(8, 3, 5, 5).remainder(251).to(torch.uint8)
        for part in images.split(self.size):
            yield Batch(part, part.float().mean((1, 2, 3))[:, None] / 100)


class FrozenStatistics(Outputs):
    """Batch norms in eval mode: in train mode an image's loss depends on its batch, and nothing
    could be equal.
    """

    def train(self, mode=True):
        return super().train(False)


@pytest.mark.parametrize("method", METHODS)
def test_accumulated_batches_take_the_same_path(method):
    paths = []
    for batches, size in ((2, 4), (4, 2)):
        torch.manual_seed(1)
        model = FrozenStatistics()
        hook = Sparsity(model, penalty_of(model, method, delta_every=2), 0.05)
        loader = FixedLoader(batches=batches, size=size)
        trainer = make_trainer(
            epochs=3, hooks=[hook], model=model, hyp=HYP.replace(warmup_epochs=0), loader=loader
        )
        trainer.fit()
        assert trainer.step == 6
        paths.append([row["sparse/mean_abs_gamma"] for row in trainer.history])
    assert paths[0] == pytest.approx(paths[1], rel=1e-5) and paths[0][0] > paths[0][-1]


def test_columns_and_statistics_have_the_right_values(tmp_path):
    trainer, hook = sparse_trainer("group_sl", 0.05, tmp_path)
    trainer.fit()
    gammas = torch.cat(
        [trainer.ema.model.net.stem[1].weight, trainer.ema.model.net.mid[1].weight]
    ).abs()
    last = trainer.history[-1]
    assert last["sparse/mean_abs_gamma"] == pytest.approx(float(gammas.mean())) and last[
        "sparse/reg"
    ] == pytest.approx(0.0005)
    with (tmp_path / "bn" / "stats.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(r["epoch"], r["layer"], r["channels"]) for r in rows[:2]] == [
        ("0", "net.stem.1", "8"),
        ("0", "net.mid.1", "6"),
    ]
    stem = trainer.ema.model.net.stem[1].weight.detach().abs()
    assert float(rows[-2]["p50"]) == pytest.approx(float(stem.quantile(0.5)), rel=1e-5)
    assert float(rows[-2]["p05"]) == pytest.approx(float(stem.quantile(0.05)), rel=1e-5)
    net = trainer.ema.model.net
    squares = (
        net.stem[0].weight.square().sum((1, 2, 3))
        + net.stem[1].weight.square()
        + net.mid[0].weight.square().sum((0, 2, 3))
    )
    assert float(rows[-2]["norm_mean"]) == pytest.approx(float(squares.sqrt().mean()), rel=1e-5)


def test_share_below_a_hundredth_and_free_speed_up():
    model = toy(Chain)
    penalty = penalty_of(model, "slim")
    assert free_speed_up(model, penalty) == 1.0
    model.stem[1].weight.data[:4] = (
        0.009  # half of the stem's 8: MACs 8*3*9 + 6*8*9 + 4*6 = 672 a pixel -> 348
    )
    assert free_speed_up(model, penalty) == pytest.approx(672 / 348)
    model.stem[1].weight.data[:] = torch.linspace(0, 0.009, 8)  # the largest stays: 27 + 54 + 24
    assert free_speed_up(model, penalty) == pytest.approx(672 / 105)


def test_sparsest_checkpoints_keep_the_best_of_each_decile(tmp_path):
    saved = []

    class Found:
        share = 0.0

    class Result:
        fitness = 0.0

    found = Found()
    hook = SparsestCheckpoints(
        found,
        tmp_path,
        lambda path, model, **fields: saved.append((path.name, fields["best_fitness"])),
    )  # type: ignore[arg-type]
    trainer, _ = sparse_trainer()
    trainer.result = Result()
    for share, fitness in (
        (0.05, 0.9),
        (0.3, 0.5),
        (0.39, 0.4),
        (0.35, 0.6),
        (0.41, 0.2),
        (1.0, 0.01),
    ):
        found.share, trainer.result.fitness = share, fitness
        hook.on_epoch_end(trainer)
    assert saved == [
        ("sparse_30.pt", 0.5),
        ("sparse_30.pt", 0.6),
        ("sparse_40.pt", 0.2),
        ("sparse_100.pt", 0.01),
    ]
    assert hook.state_dict() == {"best": {30: 0.6, 40: 0.2, 100: 0.01}}


def forecast(strength, wanted, **more) -> Forecast:
    base = {"start": 1.0, "reg": strength, "expected": (0.9, 0.93), "option": "--reg"}
    known = {"cap": 0.14, "grows": False, "strength": strength, "wanted": wanted}
    return Forecast(**{**base, **known, **more})


def outcome(**more) -> str:
    base = {
        "share": 0.0,
        "speed_up": 1.0,
        "start": 1.0,
        "mean": 0.93,
        "expected": 0.934,
        "reg": 5e-4,
    }
    return Outcome(**{**base, "wanted": 8e-3, "clip": 1.0, "cap": 0.14, **more}).verdict()


def test_verdicts():
    assert "58% of channels have |gamma| below 0.01; cutting just these gives 2.30x" in outcome(
        share=0.58, speed_up=2.3
    )
    assert (
        "gamma has moved by 0.07 of 1: this run needs --reg 0.008, or 16x the epochs" in outcome()
    )
    assert "clipped to 50% on average): this run needs --reg 0.016, or 32x" in outcome(clip=0.5)
    held = outcome(reg=8e-3, expected=0.0, mean=0.5)
    assert (
        "the penalty alone would have moved it by 1: the loss holds it: this run needs --reg 0.016,"
        " or 2x the epochs" in held
    )
    assert outcome(reg=0.14, wanted=0.14, expected=0.5, mean=0.75).endswith(
        "this run needs 2x the epochs"
    )  # no stronger passes
    capped = outcome(reg=0.14, wanted=1.54, expected=0.909, mean=0.91)
    assert capped.endswith("gamma has moved by 0.09 of 1: this run needs 11x the epochs")
    assert "holds it" not in outcome(reg=8e-3, expected=0.5, mean=0.5)  # as foretold
    assert outcome(grows=True, option="--delta-reg").endswith(
        "needs --delta-reg 0.008, or more epochs"
    )
    assert "that is what group_reg aims at" in outcome(grows=True, reg=5e-3, mean=0.5)
    fell = outcome(share=0.9, speed_up=9.0, best_map=0.548, last_map=0.283)
    assert (
        "the penalty itself took mAP50-95 from 0.548 to 0.283; a smaller --reg over more epochs"
        " takes less" in fell
    )
    assert outcome(share=0.9, speed_up=9.0, best_map=0.5, last_map=0.46).endswith(
        "will cost little"
    )
    assert outcome(wanted=None).endswith("a stronger --reg or more epochs")


def test_weak_strength_is_told_at_the_start():
    text = describe_estimate(forecast(5e-4, 8e-3, expected=(0.93, 0.93)), 64)
    assert (
        "from 1 to 0.93" in text
        and "--reg 0.008 (--reg auto) or 16x the epochs" in text
        and "64 images" in text
    )
    growing = {"grows": True, "option": "--delta-reg", "reg": 5e-4}
    grows = describe_estimate(forecast(1e-4, 8e-3, **growing), 64)
    assert "that is weak: half at 70% of the run takes --delta-reg 0.008 (--reg auto)" in grows
    assert "that is weak" not in describe_estimate(forecast(8e-3, 8e-3, **growing), 64)
    assert "that is weak" not in describe_estimate(forecast(8e-3, 8e-3), 64)


def test_adam_cannot_be_solved_for():
    trainer, _ = sparse_trainer(reg=None, optimizer="Adam")
    with pytest.raises(UserError, match="--reg auto"):
        trainer.fit()
    trainer, hook = sparse_trainer(reg=0.05, optimizer="AdamW", epochs=2)
    trainer.fit()
    assert hook.forecast is None and math.isfinite(trainer.history[-1]["sparse/mean_abs_gamma"])


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ({"reg": "x"}, "--reg 'x'"),
        ({"reg": "-1"}, "--reg -1"),
        ({"reg": "nan"}, "--reg nan"),
        ({"reg_end_factor": 2.0}, "--reg-end-factor"),
        ({"delta_reg": -1.0}, "--delta-reg"),
        ({"delta_every": 0}, "--delta-every"),
        ({"hist_every": -1}, "--hist-every"),
        ({"method": "lamp"}, "--method 'lamp'"),
        ({"data": ""}, "python train_sparse.py"),
    ],
)
def test_wrong_options(given, word):
    with pytest.raises(UserError, match=word):
        SparseOptions(**{"cfg": "yolov5n", "data": "demo", **given}).check()


def test_options_in_effect():
    assert METHODS == ["slim", "group_slim", "group_sl", "group_reg"]
    plain = SparseOptions(cfg="yolov5n", data="demo")
    assert (plain.strength, plain.decay, plain.end_factor, plain.patience) == (
        5e-4,
        "linear",
        0.01,
        0,
    )
    assert (
        SparseOptions(method="group_reg").decay == "constant"
        and SparseOptions(reg="auto").strength is None
    )
    assert SparseOptions.from_dict(
        {"imgsz": 64, "val_imgsz": 64, "method": "slim", "ignore": ["3"]}
    ).ignore == ("3",)  # type: ignore[attr-defined]


def test_the_averaged_model_has_statistics_of_its_own_weights_before_it_is_validated():
    """Of the epoch's last batches that make 128 images: the last two of 64 here."""
    loader, seen = ToyLoader(batches=4, size=64), []

    class Watch(Hook):
        def on_batch_end(self, trainer):
            seen.append(trainer.data.images.float() / 255)

    def validate(model):
        stem = [model.net.stem[0](images) for images in seen[-2:]]
        torch.testing.assert_close(
            model.net.stem[1].running_mean, torch.stack([x.mean((0, 2, 3)) for x in stem]).mean(0)
        )
        torch.testing.assert_close(
            model.net.stem[1].running_var, torch.stack([x.var((0, 2, 3)) for x in stem]).mean(0)
        )
        validated.append(model)
        return SimpleNamespace(fitness=0.0, map50=0.0, map=0.0, mp=0.0, mr=0.0, losses={})

    validated: list[nn.Module] = []
    trainer, _ = sparse_trainer(
        "group_sl",
        0.05,
        loader=loader,
        more=[Watch(), FreshStatistics()],
        epochs=2,
        evaluate=validate,
    )
    trainer.fit()
    assert len(validated) == 2
    without, _ = sparse_trainer("group_sl", 0.05, loader=ToyLoader(batches=4, size=64), epochs=2)
    without.fit()
    assert same(weights(trainer.task.model), weights(without.task.model)), (
        "training itself sees none of it"
    )


def test_validation_of_weights_that_shrink_fast_is_that_of_the_trained_network():
    """The penalty shrinks a filter by a percent a step; batch norm takes that out, in training.

    Old statistics do not.
    """

    def error(*hooks):
        trainer, _ = sparse_trainer(
            "group_reg",
            0.3,
            loader=FixedLoader(batches=1, size=8),
            epochs=60,
            still=True,
            more=hooks,
        )
        trainer.fit()
        images = torch.cat([batch.images for batch in trainer.loader]).float() / 255
        net = copy.deepcopy(trainer.ema.model)
        with torch.no_grad():
            return float(
                (net.eval()(images) - net.train()(images)).abs().max()
                / net.train()(images).abs().max()
            )

    assert error(FreshStatistics()) < 0.01 and error() > 0.2
