"""Sparse training in two processes: every rank adds the same penalty to the same
summed gradients.
"""

import runpy

import pytest
import torch

from tests.conftest import ROOT
from tests.flow.test_ddp import torchrun

pytestmark = pytest.mark.flow

SCRIPT = """
import torch
from prune_methods.sparsity.hook import Sparsity
from tests.test_sparsity_run import HYP, METHODS, FixedLoader, FrozenStatistics, penalty_of
from tests.test_trainer import Batch, SquareTask
from utils.engine.dist import process_group, world_from_env
from utils.engine.ema import ModelEMA
from utils.engine.optim import Schedule, build_optimizer
from utils.engine.precision import Precision
from utils.engine.trainer import Trainer
world, device = world_from_env(), torch.device("cpu")

class Summed(SquareTask):
    def forward(self, images, targets):
        parts = super().forward(images, targets)
        return {**parts, "loss": parts["loss"] * world.size}  # DDP averages over the ranks

class Share(FixedLoader):
    def __iter__(self):
        for images, targets in super().__iter__():
            yield Batch(images[world.rank :: world.size], targets[world.rank :: world.size])

def gammas(method):
    torch.manual_seed(1)
    model = FrozenStatistics()
    hook = Sparsity(model, penalty_of(model, method, delta_every=2, delta_reg=0.01), 0.05)
    # a step on 4 images: one batch, or two batches on two ranks
    task, hyp = Summed(model), HYP.replace(warmup_epochs=0)
    loader = Share(batches=4, size=2) if world.size == 2 else Share(batches=2, size=4)
    schedule = Schedule(hyp, epochs=3, batches=len(loader), batch_size=loader.size)
    optimizer = build_optimizer(task, "SGD", hyp, loader.size)
    precision = Precision("off", device)
    trainer = Trainer(
        task, loader, optimizer, schedule, ModelEMA(model), 3, precision, hooks=[hook], world=world
    )
    trainer.fit()
    return torch.cat([model.net.stem[1].weight, model.net.mid[1].weight]).detach()

with process_group(world, device):
    found = {method: gammas(method) for method in METHODS}
torch.save(found, "gammas_%d_of_%d.pt" % (world.rank, world.size))
"""


def test_two_processes_that_accumulate_end_with_the_gammas_of_one(tmp_path, monkeypatch):
    (tmp_path / "sparse.py").write_text(SCRIPT)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(tmp_path)
    runpy.run_path("sparse.py")
    done = torchrun("sparse.py", folder=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    one, first, second = (
        torch.load(tmp_path / f"gammas_{name}.pt", weights_only=True)
        for name in ("0_of_1", "0_of_2", "1_of_2")
    )
    for method, gammas in one.items():
        assert torch.equal(first[method], second[method]), method
        assert torch.allclose(first[method], gammas, atol=1e-6), method
    assert not torch.allclose(one["slim"], one["group_reg"], atol=1e-3)
