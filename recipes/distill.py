"""`distill.py`: `train` with a teacher. train_sparse.py and prune.py's finetune stage take the same
task and diagnostics.
"""

from collections.abc import Sequence
from functools import partial
from typing import TypeGuard

from distill.diagnostics import Diagnostics
from distill.task import build_task, pair_up
from distill.teacher import take_anchors
from models import Model, load_model
from recipes.session import TrainingRun
from recipes.train import FitResult, train
from utils.engine.hooks import Hook
from utils.engine.tasks import DetectionTask, TaskFactory
from utils.options.distill import DistillOptions, TeacherOptions, WithTeacherOptions
from utils.options.train import TrainOptions


def distill(opt: DistillOptions) -> FitResult:
    """What distill.py does, from new weights, from a checkpoint, or going on with an interrupted
    run.
    """
    return train(opt, diagnostics, task_for)


def task_for(model: Model, opt: TrainOptions) -> TaskFactory:
    """The task factory for `recipes.train`: plain detection without a teacher.

    A new student takes the anchors if they count.
    """
    if not _distils(opt):
        return DetectionTask
    teacher = load_model(opt.teacher)
    if opt.cfg and opt.logit:
        take_anchors(model, teacher)
    return partial(build_task, pairing=pair_up(model, teacher, opt), opt=opt)


def diagnostics(run: TrainingRun) -> Sequence[Hook]:
    """The hook that says whether distillation works; none without a teacher."""
    return [Diagnostics()] if _distils(run.opt) else []


def check_teacher(model: Model, opt: TeacherOptions) -> None:
    """`UserError` where a teacher is given that does not fit; long before `task_for` needs it."""
    if opt.distils:
        pair_up(model, load_model(opt.teacher, next(model.parameters()).device), opt)


def _distils(opt: TrainOptions) -> TypeGuard[WithTeacherOptions]:
    return isinstance(opt, WithTeacherOptions) and opt.distils
