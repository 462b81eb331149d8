"""The loop against toy tasks: order of a step, accumulation, resume, non-finite numbers, running
out of memory.
"""

from collections import namedtuple
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from utils.config import Hyp
from utils.engine.ema import ModelEMA
from utils.engine.hooks import Hook
from utils.engine.optim import Schedule, build_optimizer
from utils.engine.precision import Precision
from utils.engine.run_hooks import EarlyStopping
from utils.engine.seed import seed_everything
from utils.engine.tasks import Task
from utils.engine.trainer import Trainer
from utils.errors import UserError

Batch = namedtuple("Batch", "images targets")
CPU = torch.device("cpu")
HYP = Hyp(warmup_epochs=0, nbs=4, lr0=0.05, momentum=0.9)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, bias=False)
        self.bn = nn.BatchNorm2d(4)
        self.out = nn.Linear(4, 1)

    def forward(self, x):
        return self.out(self.bn(self.conv(x)).mean((2, 3))).squeeze(1)


class SquareTask(Task):
    """Sum of squared errors over the batch, as the detection loss is a sum."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images, targets):
        error = ((self.model(images) - targets[:, 0]) ** 2).sum()
        return {"loss": error, "box": error.detach() / len(images)}


class ToyLoader:
    """Batches that are a function of (epoch, index), with a dash of the global generator to prove
    that it is seeded.
    """

    def __init__(self, batches=4, size=2, poison=()):
        self.batches, self.size, self.poison, self.epoch = batches, size, poison, 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __len__(self):
        return self.batches

    def __iter__(self):
        for index in range(self.batches):
            images = torch.randint(0, 256, (self.size, 3, 5, 5), dtype=torch.uint8)
            targets = images.float().mean((1, 2, 3))[:, None] / 100 + self.epoch
            if self.epoch * self.batches + index in self.poison:
                targets[0] = float("nan")
            yield Batch(images, targets)


def make_trainer(epochs=3, loader=None, hyp=HYP, optimizer="SGD", hooks=(), model=None, **more):
    seed_everything(7)
    task = SquareTask(model or Net())
    loader = loader or ToyLoader()
    return Trainer(
        task=task,
        loader=loader,
        optimizer=build_optimizer(task, optimizer, hyp, loader.size),
        schedule=Schedule(hyp, epochs=epochs, batches=len(loader), batch_size=loader.size),
        ema=ModelEMA(task.model),
        epochs=epochs,
        precision=Precision("fp16", CPU),
        hooks=hooks,
        **more,
    )


def weights(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


class Recorder(Hook):
    def __init__(self):
        self.events = []

    def __getattribute__(self, name):
        if name.startswith("on_"):
            events = object.__getattribute__(self, "events")
            return lambda trainer: events.append((name, trainer.epoch, trainer.step))
        return object.__getattribute__(self, name)


def test_order_of_hooks_and_accumulation():
    recorder = Recorder()
    trainer = make_trainer(epochs=1, loader=ToyLoader(batches=3), hooks=[recorder])
    trainer.fit()
    names = [name.removeprefix("on_") for name, *_ in recorder.events]
    # nominal batch 4, batches of 2: a step after two batches and, for the odd one, at the end of
    # the epoch
    assert names == [
        "fit_start",
        "epoch_start",
        "batch_end",
        "grads_ready",
        "step_end",
        "batch_end",
    ] + [
        "grads_ready",
        "step_end",
        "batch_end",
        "train_epoch_end",
        "epoch_end",
        "fit_end",
    ]
    assert trainer.step == 2


def test_accumulated_gradient_is_the_sum_over_the_nominal_batch():
    seen = []

    class Grads(Hook):
        def on_grads_ready(self, trainer):
            seen.append(trainer.task.model.out.weight.grad.clone())

    class AlwaysEval(Net):
        def train(self, mode=True):
            return super().train(False)  # batch norm would tie the images of a batch together

    model = AlwaysEval().eval()
    whole, halves = ToyLoader(batches=1, size=4), ToyLoader(batches=2, size=2)
    data = torch.randint(0, 256, (4, 3, 5, 5), dtype=torch.uint8)
    target = torch.arange(4.0)[:, None]
    whole.__class__ = halves.__class__ = type(
        "Fixed", (ToyLoader,), {"__iter__": lambda s: iter(s.data)}
    )
    whole.data = [Batch(data, target)]
    halves.data = [Batch(data[:2], target[:2]), Batch(data[2:], target[2:])]
    for loader in (whole, halves):
        make_trainer(
            epochs=1, loader=loader, hyp=HYP.replace(lr0=1e-9), hooks=[Grads()], model=model
        ).fit()
    assert torch.allclose(seen[0], seen[1], rtol=1e-5)
    assert seen[0].abs().max() > 0.1


def test_gradient_is_clipped_to_norm_ten_after_the_hooks():
    steps = []

    class Huge(Hook):
        def on_grads_ready(self, trainer):
            for p in trainer.task.parameters():
                p.grad = torch.full_like(p, 1e3)
            self.before = weights(trainer.task)

        def on_step_end(self, trainer):
            after = trainer.task.state_dict()
            names = [name for name, _ in trainer.task.named_parameters()]
            steps.append(sum(((self.before[n] - after[n]) ** 2).sum() for n in names).sqrt().item())

    hyp = HYP.replace(lr0=0.01, momentum=0.0, weight_decay=0.0)
    make_trainer(epochs=1, loader=ToyLoader(batches=2), hyp=hyp, hooks=[Huge()]).fit()
    assert steps == [pytest.approx(0.01 * 10, rel=1e-3)]


def test_training_learns_and_repeats_itself_under_a_seed():
    runs = []
    for _ in range(2):
        trainer = make_trainer(epochs=5)
        trainer.fit()
        runs.append((weights(trainer.task), weights(trainer.ema.model), trainer.history))
    assert (
        same(runs[0][0], runs[1][0]) and same(runs[0][1], runs[1][1]) and runs[0][2] == runs[1][2]
    )
    trainer = make_trainer(epochs=5, hyp=HYP.replace(lr0=1e-9))
    trainer.fit()
    assert runs[0][2][-1]["train/box"] < 0.5 * trainer.history[-1]["train/box"]


def test_hooks_that_do_nothing_change_nothing():
    plain, hooked = make_trainer(), make_trainer(hooks=[Hook(), Hook()])
    plain.fit()
    hooked.fit()
    assert same(weights(plain.task), weights(hooked.task)) and plain.history == hooked.history


def test_a_state_with_other_hooks_is_one_line_and_changes_nothing():
    state = make_trainer(epochs=4, hooks=[Hook()]).state_dict()
    state["step"] = 7
    other = make_trainer(epochs=4)
    with pytest.raises(
        UserError,
        match="written with 1 hooks, this program has 0; .*start a new run from its weights",
    ):
        other.load_state_dict(state)
    assert other.step == 0


@pytest.mark.parametrize("optimizer", ["SGD", "Adam", "AdamW"])
def test_resume_is_exact(optimizer, tmp_path):
    hyp = HYP.replace(
        warmup_epochs=1, nbs=6
    )  # 4 batches of 2 with 3 a step: the epoch ends with an odd one

    class Stop(Hook):
        def __init__(self):
            self.calls = 0

        def on_epoch_end(self, trainer):
            self.calls += 1
            if trainer.epoch == 1:
                torch.save(trainer.state_dict(), tmp_path / "state.pt")

        def state_dict(self):
            return {"calls": self.calls}

        def load_state_dict(self, state):
            self.calls = state["calls"]

    whole = make_trainer(epochs=4, hyp=hyp, optimizer=optimizer, hooks=[Stop()])
    whole.fit()
    resumed = make_trainer(epochs=4, hyp=hyp, optimizer=optimizer, hooks=[Stop()])
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert resumed.epoch == 2
    torch.rand(3)  # whatever the generators did meanwhile
    resumed.fit()
    assert same(weights(whole.task), weights(resumed.task)) and same(
        weights(whole.ema.model), weights(resumed.ema.model)
    )
    assert whole.history == resumed.history and whole.step == resumed.step
    assert whole.hooks[0].calls == resumed.hooks[0].calls == 4


@pytest.mark.parametrize("optimizer", ["SGD", "Adam"])
@pytest.mark.parametrize("poisoned", [0, 5])
def test_step_with_nan_is_skipped_and_batch_norm_heals(optimizer, poisoned):
    """Also at the very first step, where fused SGD would otherwise start from uninitialised
    momentum.
    """
    before, after = {}, {}

    class Watch(Hook):
        def on_grads_ready(self, trainer):
            if trainer.epoch * 4 + trainer.batch == poisoned:
                before.update({n: p.clone() for n, p in trainer.task.named_parameters()})

        def on_step_end(self, trainer):
            if trainer.epoch * 4 + trainer.batch == poisoned:
                after.update({n: p.clone() for n, p in trainer.task.named_parameters()})

    hyp = HYP.replace(nbs=2)
    trainer = make_trainer(
        epochs=3, loader=ToyLoader(poison=[poisoned]), hyp=hyp, optimizer=optimizer, hooks=[Watch()]
    )
    trainer.fit()
    assert before and same(before, after)
    assert all(v.isfinite().all() for v in weights(trainer.task).values())
    assert all(v.isfinite().all() for v in weights(trainer.ema.model).values())
    assert all(row["train/box"] < 1e6 for row in trainer.history)


def test_spoilt_batch_norm_statistics_are_put_back():
    class Spoil(Hook):
        def on_batch_end(self, trainer):
            if trainer.epoch == 1 and trainer.batch == 0:
                trainer.task.model.bn.running_mean.fill_(float("nan"))

    trainer = make_trainer(epochs=2, loader=ToyLoader(poison=[4]), hooks=[Spoil()])
    trainer.fit()
    assert trainer.skipped == 1
    assert (
        trainer.task.model.bn.running_mean.isfinite().all()
        and trainer.ema.model.bn.running_mean.isfinite().all()
    )


def test_ten_bad_steps_in_a_row_stop_and_name_step_and_term():
    trainer = make_trainer(epochs=9, loader=ToyLoader(poison=range(8, 99)), hyp=HYP.replace(nbs=2))
    with pytest.raises(
        UserError, match=r"step 20 .*loss term box is not a finite number in 12 steps in a row"
    ):
        trainer.fit()


def test_out_of_memory_on_the_first_epoch_halves_the_batch():
    class Greedy(SquareTask):
        def forward(self, images, targets):
            if len(images) > 2:
                raise torch.OutOfMemoryError("out of memory. Tried to allocate 2 GiB")
            return super().forward(images, targets)

    def smaller(trainer):
        trainer.loader = ToyLoader(batches=4, size=2)
        trainer.schedule = Schedule(HYP, epochs=2, batches=4, batch_size=2)
        return True

    trainer = make_trainer(epochs=2, loader=ToyLoader(batches=2, size=4), smaller_batch=smaller)
    trainer.task.__class__ = Greedy
    trainer.fit()
    assert (
        trainer.step == 4 and trainer.loader.size == 2
    )  # two steps an epoch, as with batches of four

    trainer = make_trainer(loader=ToyLoader(batches=2, size=4), smaller_batch=lambda t: False)
    trainer.task.__class__ = Greedy
    with pytest.raises(UserError, match="out of memory even with the smallest batch"):
        trainer.fit()


def test_other_errors_are_not_taken_for_memory():
    trainer = make_trainer(smaller_batch=lambda t: True)
    trainer.task.forward = lambda *_: (_ for _ in ()).throw(RuntimeError("shapes differ"))
    with pytest.raises(RuntimeError, match="shapes differ"):
        trainer.fit()


def test_validation_rows_best_and_early_stop():
    scores = iter([0.1, 0.5, 0.2, 0.3, 0.9])

    def evaluate(model):
        assert model is trainer.ema.model
        score = next(scores)
        return SimpleNamespace(
            map50=score, map=score / 2, mp=1.0, mr=0.0, fitness=score, losses={"box": 2.0}
        )

    best = []

    class Best(Hook):
        def on_epoch_end(self, trainer):
            best.append(trainer.is_best)

        def metrics(self):
            return {"sparse/reg": 3.0}

    trainer = make_trainer(epochs=5, evaluate=evaluate, hooks=[Best(), EarlyStopping(2)])
    trainer.fit()
    assert best == [True, True, False, False] and trainer.best_fitness == 0.5
    row = trainer.history[1]
    assert (
        row["metrics/mAP_0.5"] == 0.5
        and row["metrics/mAP_0.5:0.95"] == 0.25
        and row["val/box"] == 2.0
    )
    assert row["sparse/reg"] == 3.0 and list(row)[:2] == ["epoch", "train/box"]


def test_the_later_of_equal_epochs_is_the_best():
    """Early epochs often score 0: neither are they as good as each other, nor is that a reason to
    stop.
    """
    result = SimpleNamespace(map50=0.0, map=0.0, mp=0.0, mr=0.0, fitness=0.0, losses={})
    best = []

    class Best(Hook):
        def on_epoch_end(self, trainer):
            best.append(trainer.is_best)

    make_trainer(epochs=4, evaluate=lambda model: result, hooks=[Best(), EarlyStopping(2)]).fit()
    assert best == [True] * 4


def test_adapters_of_a_task_are_trained_and_stay_out_of_the_model():
    class WithAdapter(SquareTask):
        def __init__(self, model):
            super().__init__(model)
            self.adapter = nn.Linear(1, 1)

        def forward(self, images, targets):
            parts = super().forward(images, targets)
            return {
                **parts,
                "loss": parts["loss"] + self.adapter(targets[:, :1]).pow(2).sum(),
                "kd": parts["box"],
            }

    task = WithAdapter(Net())
    before = task.adapter.weight.clone()
    trainer = make_trainer(epochs=1)
    trainer = Trainer(
        task,
        trainer.loader,
        build_optimizer(task, "SGD", HYP, 2),
        trainer.schedule,
        ModelEMA(task.model),
        1,
        Precision("off", CPU),
    )
    trainer.fit()
    assert not torch.equal(before, task.adapter.weight)
    assert "adapter.weight" in trainer.state_dict()["task"] and not any(
        "adapter" in k for k in trainer.ema.model.state_dict()
    )
    assert "train/kd" in trainer.history[0]
