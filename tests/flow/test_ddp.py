"""Two processes on the CPU (gloo) under torchrun."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.conftest import ROOT
from tests.flow.runs import TINY, environment, same_weights, tiny_set

pytestmark = pytest.mark.flow

GRADIENTS = """
import torch
from torch import nn
from utils.engine.dist import data_parallel, process_group, sum_over_ranks
from utils.engine.dist import without_sync, world_from_env
from utils.engine.tasks import DetectionTask
world, device = world_from_env(), torch.device("cpu")
torch.manual_seed(0)
data, model = torch.randn(4, 3), nn.Linear(3, 2)
loss = lambda out, target: (((out - target) ** 2).mean() * len(out), {"box": out.detach().sum()})
with process_group(world, device):
    task = DetectionTask(model, loss, world.size)
    net = data_parallel(task, world, device)
    for accumulate in (False, True):
        mine = data[world.rank * 2 : world.rank * 2 + 2] if world.size == 2 else data
        with without_sync(net, accumulate):
            net(mine, torch.ones(len(mine), 2))["loss"].backward()
        if not accumulate:
            together = model.weight.grad.clone()
    if world.main:
        torch.save((together, model.weight.grad), "gradients%d.pt" % world.size)
"""


def torchrun(*words: str | Path, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        *map(str, words),
    ]
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        output, errors = process.communicate(timeout=240)
    except subprocess.TimeoutExpired:
        # torchrun takes its processes with it, which it could not do after SIGKILL
        process.terminate()
        output, errors = process.communicate()
    return subprocess.CompletedProcess(command, process.returncode, output, errors)


def test_two_ranks_sum_gradients_like_one(tmp_path, monkeypatch):
    """2 ranks x batch 2 = 1 rank x batch 4: the task's world-size factor undoes the averaging."""
    (tmp_path / "gradients.py").write_text(GRADIENTS)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    subprocess.run([sys.executable, "gradients.py"], cwd=tmp_path, check=True, timeout=120)
    done = torchrun("gradients.py", folder=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    one, two = (torch.load(tmp_path / f"gradients{n}.pt") for n in (1, 2))
    assert torch.allclose(one[0], two[0], atol=1e-6) and one[0].abs().max() > 0.01
    assert not torch.allclose(
        one[1], two[1]
    )  # the second backward stayed on its rank, as accumulation wants


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("ddp")
    tiny_set(folder)
    done = torchrun(ROOT / "train.py", *TINY, "--data", "tiny.yaml", folder=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def test_two_processes_train_one_run(trained):
    folder = trained / "runs" / "train" / "exp"
    assert [path.name for path in folder.parent.iterdir()] == ["exp"]
    rows = (folder / "results.csv").read_text().splitlines()
    assert len(rows) == 4 and (folder / "weights" / "best.pt").exists()


def test_two_processes_resume_exactly(trained):
    """Resumed from the checkpoint of epoch 0, the run ends as the first one did, on both ranks."""
    script = trained / "stop_after_one.py"
    script.write_text(
        "import sys\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "from utils.engine import dist, run_hooks\n"
        "from utils.options.base import parse_options\n"
        "from utils.options.train import TrainOptions\n"
        "write = run_hooks.Checkpoints.on_epoch_end\n"
        "def die(self, trainer):\n"
        "    write(self, trainer)\n"
        "    raise SystemExit(9)\n"
        "if '--resume' not in sys.argv:\n"
        "    run_hooks.Checkpoints.on_epoch_end = die\n"
        "from recipes.train import train\n"
        "from utils.engine.trainer import Trainer\n"
        "fit = Trainer.fit\n"
        "def same_everywhere(self):\n"
        "    fit(self)\n"
        "    for p in self.task.parameters():\n"
        "        total = dist.sum_over_ranks(p.detach().clone(), self.world)\n"
        "        assert (total == 2 * p).all()\n"
        "Trainer.fit = same_everywhere\n"
        "train(parse_options(TrainOptions))\n"
    )
    torchrun(script, *TINY, "--data", "tiny.yaml", "--name", "dead", folder=trained)
    last = trained / "runs" / "train" / "dead" / "weights" / "last.pt"
    assert torch.load(last, weights_only=True)["epoch"] == 0
    done = torchrun(script, "--resume", last, folder=trained)
    assert done.returncode == 0, done.stderr[-3000:]
    assert same_weights(trained / "runs" / "train" / "exp" / "weights" / "last.pt", last)


def test_batch_must_divide_among_the_processes(trained):
    done = torchrun(
        ROOT / "train.py", *TINY, "--data", "tiny.yaml", "--batch-size", "3", folder=trained
    )
    assert (
        done.returncode != 0
        and "--batch-size 3: must be a multiple of the 2 processes" in done.stderr
    )
