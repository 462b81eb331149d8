"""The task with a teacher: what is read, what is added, what stays as it is."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from distill.adapters import LayerPair
from distill.adapters.fixed import Unchanged
from distill.apart import TrainApart
from distill.diagnostics import Diagnostics, report_gradient, share_report
from distill.feature_hooks import FeatureHooks, find_layer, head_inputs
from distill.pairing import Pairing, pair_up, paired_channels
from distill.task import DistillLosses, DistillTask, build_task
from distill.teacher import Teacher, check_heads, check_size, take_anchors
from distill.watch import Watch
from models import build_model
from recipes.distill import task_for
from tests.test_trainer_model import HYP, SyntheticLoader
from utils.config import load_yaml, resolve
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
from utils.options.distill import DistillOptions, TeacherOptions
from utils.options.prune import PruneOptions
from utils.options.sparse import SparseOptions

IMAGES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
TARGETS = torch.tensor([[0, 1, 0.5, 0.5, 0.4, 0.3], [1, 2, 0.3, 0.6, 0.2, 0.2]])
GIVEN = {"teacher": "t.pt", "cfg": "yolov5n", "data": "demo", "seed": 3}
ONE_ROW = ["[64, 1, Conv, [8, 3, 2]]"]


def small(width: float = 0.125, nc: int = 3, seed: int = 0, tag: str | None = None):
    """A YOLOv5 of the given width; its row 17 may have a tag."""
    torch.manual_seed(seed)
    cfg = load_yaml(resolve("yolov5n", "model")) | {"width_multiple": width}
    if tag:
        cfg["head"][17 - len(cfg["backbone"])].append(tag)
    return build_model(cfg, nc=nc)


@pytest.fixture(scope="module")
def models():
    """A student and a wider teacher; tests that change one take a copy."""
    return small(), small(0.25, seed=1)


def make_task(models, world_size: int = 1, **options) -> DistillTask:
    student, teacher = copy.deepcopy(models[0]), copy.deepcopy(models[1])
    opt = DistillOptions(**GIVEN | options)
    opt.check()
    return build_task(
        student,
        build_loss(student, HYP.scaled(3, 3, 64)),
        world_size,
        pairing=pair_up(student, teacher, opt),
        opt=opt,
    )


class Gap(nn.Module):
    """mean |s| of the student's map alone, times a trained factor."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))

    def forward(self, s, t):
        return self.gain * s.abs().mean()


def with_gap(models, world_size=1, **more):
    """A task with losses that can be computed by hand: Gap on the head's inputs, and the raw maps'
    mean square.
    """
    student = copy.deepcopy(models[0])
    return DistillTask(
        student,
        build_loss(student, HYP.scaled(3, 3, 64)),
        world_size,
        pairing=Pairing(
            FeatureHooks(student, head_inputs(student), "--student-layers"),
            Teacher(models[1], head_inputs(models[1])),
            pairs=(),
        ),
        losses=DistillLosses(
            {"gap": [Gap() for _ in range(3)]},
            [Unchanged(LayerPair("", "", (1, 1))) for _ in range(3)],
            {"gap": 0.5, "square": 0.25},
            logit=("square", SimpleSquare()),
            **more,
        ),
    )


class SimpleSquare(nn.Module):
    def forward(self, student, teacher):
        return torch.stack(
            [(s - t).square().mean() for s, t in zip(student, teacher, strict=True)]
        ).sum()


# What is read


def test_feature_hooks_read_by_number_tag_and_path_and_leave_no_hook():
    model = small(tag="finest").eval()
    hooks = FeatureHooks(model, ["17", "finest", "model.17.cv3", "model.20"], "--student-layers")
    with hooks.reading() as maps:
        model(IMAGES)
    assert [tuple(m.shape[1:]) for m in maps] == [(32, 8, 8)] * 3 + [(64, 4, 4)]
    assert torch.equal(maps[0], maps[1]) and torch.equal(maps[0], maps[2]), "a C3 ends with its cv3"
    seen = []
    model.model[17].register_forward_hook(lambda module, inputs, output: seen.append(output))
    model(IMAGES)
    assert torch.equal(seen[0], maps[0])
    assert sum(len(m._forward_hooks) for m in model.modules()) == 1, (
        "only the hook of this test is left"
    )


def test_taps_leave_no_hook_where_the_model_fails():
    model = small().eval()
    with pytest.raises(RuntimeError), FeatureHooks(model, ["17"], "--student-layers").reading():
        model(torch.zeros(1, 7, 64, 64))
    assert not any(m._forward_hooks for m in model.modules())


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("25", "--student-layers 25: the model has the rows 0 to 24"),
        ("fines", "--student-layers fines: no such layer; did you mean 'finest'?"),
        ("model.17.cv4", "did you mean 'model.17.cv"),
    ],
)
def test_layers_that_are_not_there(name, said):
    with pytest.raises(UserError, match=said.replace("?", r"\?")):
        find_layer(small(tag="finest"), name, "--student-layers")


@pytest.mark.parametrize(
    ("name", "said"),
    [("24", "gives no feature map"), ("model.17.cv3.bn", "overwrites its output in place")],
)
def test_layers_that_cannot_be_compared(name, said):
    hooks = FeatureHooks(small_relu(), [name], "--teacher-layers")
    with pytest.raises(UserError, match=f"--teacher-layers {name}: .*{said}"):
        hooks.shapes(64)


def small_relu():
    cfg = load_yaml(resolve("yolov5n", "model")) | {
        "width_multiple": 0.125,
        "activation": "nn.ReLU()",
    }
    return build_model(cfg, nc=3)


def test_shapes_move_no_statistic_and_put_the_mode_back():
    model = small().train()
    before = copy.deepcopy(model.state_dict())
    assert FeatureHooks(model, head_inputs(model), "--student-layers").shapes(128) == [
        (32, 16, 16),
        (64, 8, 8),
        (128, 4, 4),
    ]
    assert model.training and all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_layers_that_feed_the_head_are_found_in_every_family():
    assert head_inputs(build_model("yolov5n")) == ["17", "20", "23"]
    assert head_inputs(build_model("yolov7-tiny")) == ["74", "75", "76"]


# The teacher


def test_teacher_gives_the_maps_of_its_model_and_is_no_part_of_the_task(models):
    task = make_task(models, feature_loss=("cwd",), logit_loss="ast")
    task.train()
    raw, maps = task.teacher(IMAGES)
    with torch.no_grad():
        _, expected = copy.deepcopy(models[1]).eval()(IMAGES)
    for found, wanted in zip(raw, expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    assert not any(m.training for m in task.teacher.model.modules())
    assert not any(t.requires_grad for t in (*raw, *maps, *task.teacher.model.parameters()))
    inside = {id(t) for t in (*task.parameters(), *task.buffers())}
    assert not inside & {
        id(t) for t in (*task.teacher.model.parameters(), *task.teacher.model.buffers())
    }


def test_a_student_that_is_its_teacher_has_nothing_to_learn(models):
    task = make_task(
        (models[1], models[1]),
        feature_loss=("cwd", "mimic", "pkd"),
        logit_loss="l2",
        adapter="none",
    ).eval()
    with task.feature_hooks.reading() as maps:
        _, raw = task.model(IMAGES)
    terms = task.distillation(IMAGES, raw, maps)
    assert list(terms) == ["l2", "cwd", "mimic", "pkd"] and all(
        0 <= v.detach() < 1e-6 for v in terms.values()
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: setattr(m, "nc", 2), "classes are 2, the student's 3"),
        (lambda m: m.head.set_anchors(m.head.anchors_px * 1.01), r"anchors are \[\[10, 13"),
        (
            lambda m: m.head.stride.mul_(2),
            r"strides are \[16, 32, 64\], the student's \[8, 16, 32\]",
        ),
        (
            lambda m: setattr(m.head, "anchors", m.head.anchors.repeat(1, 2, 1)[:, :5]),
            "anchors a level are 5, the student's 3",
        ),
    ],
)
def test_heads_that_cannot_be_compared(models, change, said):
    teacher = copy.deepcopy(models[1])
    change(teacher)
    with pytest.raises(UserError, match=f"--logit-loss: the teacher's {said}"):
        check_heads(models[0], teacher)


def test_anchors_may_differ_by_rounding_only(models):
    teacher = copy.deepcopy(models[1])
    teacher.head.set_anchors(teacher.head.anchors_px * 1.0005)
    check_heads(models[0], teacher)


def test_a_new_student_takes_the_anchors_of_its_teacher(models):
    student, teacher = copy.deepcopy(models[0]), copy.deepcopy(models[1])
    teacher.head.set_anchors(teacher.head.anchors_px + 3)
    take_anchors(student, teacher)
    assert torch.equal(student.head.anchors, teacher.head.anchors)
    check_heads(student, teacher)


def test_a_teacher_of_larger_strides_needs_other_images(models):
    teacher = copy.deepcopy(models[1])
    teacher.max_stride = 64
    with pytest.raises(UserError, match="a level of stride 64, the student's largest is 32"):
        check_size(models[0], teacher)
    check_size(models[0], teacher, imgsz=640)
    with pytest.raises(UserError, match="as --imgsz 384, without --rect and --multi-scale"):
        check_size(models[0], teacher, imgsz=400)


def test_pairs_must_be_as_many_and_of_equal_stride(models):
    ours = FeatureHooks(models[0], ["17", "20"], "--student-layers")
    assert paired_channels(ours, FeatureHooks(models[1], ["17", "20"], "--teacher-layers")) == [
        (32, 64),
        (64, 128),
    ]
    with pytest.raises(UserError, match="2 and 1 layers; name as many of both"):
        paired_channels(ours, FeatureHooks(models[1], ["17"], "--teacher-layers"))
    with pytest.raises(
        UserError, match="--student-layers 20 and --teacher-layers 17: strides 16 and 8 px"
    ):
        paired_channels(ours, FeatureHooks(models[1], ["17", "17"], "--teacher-layers"))


def test_another_family_teaches_by_features(models):
    torch.manual_seed(2)
    task = make_task((models[0], build_model("yolov7-tiny", nc=5)), feature_loss=("cwd",))
    parts = task(IMAGES, TARGETS)
    shapes = [adapter.kernel.shape[:2] for adapter in task.adapters]
    assert float(parts["raw_cwd"]) > 0 and shapes == [(128, 32), (256, 64), (512, 128)]


# What is added


@pytest.mark.parametrize("world_size", [1, 2])
def test_batch_and_world_size_count_once(models, world_size):
    """loss = world * (detection, its own batch factor in it, + factor * N * sum of weight * value),
    columns without N.
    """
    task = with_gap(models, world_size, schedule=lambda step, steps: 1 - step / steps).eval()
    task.start_batch(1, 4)
    with FeatureHooks(task.model, head_inputs(task.model), "").reading() as maps:
        _, raw = task.model(IMAGES)
    gap = sum(m.abs().mean() for m in maps)
    square = task.logit(raw, task.teacher(IMAGES)[0])
    task.model.forward = lambda images, call=task.model.forward: call(images)[
        1
    ]  # the raw maps, as in training
    parts = task(IMAGES, TARGETS)
    detection, _ = task.loss(raw, TARGETS)
    wanted = world_size * (detection + 0.75 * 2 * (0.5 * gap + 0.25 * square))
    torch.testing.assert_close(parts["loss"], wanted)
    torch.testing.assert_close(parts["kd_feature"], 0.75 * 0.5 * gap)
    torch.testing.assert_close(parts["kd_logit"], 0.75 * 0.25 * square)
    torch.testing.assert_close([parts["raw_gap"], parts["raw_square"]], [gap, square])
    assert list(parts) == [
        "loss",
        "box",
        "obj",
        "cls",
        "kd_logit",
        "kd_feature",
        "raw_square",
        "raw_gap",
    ]
    assert not any(value.requires_grad for name, value in parts.items() if name != "loss")


@pytest.mark.parametrize(("world_size", "expected"), [(1, None), (2, 0.0)])
def test_a_schedule_at_zero_leaves_the_plain_gradients(models, world_size, expected):
    """And adapters rest: no gradient, so no weight decay; zeros among several processes, which wait
    for all of them.
    """
    task = with_gap(models, world_size, schedule=lambda step, steps: 0.0)
    task.teacher = None  # it would fail if it were called
    task.start_batch(0, 1)
    plain = DetectionTask(copy.deepcopy(models[0]), task.loss, world_size)
    parts = task.train()(IMAGES, TARGETS)
    parts["loss"].backward()
    plain.train()(IMAGES, TARGETS)["loss"].backward()
    for ours, theirs in zip(task.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad)
    assert [p.grad if p.grad is None else float(p.grad) for p in task.features.parameters()] == [
        expected
    ] * 3
    assert [float(parts[name]) for name in ("kd_logit", "kd_feature", "raw_gap")] == [0.0, 0.0, 0.0]


def test_adapters_are_their_seeds_and_disturb_nobody(models):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = make_task(models, feature_loss=("mgd",))
    assert torch.equal(torch.rand(3), expected)
    second, third = (
        make_task(models, feature_loss=("mgd",)),
        make_task(models, feature_loss=("mgd",), seed=4),
    )
    weights = [[p.detach() for p in task.features.parameters()] for task in (first, second, third)]
    assert all(torch.equal(a, b) for a, b in zip(weights[0], weights[1], strict=True))
    assert not torch.equal(weights[0][0], weights[2][0])


# In training


def fit(task, hooks=(), epochs=2):
    """Trains a task on noise with the diagnostics and whatever else looks on."""
    seed_everything(0)
    trainer = Trainer(
        task=task,
        loader=SyntheticLoader(),
        optimizer=build_optimizer(task, "SGD", HYP, 4),
        schedule=Schedule(HYP, epochs=epochs, batches=4, batch_size=4),
        ema=ModelEMA(task.model),
        epochs=epochs,
        precision=Precision("off", torch.device("cpu")),
        hooks=hooks,
    )
    trainer.fit()
    return trainer


def same_state(a: nn.Module, b: nn.Module) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return first.keys() == second.keys() and all(
        torch.equal(first[name], second[name]) for name in first
    )


def test_weight_zero_is_plain_training_to_the_bit(models):
    """Off by the schedule: teacher, adapters, hooks and the diagnostics are there and leave no
    trace.
    """
    task = make_task(models, feature_loss=("cwd", "mgd"), logit_loss="ast", kd_stop=0.0)
    taught = fit(task, [Diagnostics()])
    plain = copy.deepcopy(models[0])
    alone = fit(DetectionTask(plain, build_loss(plain, HYP.scaled(3, 3, 64))))
    assert same_state(task.model, plain) and same_state(taught.ema.model, alone.ema.model)
    assert not same_state(task.model, models[0])


def test_losses_of_weight_zero_are_left_out(models):
    task = make_task(
        models,
        feature_loss=("cwd", "mgd"),
        feature_weight=(0.0, 0.3),
        logit_loss="ast",
        logit_weight=0.0,
    )
    assert task.weights == {"mgd": 0.3} and list(task.features) == ["mgd"] and task.logit is None
    opt = DistillOptions(**GIVEN | {"logit_loss": "ast", "logit_weight": 0.0})
    assert task_for(models[0], opt) is DetectionTask  # not even loaded: there is no t.pt


class Factors(Hook):
    def __init__(self):
        self.seen = []

    def on_batch_end(self, trainer):
        self.seen.append(round(trainer.task.factor, 6))


def test_training_moves_student_and_adapters_but_not_the_teacher(models):
    task = make_task(
        models,
        feature_loss=("mgd",),
        kd_schedule="linear",
        kd_floor=0.0,
        kd_stop=0.75,
        kd_warmup=0.5,
        epochs=2,
    )
    teacher, before = copy.deepcopy(task.teacher.model), copy.deepcopy(task.features)
    factors = Factors()
    trainer = fit(task, [factors, TrainApart(), Diagnostics(), Watch()])
    assert same_state(task.teacher.model, teacher)
    assert factors.seen == [
        0.0,
        0.4375,
        0.75,
        0.625,
        0.5,
        0.375,
        0.0,
        0.0,
    ]  # warm-up of 2 of 8 batches, off after 6
    assert [row["kd/factor"] for row in trainer.history] == [0.625, 0.0]
    assert [row["train/kd_feature"] > 0 for row in trainer.history] == [True, True]
    assert all(
        not torch.equal(a, b)
        for a, b in zip(before.parameters(), task.features.parameters(), strict=True)
    )
    trained = [id(p) for group in trainer.optimizer.param_groups for p in group["params"]]
    assert not any(id(p) in trained for p in task.features.parameters())
    state = trainer.state_dict()["task"]
    assert all(f"features.{name}" in state for name in task.features.state_dict())
    assert (
        task.model.state_dict().keys()
        == models[0].state_dict().keys()
        == trainer.ema.model.state_dict().keys()
    )
    assert not any(m._forward_hooks for m in (*task.model.modules(), *trainer.ema.model.modules()))


# The diagnostics


def test_the_diagnostics_change_nothing(models):
    task = make_task(models, feature_loss=("mgd",), logit_loss="ast").train()
    before, generator = copy.deepcopy(task.state_dict()), torch.get_rng_state()
    report_gradient(task, IMAGES)
    assert torch.equal(generator, torch.get_rng_state()) and task.training and task.model.training
    assert all(torch.equal(before[name], value) for name, value in task.state_dict().items())
    assert all(p.grad is None for p in task.parameters())


def test_the_diagnostics_prove_that_gradient_arrives(models, monkeypatch):
    said = []
    monkeypatch.setattr(LOGGER, "info", said.append)
    monkeypatch.setattr(LOGGER, "warning", said.append)
    plain = {"feature_args": ("mimic.norm=False",)}
    task = make_task(models, feature_loss=("mimic",), adapter="sgd", **plain)
    total = len(list(task.model.parameters()))
    report_gradient(task, IMAGES)
    # not at the head
    arrived = (
        f"Gradient of distillation reaches {total - 6} of the student's {total} trained tensors"
    )
    assert said.pop() == arrived
    for parameter in task.model.parameters():
        parameter.requires_grad_(False)
    task.model.head.m[0].bias.requires_grad_(True)
    report_gradient(task, IMAGES)
    assert "no gradient of distillation reaches the student" in said.pop()


@pytest.mark.parametrize(
    ("detection", "values", "said"),
    [
        (
            2.0,
            (1.0, 0.5),
            "Distillation is 42.9% of the loss over the first batches (cwd 28.6%, ast 14.3%)",
        ),
        (
            0.7,
            (6.0, 3.0),
            "drown the labels; --feature-weight 0.033 --logit-weight 0.067 would make it 30%",
        ),
        (
            7.0,
            (0.001, 0.002),
            "hardly do anything; --feature-weight 1000 --logit-weight 2000 would make it 30%",
        ),
        (7.0, (0.0, 0.0), "student and teacher agree in all that is compared"),
    ],
)
def test_the_diagnostics_suggest_weights_by_the_share(detection, values, said):
    """Checked by hand: 0.7 of detection wants 0.3 of distillation, which is 9 with the weights 1
    and 2.
    """
    task = SimpleNamespace(
        weights={"cwd": 1.0, "ast": 2.0}, features={"cwd": None}, logit_name="ast"
    )
    assert said in share_report(detection, dict(zip(("cwd", "ast"), values, strict=True)), task)


# Options


def test_every_script_with_a_teacher_has_the_same_options():
    words = (
        "--teacher t.pt --feature-loss cwd mgd --feature-weight 1 .1 --student-layers 17,20 23"
        " --feature-args mgd.alpha=2"
    )
    more = "--weights w.pt --data demo".split()  # noqa: SIM905
    for kind in (DistillOptions, SparseOptions, PruneOptions):
        opt = parse_options(kind, [*words.split(), *more])
        opt.check()
        assert opt.distils and opt.feature_weights == {"cwd": 1.0, "mgd": 0.1}
        assert opt.layers(opt.student_layers) == ["17", "20", "23"]
        assert opt.loss_arguments() == {"cwd": {}, "mgd": {"alpha": 2}}
        assert TeacherOptions(**opt.teaching()).teaching() == opt.teaching()


def test_autoanchor_stays_away_from_anchors_that_must_be_equal():
    assert DistillOptions(**GIVEN | {"feature_loss": ("cwd",)}).fits_anchors
    assert not DistillOptions(**GIVEN | {"logit_loss": "ast"}).fits_anchors
    assert DistillOptions(**GIVEN | {"logit_loss": "ast", "logit_weight": 0.0}).fits_anchors


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"teacher": ""}, "missing: a teacher"),
        ({"teacher": "", "feature_loss": ("cwd",)}, "--feature-loss: needs a teacher"),
        ({}, "nothing says what to learn"),
        ({"feature_loss": ("cwd", "cwd")}, "cwd is given twice"),
        (
            {"feature_loss": ("cwd", "mgd"), "feature_weight": (1.0, 2.0, 3.0)},
            "3 weights for 2 feature losses",
        ),
        (
            {"feature_loss": ("cwd",), "feature_weight": (-1.0,)},
            "--feature-weight -1: must not be negative",
        ),
        (
            {"logit_loss": "l1", "logit_weight": float("nan")},
            "--logit-weight nan: must not be negative",
        ),
        ({"logit_loss": "l1", "kd_floor": 1.5}, "--kd-floor 1.5: must be from 0 to 1"),
        ({"logit_loss": "l1", "kd_warmup": -1.0}, "--kd-warmup -1: must not be negative"),
        (
            {"feature_loss": ("cwd",), "feature_args": ("mgd.alpha=1",)},
            r"--feature-args mgd.alpha=1: must be loss.name=value",
        ),
    ],
)
def test_wrong_options_are_one_line(options, said):
    with pytest.raises(UserError, match=said):
        DistillOptions(**GIVEN | options).check()


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("mgd.alfa=1", "alfa: not known; did you mean 'alpha'"),
        ("mgd.alpha=much", "alpha=much: must be a number"),
    ],
)
def test_arguments_of_losses_are_checked(models, word, said):
    with pytest.raises(UserError, match=said):
        make_task(models, feature_loss=("mgd",), feature_args=(word,))


def test_without_a_weight_each_loss_has_its_own(models):
    task = make_task(models, feature_loss=("cwd", "mgd"), logit_loss="ast")
    assert dict(task.weights) == {"cwd": 0.1, "mgd": 0.01, "ast": 1.0}
    task = make_task(models, feature_loss=("cwd", "mgd"), feature_weight=(0.5,))
    assert dict(task.weights) == {"cwd": 0.5, "mgd": 0.5}
