"""A head without anchors is one file: built, trained, evaluated, saved, fused, pruned."""

from collections import namedtuple
from typing import Any

import pytest
import torch

from data.autoanchor import check_anchors
from distill.teacher import check_heads
from models import build_model, load_model, save_model
from models.heads.base import Detections, Head
from prune_methods import PRUNERS, Limits, Prunable, Target
from tests.conftest import ROOT
from utils.config import Hyp
from utils.engine.ema import ModelEMA
from utils.engine.hooks import Hook
from utils.engine.optim import Schedule, build_optimizer
from utils.engine.precision import Precision
from utils.engine.tasks import DetectionTask
from utils.engine.trainer import Trainer
from utils.errors import UserError
from utils.evaluator import evaluate
from utils.losses import build_loss

NC = 2
Batch = namedtuple("Batch", "images targets files shapes")


def head_of_the_page() -> type[Head]:
    """Run the code of docs/custom_head.md, which registers its head."""
    page = (ROOT / "docs" / "custom_head.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {"__name__": "docs.custom_head"}
    exec(page.split("```python\n")[1].split("```")[0], names)
    return names["CentreHead"]


CentreHead = head_of_the_page()
YAML = {
    "nc": NC,
    "depth_multiple": 1.0,
    "width_multiple": 1.0,
    "backbone": [
        [-1, 1, "Conv", [16, 3, 2]],
        [-1, 1, "Conv", [24, 3, 2]],
        [-1, 1, "C3", [24]],
        [-1, 1, "Conv", [32, 3, 2]],
    ],
    "head": [[[2, 3], 1, "CentreHead", ["nc"]]],
}


class FixedLoader:
    """One batch of four images with a bright rectangle each; twelve times an epoch."""

    def __init__(self):
        images = torch.zeros(4, 3, 64, 64, dtype=torch.uint8)
        rows = []
        for i in range(4):
            x, y = 8 + 10 * i, 40 - 8 * i
            images[i, i % NC, y : y + 16, x : x + 20] = 255
            rows.append([i, i % NC, (x + 10) / 64, (y + 8) / 64, 20 / 64, 16 / 64])
        shapes = [((64, 64), ((1.0, 1.0), (0.0, 0.0)))] * 4
        self.batch = Batch(images, torch.tensor(rows), [f"{i}.jpg" for i in range(4)], shapes)

    def set_epoch(self, epoch: int) -> None: ...

    def __len__(self) -> int:
        return 12

    def __iter__(self):
        return iter([self.batch] * 12)


class Losses(Hook):
    def __init__(self):
        self.seen: list[float] = []

    def on_batch_end(self, trainer):
        self.seen.append(sum(float(part) for part in trainer.parts.values()))


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(0)
    model = build_model(YAML)
    hyp, losses = Hyp(nbs=4, warmup_epochs=0, lr0=0.02), Losses()
    task = DetectionTask(model, build_loss(model, hyp.scaled(2, NC, 64)))
    trainer = Trainer(
        task=task,
        loader=FixedLoader(),
        optimizer=build_optimizer(task, "SGD", hyp, 4),
        schedule=Schedule(hyp, epochs=12, batches=12, batch_size=4),
        ema=ModelEMA(model),
        epochs=12,
        precision=Precision("off", torch.device("cpu")),
        hooks=[losses],
    )
    trainer.fit()
    return trainer.ema.model, losses.seen


def test_a_yaml_without_anchors_builds_and_gives_detections():
    model = build_model(YAML)
    assert isinstance(model.head, CentreHead) and model.head.anchors_px is None
    assert model.stride.tolist() == [4, 8]
    maps = model.train()(torch.rand(1, 3, 64, 64))
    assert [tuple(y.shape) for y in maps] == [(1, 1, 16, 16, 7), (1, 1, 8, 8, 7)]
    output = model.eval()(torch.rand(1, 3, 64, 64))
    assert isinstance(output, Detections) and output.decoded.shape == (1, 16 * 16 + 8 * 8, 7)
    decoded, raw = output
    assert torch.equal(decoded, model.head.decode(raw))


def test_it_trains_on_its_own_loss(trained):
    _, losses = trained
    assert len(losses) == 144 and losses[-1] < 0.3 * losses[0]


def test_it_is_evaluated(trained):
    model, _ = trained
    loader = FixedLoader()
    result = evaluate(model, [loader.batch], names=["a", "b"], conf_thres=0.1, progress=False)
    assert result.seen == 4 and result.map50 > 0.5


def test_it_is_saved_with_its_state_and_fused(trained, tmp_path):
    model, _ = trained
    save_model(model, tmp_path / "x.pt")
    again, x = load_model(tmp_path / "x.pt").eval(), torch.rand(1, 3, 64, 64)
    assert torch.equal(again(x).decoded, model.eval()(x).decoded)
    assert again.head.state() == {"stride": [4.0, 8.0], "anchors": None}
    torch.testing.assert_close(again.fuse()(x).decoded, again(x).decoded, rtol=1e-4, atol=1e-4)


def test_it_is_pruned_and_the_pruned_one_reloads(trained, tmp_path):
    model, _ = trained
    prunable = Prunable.of(model)
    plan = prunable.search(PRUNERS["lamp"](), Target(1.5, imgsz=64), Limits(4))
    smaller = prunable.prune(plan, 64)
    assert plan.met and plan.speed_up < 1.7
    save_model(smaller, tmp_path / "x.pt")
    x = torch.rand(1, 3, 64, 64)
    assert torch.equal(load_model(tmp_path / "x.pt").eval()(x).decoded, smaller.eval()(x).decoded)


def test_parts_that_need_anchors_say_so(trained):
    model, _ = trained
    with pytest.raises(UserError, match="CentreHead has none to set"):
        model.head.set_anchors(torch.ones(2, 1, 2))
    assert check_anchors(None, model, 4.0, 64) == 1.0
    with pytest.raises(UserError, match="CentreHead has no anchors.*--feature-loss"):
        check_heads(model, model)
    with pytest.raises(UserError, match="'anchors' is missing"):
        build_model(YAML | {"head": [[[2, 3], 1, "Detect", ["nc", "anchors"]]]})
