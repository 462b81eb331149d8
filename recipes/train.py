"""Train a detector: `train` makes the model ready, `fit` turns a ready model into a trained run folder."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.config import Hyp
from utils.hooks import Hook
from utils.tasks import DetectionTask, TaskFactory
from utils.train_options import TrainOptions


@dataclass(frozen=True)
class FitResult:
    """Where a training ended: stripped checkpoints and the last validation of the best one (`EvalResult`)."""

    best: Path
    last: Path
    result: Any


def fit(
    model: Any,
    data: Any,
    hyp: Hyp,
    opt: TrainOptions,
    run_dir: Path,
    *,
    task: TaskFactory = DetectionTask,
    hooks: Sequence[Hook] = (),
    resume: dict[str, Any] | None = None,
) -> FitResult:
    """Train a ready model on a data set into a run folder.

    `model` is a training-form Model whose `names` are the data's; `data` a `DataConfig`; `hyp` unscaled; `opt` says epochs,
    batch size, image size and so on; `run_dir` exists. `task(model, loss, world_size)` makes the task, `hooks` are called around
    the steps, `resume` is a loaded `last.pt`.
    """
    raise NotImplementedError
