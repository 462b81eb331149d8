"""The model before a finetune counts as a candidate for its best checkpoint."""

from types import SimpleNamespace

import pytest

from models import build_model
from models.checkpoint import load_checkpoint
from recipes.prune.training import BEFORE, StartIsCandidate
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
