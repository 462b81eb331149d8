"""`distill.py`: `train` with a teacher.

train_sparse.py and the finetune stage of prune.py use the same task and diagnostics.
"""

from collections.abc import Sequence
from functools import partial
from typing import TypeGuard

from distill.apart import TrainApart
from distill.diagnostics import Diagnostics
from distill.pairing import pair_up
from distill.task import build_task
from distill.teacher import take_anchors
from distill.watch import Watch
from models import Model, load_model
from recipes.session import TrainingRun
from recipes.train import FitResult, train
from utils.engine.hooks import Hook
from utils.engine.tasks import DetectionTask, TaskFactory
from utils.options.distill import DistillOptions, TeacherOptions, WithTeacherOptions
from utils.options.train import TrainOptions


def distill(opt: DistillOptions) -> FitResult:
    """Run distill.py: from new weights, from a checkpoint, or from an interrupted run."""
    return train(opt, diagnostics, task_for)


def task_for(model: Model, opt: TrainOptions) -> TaskFactory:
    """Return the task factory of a training: distillation, or plain detection without a teacher.

    A new student gets the anchors of its teacher where a logit loss compares their predictions.

    Raises:
        UserError: The teacher does not fit the model.
    """
    if not _distils(opt):
        return DetectionTask
    teacher = load_model(opt.teacher)
    if opt.cfg and opt.logit:
        take_anchors(model, teacher)
    return partial(build_task, pairing=pair_up(model, teacher, opt), opt=opt)


def diagnostics(run: TrainingRun) -> Sequence[Hook]:
    """Return the hook that reports whether distillation works; none without a teacher."""
    return [TrainApart(), Diagnostics(), Watch()] if _distils(run.opt) else []


def check_teacher(model: Model, opt: TeacherOptions) -> None:
    """Check a given teacher long before `task_for` needs it.

    Raises:
        UserError: The teacher does not fit the model.
    """
    if opt.distils:
        pair_up(model, load_model(opt.teacher, next(model.parameters()).device), opt)


def _distils(opt: TrainOptions) -> TypeGuard[WithTeacherOptions]:
    return isinstance(opt, WithTeacherOptions) and opt.distils
