"""The trainings inside `prune.py`: sparse training before the cut, the finetune after the cut.

Both can be interrupted and resumed.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, cast

from data.config import DataConfig
from models import Model, load_model
from models.checkpoint import load_checkpoint, save_checkpoint
from prune_methods.surgery.recalibrate import FreshStatistics
from recipes.distill import diagnostics, task_for
from recipes.prepare import prepare_hyp
from recipes.prune.context import PruneRun
from recipes.prune.report import REPORT_JSON
from recipes.resuming import require_same_classes, warn_if_changed
from recipes.session import TrainingRun
from recipes.train import FitResult, HookFactory, fit, resume
from recipes.train_sparse import sparse_hooks
from utils.config import load_yaml
from utils.engine.hooks import Hook, TrainerState
from utils.errors import UserError
from utils.files import copy_atomic
from utils.log import LOGGER
from utils.options.base import recorded, with_moves
from utils.options.distill import DistillOptions
from utils.options.prune import MOVED, PruneOptions
from utils.options.sparse import SparseOptions
from utils.options.stored import options_from
from utils.options.train import MOVABLE, Progress, TrainOptions
from utils.rundir import make_run_dir

SHARED = (
    "data",
    "loss",
    "optimizer",
    "patience",
    "batch_size",
    "cache",
    "max_det",
    "single_cls",
    "noplots",
    "device",
    "workers",
    "worker_timeout",
    "seed",
)
MOVES_FAST = 0.5  # share of a finetune in which running statistics lag behind the weights
BEFORE = -1  # epoch of the checkpoint that is written before the first one


class PruneStage:
    """Options of a training inside a pruning run, which is resumed by resuming the whole run."""

    script: ClassVar[str] = "prune.py"

    def resume_hint(self, run_dir: Path, progress: Progress = "epoch") -> str:
        """Return how to go on after an interruption; see TrainOptions."""
        return f"go on with: python prune.py --resume {run_dir.parent}"


@dataclass(frozen=True)
class SparseStage(PruneStage, SparseOptions):
    """Options of the sparse training that `--sparse-epochs` asks for."""


@dataclass(frozen=True)
class Finetune(PruneStage, TrainOptions):
    """Options of the finetune without a teacher."""


@dataclass(frozen=True)
class WithTeacherFinetune(PruneStage, DistillOptions):
    """Options of the finetune under a teacher."""


def sparse_train(run: PruneRun, model: Model) -> Model:
    """Train sparse for `--sparse-epochs` in `sparse/`; return the last model.

    There is no early stop, and the last model is taken instead of the fittest one: fitness may fall
    while channels fade, and the last model depends least on the channels that will be removed.
    """
    opt = run.opt
    common = _shared(run, opt.weights, opt.sparse_epochs, "sparse") | {"patience": 0}
    options = SparseStage(**common, **opt.teaching(), method=opt.method, reg=opt.sparse_reg)
    LOGGER.info(
        f"\nSparse training with {opt.method} for {opt.sparse_epochs} epochs in"
        f" {run.folder / 'sparse'}"
    )
    trained = _trained(copy.deepcopy(model), run.data, options, sparse_hooks)
    return load_model(trained.last, next(model.parameters()).device)


def finetune(run: PruneRun, smaller: Model) -> FitResult:
    """Train the pruned model in `finetune/`, a run folder of its own.

    The best checkpoint is copied beside `pruned.pt`.
    """
    opt, weights = run.opt, run.folder / "weights"
    common = _shared(run, str(weights / "pruned.pt"), opt.finetune_epochs, "finetune")
    if opt.teacher:
        options: TrainOptions = WithTeacherFinetune(**common, **opt.teaching())
    else:
        options = Finetune(**common)
    LOGGER.info(f"\nFinetuning for {opt.finetune_epochs} epochs in {run.folder / 'finetune'}")
    found = _trained(smaller, run.data, options, finetune_hooks)
    copy_atomic(found.best, weights / "best.pt")
    return found


def finetune_hooks(run: TrainingRun) -> Sequence[Hook]:
    """Return the hooks of a finetune, which may have a teacher.

    Weights move fast at its begin, and running statistics lag behind: without fresh ones most of
    the loss of mAP in the first epochs is not real.
    """
    return [FreshStatistics(until=MOVES_FAST), *diagnostics(run), StartIsCandidate(run)]


def interrupted_run(opt: PruneOptions) -> tuple[PruneOptions, Path]:
    """Return the options and the folder of the run that `--resume` names.

    A run is named by its folder, or by a checkpoint of one of its trainings. The options are those
    that the run was started with; the device may be another, and files may have moved.

    Raises:
        UserError: where the folder is not that of a run of prune.py.
    """
    opt.check_resume()
    given, path = opt.resume, Path(opt.resume)
    folder = path.absolute()
    if path.suffix == ".pt":  # <run>/<training>/weights/last.pt
        folder = folder.parent.parent.parent
    if not (folder / "opt.yaml").is_file():
        raise UserError(
            f"--resume {given}: has no opt.yaml of prune.py; give the folder of a run, as"
            " runs/prune/exp"
        )
    saved = load_yaml(folder / "opt.yaml")
    names = {item.name for item in fields(PruneOptions)}
    if not {"speed_up", "method"} <= set(saved):
        raise UserError(
            f"--resume {given}: is no run of prune.py; train.py, train_sparse.py and distill.py"
            " resume their own"
        )
    values = {name: value for name, value in saved.items() if name in names}
    old = options_from(PruneOptions, values, str(folder / "opt.yaml"))
    return with_moves(old, opt, MOVED), folder


def check_data(folder: Path, data: DataConfig, name: str) -> None:
    """Compare the data of a resumed run with what its `opt.yaml` says of those it began with.

    Args:
        folder: Folder of the run.
        data: Data set to go on with.
        name: Its name, for messages.

    Raises:
        UserError: The classes differ.
    """
    saved = load_yaml(folder / "opt.yaml")
    names = saved.get("class_names", data.names)
    require_same_classes(list(names), data.names, folder, name)
    warn_if_changed({"hash": saved.get("data_hash", data.hash)}, data)


def forget_earlier(folder: Path) -> None:
    """Delete what an earlier run of this name has left and this one would go on from.

    That is its report, which marks a finished cut, and the last checkpoints of its trainings.
    """
    (folder / REPORT_JSON).unlink(missing_ok=True)
    for stage in ("sparse", "finetune"):
        (folder / stage / "weights" / "last.pt").unlink(missing_ok=True)


def _shared(run: PruneRun, weights: str, epochs: int, name: str) -> dict[str, Any]:
    """Return the options that a training inside the run takes from the run."""
    opt = run.opt
    common = {option: getattr(opt, option) for option in SHARED}
    where = {"project": str(run.folder), "name": name}
    own = {"weights": weights, "hyp": opt.finetune_hyp, "epochs": epochs, "imgsz": opt.imgsz}
    return {**common, **where, **own}


def _trained(
    model: Model, data: DataConfig, options: TrainOptions, hooks: HookFactory
) -> FitResult:
    """Train the model in its run folder, or go on with the training that the folder holds."""
    run_dir = make_run_dir(options.project, options.name, exist_ok=True)
    last = run_dir / "weights" / "last.pt"
    if last.is_file():
        if "train_state" not in load_checkpoint(last):
            LOGGER.info(f"{run_dir}: this training is complete")
            return FitResult(last.with_name("best.pt"), last, None)
        return resume(_resumed(options, last), hooks, task_for)
    run = TrainingRun(model, data, prepare_hyp(options), options, run_dir)
    more = hooks(run)
    return fit(run, task=task_for(model, options), hooks=more)


def _resumed(options: TrainOptions, last: Path) -> TrainOptions:
    """Return options of the same class that resume a checkpoint."""
    moved = {name: getattr(options, name) for name in MOVABLE if hasattr(options, name)}
    return type(options)(resume=str(last), device=options.device, **moved)


class StartIsCandidate(Hook):
    """Validate the model before the first epoch: `best.pt` is never worse than the start."""

    main_only = True

    def __init__(self, run: TrainingRun):
        self.run = run

    def on_fit_start(self, trainer: TrainerState) -> None:
        """Write the start as `best.pt`; a resumed run has done that."""
        evaluate: Any = getattr(trainer, "evaluate", None)
        if trainer.step or evaluate is None:
            return
        model = cast(Model, trainer.ema.model)
        result = evaluate(model)
        trainer.best_fitness = float(result.fitness)
        LOGGER.info(f"Before the finetune: mAP50 {result.map50:.3f}, mAP50-95 {result.map:.3f}")
        fields = {"epoch": BEFORE, "best_fitness": trainer.best_fitness, "history": []}
        save_checkpoint(
            self.run.run_dir / "weights" / "best.pt",
            model,
            hyp=self.run.hyp.to_dict(),
            args=recorded(self.run.opt),
            **fields,
        )
