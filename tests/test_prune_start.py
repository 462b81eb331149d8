"""The model before a finetune counts as a candidate for its best checkpoint."""

from types import SimpleNamespace

import pytest

from models import build_model
from models.checkpoint import load_checkpoint
from prune_methods.surgery.recalibrate import FreshStatistics
from recipes.prune.training import BEFORE, StartIsCandidate, finetune_hooks
from tests.prune_toys import TINY_REP
from utils.config import Hyp
from utils.options.train import TrainOptions


@pytest.fixture
def run(tmp_path):
    (tmp_path / "weights").mkdir()
    return SimpleNamespace(run_dir=tmp_path, hyp=Hyp(), opt=TrainOptions())


def trainer(step=0, evaluate=lambda model: SimpleNamespace(fitness=0.4, map50=0.5, map=0.3)):
    ema = SimpleNamespace(model=build_model(TINY_REP))
    return SimpleNamespace(step=step, evaluate=evaluate, ema=ema, best_fitness=0.0)


def test_the_start_is_written_with_its_fitness(run):
    fit = trainer()
    StartIsCandidate(run).on_fit_start(fit)
    saved = load_checkpoint(run.run_dir / "weights" / "best.pt")
    assert fit.best_fitness == saved["best_fitness"] == 0.4 and saved["epoch"] == BEFORE == -1


@pytest.mark.parametrize("state", [{"step": 7}, {"evaluate": None}])
def test_not_again_when_resumed_and_not_without_validation(run, state):
    fit = trainer(**state)
    StartIsCandidate(run).on_fit_start(fit)
    assert fit.best_fitness == 0.0 and not (run.run_dir / "weights" / "best.pt").exists()


def test_the_first_half_of_the_finetune_has_fresh_statistics(monkeypatch):
    run = SimpleNamespace(opt=None, run_dir=None)
    fresh = next(hook for hook in finetune_hooks(run) if isinstance(hook, FreshStatistics))
    used = []
    where = "prune_methods.surgery.recalibrate.recalibrate_bn"
    monkeypatch.setattr(where, lambda model, batches, number: used.append(model))
    for epoch in range(5):
        state = SimpleNamespace(epoch=epoch, epochs=5, ema=SimpleNamespace(model=epoch))
        fresh.on_train_epoch_end(state)
    assert used == [0, 1, 2]
