"""The loop with a real model: losses that stay what they are, and hooks that cost nothing."""

import json
from collections import namedtuple
from pathlib import Path

import pytest
import torch

from models import build_model
from recipes.prepare import freeze, prepare_hyp, prepare_model, with_classes
from recipes.session import multi_scale
from utils.config import Hyp
from utils.engine.ema import ModelEMA
from utils.engine.hooks import Hook
from utils.engine.optim import Schedule, build_optimizer
from utils.engine.precision import Precision
from utils.engine.seed import seed_everything
from utils.engine.tasks import DetectionTask
from utils.engine.trainer import Trainer
from utils.errors import UserError
from utils.log import LOGGER
from utils.losses import build_loss
from utils.options.base import parse_options
from utils.options.train import TrainOptions

Batch = namedtuple("Batch", "images targets")
RECORD = Path(__file__).parent / "regression" / "losses_20_steps.json"
HYP = Hyp(nbs=4, warmup_epochs=1, lr0=0.02)


class SyntheticLoader:
    """Four batches of noise with three boxes an image; always the same."""

    def __init__(self):
        rng = torch.Generator().manual_seed(0)
        self.batches = []
        for _ in range(4):
            boxes = torch.rand(12, 4, generator=rng) * 0.4 + 0.3
            image, label = (
                torch.arange(4.0).repeat_interleave(3)[:, None],
                torch.arange(12.0)[:, None] % 3,
            )
            images = torch.randint(0, 256, (4, 3, 64, 64), generator=rng, dtype=torch.uint8)
            self.batches.append(Batch(images, torch.cat([image, label, boxes], 1)))

    def set_epoch(self, epoch):
        pass

    def __len__(self):
        return 4

    def __iter__(self):
        return iter(self.batches)


class Losses(Hook):
    def __init__(self):
        self.seen = []

    def on_batch_end(self, trainer):
        self.seen.append([round(float(value), 7) for value in trainer.parts.values()])


def train(hooks=(), epochs=5):
    seed_everything(0)
    model = build_model("yolov5n", nc=3)
    task = DetectionTask(model, build_loss(model, HYP.scaled(3, 3, 64)))
    trainer = Trainer(
        task=task,
        loader=SyntheticLoader(),
        optimizer=build_optimizer(task, "SGD", HYP, 4),
        schedule=Schedule(HYP, epochs=epochs, batches=4, batch_size=4),
        ema=ModelEMA(model),
        epochs=epochs,
        precision=Precision("off", torch.device("cpu")),
        hooks=hooks,
    )
    trainer.fit()
    return trainer


def test_losses_of_twenty_seeded_steps_stay_what_they_are():
    """A change that computes nothing new leaves them alike.

    Other CPUs sum in another order, and the steps amplify the difference: about tenfold in three
    steps, to 2e-2 at the last on a CPU without AVX-512.
    """
    losses = Losses()
    train([losses])
    recorded = json.loads(RECORD.read_text())
    assert len(losses.seen) == 20
    for step, (ours, theirs) in enumerate(zip(losses.seen, recorded["box, obj, cls"], strict=True)):
        assert ours == pytest.approx(theirs, rel=1e-4 if step < 8 else 5e-2), f"step {step}"


def test_hooks_off_equals_no_hooks_bit_for_bit():
    plain, hooked = train(epochs=2), train([Hook(), Losses()], epochs=2)
    for a, b in ((plain.task, hooked.task), (plain.ema.model, hooked.ema.model)):
        ours, theirs = a.state_dict(), b.state_dict()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_multi_scale_is_a_function_of_seed_and_batch():
    images = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8)
    sizes = {
        tuple(multi_scale(images, batch, imgsz=96, stride=32, seed=1).shape[2:])
        for batch in range(30)
    }
    assert (
        all(h % 32 == w % 32 == 0 and 48 <= w <= 144 and h <= w for h, w in sizes)
        and len(sizes) > 2
    )
    again = multi_scale(images, 7, imgsz=96, stride=32, seed=1)
    assert (
        torch.equal(again, multi_scale(images, 7, imgsz=96, stride=32, seed=1))
        and 0 <= again.min() <= again.max() <= 1
    )


def test_freeze_by_number_and_by_list():
    def frozen(*rows):
        model = build_model("yolov5n", nc=3)
        freeze(model, rows)
        return {
            i
            for i, row in enumerate(model.model)
            if any(not p.requires_grad for p in row.parameters())
        }

    assert frozen() == set() and frozen(3) == {0, 1, 2} and frozen(0, 9) == {0, 9}
    with pytest.raises(UserError, match="rows 0 to 24"):
        frozen(1, 99)


@pytest.mark.parametrize("cfg", ["yolov5n", "yolov7-tiny"])
def test_other_classes_keep_structure_and_weights(cfg):
    torch.manual_seed(0)
    source = build_model(cfg, nc=3)
    model = with_classes(source, 5)
    assert model.nc == 5 and model.head.no == 10
    assert model.train()(torch.zeros(1, 3, 64, 64))[0].shape[-1] == 10
    fresh = build_model(cfg, nc=5)
    assert {k: v.shape for k, v in model.state_dict().items()} == {
        k: v.shape for k, v in fresh.state_dict().items()
    }
    bias = model.head.m[0].bias.detach().view(3, 10)
    assert bias[:, 4].mean() == pytest.approx(torch.log(torch.tensor(8 / 80**2)).item(), abs=0.5)


def test_weights_bring_structure_anchors_and_what_fits(tmp_path, caplog):
    from models.checkpoint import save_checkpoint

    torch.manual_seed(0)
    source = build_model("yolov5n", nc=3)
    source.head.set_anchors(source.head.anchors_px * 1.5)
    conv = source.model[
        1
    ]  # what pruning does: row 1 gives 8 channels instead of 32, row 2 reads them
    conv.conv = torch.nn.Conv2d(16, 8, 3, 2, 1, bias=False)
    conv.bn = torch.nn.BatchNorm2d(8, eps=1e-3, momentum=0.03)
    for name in ("cv1", "cv2"):
        getattr(source.model[2], name).conv = torch.nn.Conv2d(8, 16, 1, bias=False)
    save_checkpoint(tmp_path / "pruned.pt", source)
    opt = TrainOptions(weights=str(tmp_path / "pruned.pt"))

    same = prepare_model(opt, Hyp(), ["a", "b", "c"])
    assert all(
        torch.equal(v, source.state_dict()[k]) for k, v in same.state_dict().items()
    ) and same.names == ["a", "b", "c"]
    other = prepare_model(opt, Hyp(), ["a", "b"])
    assert (
        other.nc == 2
        and other.model[1].conv.out_channels == 8
        and other.head.m[0].out_channels == 21
    )
    assert torch.equal(other.model[1].conv.weight, conv.conv.weight) and torch.equal(
        other.head.anchors, source.head.anchors
    )
    with_cfg = prepare_model(
        TrainOptions(weights=opt.weights, cfg="yolov5n"), Hyp(), ["a", "b", "c"]
    )
    assert with_cfg.model[1].conv.out_channels == 32 and torch.equal(
        with_cfg.model[0].conv.weight, source.model[0].conv.weight
    )
    assert torch.equal(with_cfg.head.anchors_px * 1.5, source.head.anchors_px)


def test_a_cfg_that_undoes_a_pruning_or_fits_badly_is_named(tmp_path, monkeypatch):
    from models.checkpoint import save_checkpoint
    from prune_methods import PRUNERS, Prunable, Target

    said: list[str] = []
    monkeypatch.setattr(LOGGER, "warning", said.append)
    dense = build_model("yolov5n", nc=2)
    prunable = Prunable.of(dense)
    pruned = prunable.prune(prunable.search(PRUNERS["lamp"](), Target(2.0)))
    for name, model in (("dense", dense), ("pruned", pruned)):
        save_checkpoint(tmp_path / f"{name}.pt", model)
    weights = {name: str(tmp_path / f"{name}.pt") for name in ("dense", "pruned")}
    names = ["a", "b", "c"]
    prepare_model(TrainOptions(weights=weights["pruned"]), Hyp(), names)
    prepare_model(TrainOptions(weights=weights["dense"], cfg="yolov5n"), Hyp(), names)
    assert said == []
    prepare_model(TrainOptions(weights=weights["pruned"], cfg="yolov5n"), Hyp(), names)
    assert "pruned.pt is pruned, and --cfg yolov5n builds the full model again" in said[0]
    assert "leave out --cfg" in said[0]
    prepare_model(TrainOptions(weights=weights["dense"], cfg="yolov5s"), Hyp(), names)
    assert "of 349 items of" in said[1] and "all others start anew" in said[1]


def test_hyperparameters_without_effect_are_named(caplog):
    LOGGER.addHandler(caplog.handler)
    prepare_hyp(TrainOptions(hyp="scratch-high"))
    prepare_hyp(TrainOptions(hyp="scratch-low"))
    LOGGER.removeHandler(caplog.handler)
    assert [record.getMessage() for record in caplog.records] == [
        "scratch-high: copy_paste: 0.1 has no effect: it needs outlines, labels of boxes have none"
    ]


def test_reinit_keeps_structure_and_anchors_and_no_weight(tmp_path):
    from models.checkpoint import save_checkpoint
    from prune_methods import PRUNERS, Prunable, Target

    torch.manual_seed(0)
    dense = build_model("yolov7-tiny", nc=3)
    prunable = Prunable.of(dense)
    source = prunable.prune(prunable.search(PRUNERS["lamp"](), Target(2.0)))
    source.head.set_anchors(source.head.anchors_px * 1.5)
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.fill_(7)
    save_checkpoint(tmp_path / "pruned.pt", source)
    opt = TrainOptions(weights=str(tmp_path / "pruned.pt"), reinit=True)
    new = prepare_model(opt, Hyp(), ["a", "b", "c"])
    assert {k: v.shape for k, v in new.state_dict().items()} == {
        k: v.shape for k, v in source.state_dict().items()
    }
    assert torch.equal(new.head.anchors, source.head.anchors)
    assert not any((parameter == 7).any() for parameter in new.parameters())
    assert all((m.weight == 1).all() for m in new.modules() if isinstance(m, torch.nn.BatchNorm2d))
    assert torch.isfinite(new.train()(torch.zeros(2, 3, 64, 64))[0]).all()
    with pytest.raises(UserError, match="--reinit"):
        TrainOptions(cfg="yolov5n", data="demo", reinit=True).check()


@pytest.mark.parametrize("rows", [(-1,), (0, -1), (99,), (0, 99)])
def test_rows_that_no_model_has_are_not_frozen_in_silence(rows):
    model = build_model("yolov5n", nc=2)
    with pytest.raises(UserError, match=r"the model has the rows 0 to 24"):
        freeze(model, rows)
    assert all(p.requires_grad for p in model.parameters())


def test_numbers_of_rows_from_none_to_all_are_frozen():
    for count in (0, 1, 24):
        model = build_model("yolov5n", nc=2)
        freeze(model, (count,))
        frozen = [not any(p.requires_grad for p in row.parameters()) for row in model.model]
        with_weights = [any(True for _ in row.parameters()) for row in model.model]
        assert [f for f, w in zip(frozen, with_weights, strict=True) if w] == [
            i < count for i, w in enumerate(with_weights) if w
        ]


def test_a_model_without_a_row_to_train_is_refused():
    with pytest.raises(UserError, match="nothing would be trained"):
        freeze(build_model("yolov5n", nc=2), (25,))


def test_a_negative_row_is_one_line_on_the_command_line():
    with pytest.raises(UserError, match="--freeze -1: must be at least 0"):
        parse_options(TrainOptions, ["--cfg", "yolov5n", "--data", "demo", "--freeze=-1"])
    with pytest.raises(UserError, match="--label-smoothing"):
        parse_options(TrainOptions, ["--label-smoothing=-0.1"])
