"""Adapters: the closed form against least squares, kept channels against zeroed ones, and AdamW
apart from the student.
"""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close

from distill.adapters import ADAPTERS, LayerPair
from distill.apart import LR, TrainApart
from distill.pairing import pair_up
from distill.watch import Watch, explained
from models import build_model, load_model, save_model
from models.checkpoint import load_checkpoint
from models.lineage import fingerprint
from prune_methods import Prunable, find_groups
from tests.test_distill_task import IMAGES, TARGETS, fit, make_task, same_state, small
from tests.test_prune_cut import random_masks
from tests.test_trainer_model import HYP
from utils.engine.precision import Precision
from utils.engine.tasks import DetectionTask
from utils.errors import UserError
from utils.losses import build_loss
from utils.options.distill import DistillOptions

OFF = Precision("off", torch.device("cpu"))


def maps(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def pair(ours=3, theirs=5, kept=None):
    return LayerPair("17", "17", (ours, theirs), kept)


def options(**given):
    return DistillOptions(teacher="t.pt", cfg="yolov5n", data="demo", **given)


# Closed form


def test_closed_form_finds_the_linear_map_of_the_maps():
    adapter, s = ADAPTERS["closed-form"](pair()), maps(4, 3, 6, 5)
    matrix, offset = maps(5, 3, seed=1), maps(5, seed=2)
    t = torch.einsum("oc,nchw->nohw", matrix, s) + offset[:, None, None]
    assert adapter(s, t)[0].abs().max() == 0  # nothing observed, nothing solved
    adapter.observe(s, t)
    adapter.solve()
    shrunk = 1 / (1 + 1e-2)  # of the ridge, relative to each channel's power
    assert_close(adapter.kernel[:, :, 0, 0], matrix * shrunk, rtol=2e-2, atol=2e-3)
    aligned, same = adapter(s, t)
    assert same is t and explained(aligned, t) > 0.999


def test_closed_form_is_ridge_regression_of_the_last_batches():
    """Slow and obvious: rows weighted by .95 to the age of their batch."""
    adapter = ADAPTERS["closed-form"](pair())
    batches = [(maps(2, 3, 4, 4, seed=i), maps(2, 5, 4, 4, seed=9 + i)) for i in range(3)]
    for s, t in batches:
        adapter.observe(s, t)
    adapter.solve()
    x = torch.cat([s.movedim(1, -1).reshape(-1, 3) for s, _ in batches]).double()
    y = torch.cat([t.movedim(1, -1).reshape(-1, 5) for _, t in batches]).double()
    w = torch.tensor([0.95**2, 0.95, 1.0]).double().repeat_interleave(32)[:, None]
    mean_x, mean_y = (w * x).sum(0) / w.sum(), (w * y).sum(0) / w.sum()
    x, y = x - mean_x, y - mean_y
    xx = (w * x).T @ x / w.sum()
    power = xx.diagonal()
    ridge = 1e-2 * (power + 1e-3 * power.mean()) + 1e-9 * power.mean()
    wanted = torch.linalg.solve(xx + ridge.diag(), (w * x).T @ y / w.sum())
    assert_close(adapter.kernel[:, :, 0, 0].double(), wanted.T, rtol=1e-4, atol=1e-6)
    assert_close(adapter.bias.double(), mean_y - mean_x @ wanted, rtol=1e-4, atol=1e-6)


def test_a_batch_that_is_not_finite_leaves_no_trace():
    adapter = ADAPTERS["closed-form"](pair())
    adapter.observe(maps(2, 3, 4, 4), maps(2, 5, 4, 4, seed=1))
    before = copy.deepcopy(adapter.state_dict())
    bad = maps(2, 3, 4, 4)
    bad[0, 1, 2, 2] = float("inf")
    adapter.observe(bad, maps(2, 5, 4, 4, seed=1))
    assert all(torch.equal(before[name], value) for name, value in adapter.state_dict().items())


def test_a_student_without_features_has_a_finite_adapter():
    adapter = ADAPTERS["closed-form"](pair())
    adapter.observe(torch.zeros(2, 3, 4, 4), maps(2, 5, 4, 4))
    adapter.solve()
    assert adapter.kernel.isfinite().all() and adapter.kernel.abs().max() == 0


def test_gradient_passes_the_closed_form_to_the_student_alone():
    adapter, s = ADAPTERS["closed-form"](pair()), maps(2, 3, 4, 4).requires_grad_()
    adapter.observe(s.detach(), maps(2, 5, 4, 4, seed=1))
    adapter.solve()
    adapter(s, maps(2, 5, 4, 4, seed=1))[0].sum().backward()
    wanted = adapter.kernel.sum(0)[None].expand(2, 3, 4, 4)
    assert_close(s.grad, wanted) and not list(adapter.parameters())


def test_features_wait_for_the_moments_and_solve_when_due():
    task = make_task((small(), small(0.25, seed=1)), feature_loss=("cwd",), adapter_every=3)
    task.train()
    kernels, values = [], []
    for number in range(14):
        task.start_batch(number, 1000)
        images = torch.rand(IMAGES.shape, generator=torch.Generator().manual_seed(number))
        values.append(float(task(images, TARGETS)["raw_cwd"]))
        kernels.append(task.adapters[0].kernel.clone())
    assert task.waiting == 10
    assert values[:10] == [0] * 10 and all(value > 0 for value in values[10:])
    changed = [not torch.equal(a, b) for a, b in zip(kernels[:-1], kernels[1:], strict=True)]
    assert [number + 1 for number, moved in enumerate(changed) if moved] == [10, 13]


# No adapter, kept channels


def test_maps_of_other_widths_need_an_adapter():
    with pytest.raises(UserError, match="--adapter none: student 17 - teacher 17: 3 and 5 channel"):
        ADAPTERS["none"](pair())
    s, t = maps(1, 4, 2, 2), maps(1, 4, 2, 2, seed=1)
    assert ADAPTERS["none"](pair(4, 4))(s, t) == (s, t)


def test_kept_takes_the_teachers_channels():
    adapter, t = ADAPTERS["kept"](pair(2, 5, torch.tensor([1, 4]))), maps(1, 5, 2, 2)
    ours, theirs = adapter(maps(1, 2, 2, 2), t)
    assert adapter.channels == 2 and torch.equal(theirs, t[:, [1, 4]]) and ours.shape[1] == 2
    with pytest.raises(UserError, match="does not say which channels of that layer it kept"):
        ADAPTERS["kept"](pair())


def cut_in_half(model, seed=0):
    """Return a random cut of a model with its ancestors, and the model with zeroed channels."""
    found = find_groups(model)
    prunable, masks = Prunable(model, found), random_masks(found, seed)
    smaller = prunable.cut(masks)
    smaller.ancestors = prunable.lineage(masks, smaller)
    return smaller, prunable.zero_channels(masks)


@pytest.mark.parametrize("cfg", ["yolov5n", "yolov7-tiny"])
def test_kept_channels_are_those_of_the_uncut_maps(cfg):
    """Under a teacher whose removed channels are zero, kept maps are the student's own."""
    torch.manual_seed(0)
    model = build_model(cfg, nc=3)
    smaller, zeroed = cut_in_half(model)
    rows = [spec.index for spec in model.specs[:-1] if spec.block in ("Conv", "C3", "SPPF")]
    names = tuple(str(row) for row in rows)
    given = {"student_layers": names, "teacher_layers": names}
    pairing = pair_up(smaller, zeroed, options(feature_loss=("mimic",), **given))
    assert len(pairing.pairs) == len(rows) > 15
    smaller.eval()
    with pairing.feature_hooks.reading() as ours, torch.no_grad():
        smaller(IMAGES)
    theirs = pairing.teacher(IMAGES)[1]
    for one, s, t in zip(pairing.pairs, ours, theirs, strict=True):
        assert one.kept is not None and s.shape[1] == len(one.kept) < t.shape[1], str(one)
        assert_close(s, t[:, one.kept], rtol=1e-3, atol=1e-4, msg=str(one))


def test_kept_is_chosen_under_the_ancestor_alone():
    model = small(0.25)
    smaller, other = cut_in_half(model)
    opt = options(feature_loss=("cwd",))
    names = [[type(a).__name__ for a in make_adapters(smaller, t, opt)] for t in (model, other)]
    assert names == [["Kept"] * 3, ["ClosedForm"] * 3]
    kept = options(feature_loss=("cwd",), adapter="kept")
    assert [type(a).__name__ for a in make_adapters(smaller, other, kept)] == ["Kept"] * 3
    assert [len(a.kept) for a in make_adapters(model, other, kept)] == [64, 128, 256]  # never cut
    with pytest.raises(UserError, match="--adapter kept: student 17 - teacher 17"):
        make_adapters(small(), model, kept)


def make_adapters(student, teacher, opt):
    from distill.pairing import adapters_for

    return adapters_for(pair_up(student, teacher, opt), opt.adapter)


def test_the_checkpoint_keeps_the_ancestors_through_cuts(tmp_path):
    model = small(0.25)
    once, _ = cut_in_half(model)
    save_model(once, tmp_path / "once.pt")
    loaded = load_model(tmp_path / "once.pt")
    assert loaded.ancestors[0].fingerprint == fingerprint(model) != fingerprint(once)
    twice, _ = cut_in_half(loaded, seed=1)
    assert [a.fingerprint for a in twice.ancestors] == [fingerprint(once), fingerprint(model)]
    first, second = (a.kept["model.17"].long() for a in twice.ancestors)
    assert torch.equal(loaded.ancestors[0].kept["model.17"].long()[first], second)
    assert twice.ancestors[1].widths["model.17"] == 64
    assert load_checkpoint(tmp_path / "once.pt")["ancestors"][0]["widths"]["model.17"] == 64


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda a: a.update(kept={"model.17": torch.tensor([1, 1], dtype=torch.int32)}), "kept"),
        (lambda a: a["kept"].update({"model.17": torch.tensor([99], dtype=torch.int32)}), "17"),
        (lambda a: a["kept"].update({"model.17": torch.tensor([-1], dtype=torch.int32)}), "17"),
        (lambda a: a["kept"].update({"model.17": torch.ones(2)}), "kept: model.17"),
        (lambda a: a["widths"].update({"model.17": "x"}), "kept: model.17"),
        (lambda a: a.pop("widths"), "fingerprint, kept, widths"),
        (lambda a: a.update(fingerprint=3), "fingerprint"),
    ],
)
def test_edited_ancestors_are_refused(tmp_path, change, said):
    smaller, _ = cut_in_half(small(0.25))
    save_model(smaller, tmp_path / "a.pt")
    content = torch.load(tmp_path / "a.pt", weights_only=True)
    change(content["ancestors"][0])
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(UserError, match=f"ancestors.*{said}"):
        load_model(tmp_path / "a.pt")


# Trained


def test_adamw_steps_by_its_rate_whatever_the_weight():
    moved = []
    for factor in (1e-4, 1.0):
        torch.manual_seed(0)
        adapter = ADAPTERS["adamw"](pair())
        before = adapter.kernel.detach().clone()
        task = SimpleNamespace(modules=lambda a=adapter: [a])
        hook, trainer = TrainApart(), SimpleNamespace(task=task, precision=OFF)
        hook.on_fit_start(trainer)
        (factor * adapter(maps(2, 3, 4, 4), maps(2, 5, 4, 4))[0].square().mean()).backward()
        hook.on_grads_ready(trainer)
        assert adapter.kernel.grad is None
        moved.append((adapter.kernel - before).detach())
    assert_close(moved[0], moved[1], rtol=0.05, atol=1e-5)
    assert_close(moved[1].abs(), torch.full_like(moved[1], LR), rtol=0.05, atol=1e-5)


def test_layers_beside_the_student_do_not_slow_it():
    """An adapter with a huge gradient under SGD leaves the student's clipping as it is."""
    models = small(), small(0.25, seed=1)
    task = make_task(models, feature_loss=("mimic",), adapter="sgd", feature_weight=(0.01,))
    trainer = fit(task, epochs=1)
    weight = next(task.adapters.parameters())
    for parameter in task.model.parameters():
        parameter.grad = torch.full_like(parameter, 1e-6)
    weight.grad = torch.full_like(weight, 1e6)
    norm = trainer._clip()
    assert float(next(task.model.parameters()).grad.max()) == pytest.approx(1e-6)
    assert float(norm) == pytest.approx(float(weight.grad.norm()), rel=1e-4)
    assert float(weight.grad.max()) == 1e6


# What is watched


def test_explained_by_hand():
    t = torch.tensor([[[[1.0, 2, 3, 4]], [[1.0, -1, 1, -1]], [[5.0, 5, 5, 5]]]])
    s = torch.tensor([[[[2.0, 4, 6, 8]], [[1.0, 1, -1, -1]], [[1.0, 2, 3, 4]]]])
    assert explained(s, t) == pytest.approx((1 + 0) / 2)  # the third does not vary
    assert explained(torch.zeros_like(s), t) == 0 and explained(s, torch.ones_like(t)) == 0


def test_the_watch_fills_columns_and_changes_nothing():
    models = small(), small(0.25, seed=1)
    watched, alone = (make_task(models, feature_loss=("cwd",), logit_loss="ast") for _ in range(2))
    seen = fit(watched, [Watch()], epochs=3)
    fit(alone, epochs=3)
    assert same_state(watched, alone)
    first, *others = seen.history
    names = {f"kd/explained_{row}" for row in (17, 20, 23)} | {"kd/clip", "kd/gradient"}
    assert {name for name in first if name.startswith("kd/")} == names
    assert all(0 < row[f"kd/explained_{n}"] <= 1 for row in seen.history for n in (17, 20, 23))
    assert all(row["kd/gradient"] > 0 and 0 < row["kd/clip"] <= 1 for row in seen.history)
    assert all(row["kd/moved"] > 0 for row in others)


def test_the_watch_warns_of_layers_with_nothing_in_common(monkeypatch):
    said = []
    monkeypatch.setattr("distill.watch.LOGGER.warning", said.append)
    watch = Watch()
    watch._warn({"17": 0.5, "20": 0.02, "23": 0.01})
    watch._warn({"17": 0.01})
    assert (
        len(said) == 1 and "at layer 20, 23 the student's features explain less than 5%" in said[0]
    )


def test_detection_alone_has_no_layers_beside():
    model = small()
    trainer = fit(DetectionTask(model, build_loss(model, HYP.scaled(3, 3, 64))), epochs=1)
    assert not trainer._beside and 0 < trainer.mean_clip() <= 1


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"logit_loss": "ast", "adapter_every": 5}, "no effect without --feature-loss"),
        ({"logit_loss": "ast", "adapter": "none"}, "no effect without --feature-loss"),
        (
            {"feature_loss": ("cwd",), "adapter": "sgd", "adapter_every": 5},
            "--adapter-every has no effect with --adapter sgd",
        ),
        ({"feature_loss": ("cwd",), "adapter_every": 5}, ""),
    ],
)
def test_options_without_effect_are_named(monkeypatch, given, said):
    lines = []
    monkeypatch.setattr("utils.options.distill.LOGGER.warning", lines.append)
    options(**given).check()
    assert len(lines) == bool(said) and all(said in line for line in lines)
