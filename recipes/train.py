"""Train a detector: `train` makes the model ready, `fit` trains a ready model into a run folder."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data.config import load_data
from models import Model
from models.checkpoint import load_checkpoint, load_model, model_from_checkpoint
from recipes.prepare import class_names, prepare_hyp, prepare_model
from recipes.resuming import (
    data_of,
    note_moves,
    progress,
    require_train_state,
    run_folder,
    written,
)
from recipes.session import Session, TrainingRun, build_trainer, with_whole_strides
from utils.config import load_hyp, save_yaml
from utils.engine import dist
from utils.engine.device import device_name, select_device
from utils.engine.hooks import Hook
from utils.engine.run_hooks import GracefulStop
from utils.engine.seed import seed_everything
from utils.engine.tasks import DetectionTask, TaskFactory
from utils.errors import UserError
from utils.evaluator import EvalResult, evaluate, log_table
from utils.log import LOGGER, logging_to
from utils.options.base import with_moves
from utils.options.train import TrainOptions
from utils.plots.evaluation import batch_pictures, plot_evaluation
from utils.run_lock import run_lock
from utils.rundir import environment, latest_checkpoint, make_run_dir, save_options

HookFactory = Callable[[TrainingRun], Sequence[Hook]]
"""Makes the further hooks of a run; a resumed run calls it again."""

TaskMaker = Callable[[Model, TrainOptions], TaskFactory]
"""Makes the task factory of a run; may change the model, before its loss is made.

Called before the run has a folder, so that a teacher that does not fit leaves no folder behind. A
resumed run calls it again.
"""


@dataclass(frozen=True)
class FitResult:
    """Where a training ended.

    Args:
        best: Checkpoint of the best epoch, stripped.
        last: Checkpoint of the last epoch, stripped.
        result: Validation of the best checkpoint; None on ranks other than 0, and for a training
            that was complete before.
    """

    best: Path
    last: Path
    result: EvalResult | None


def no_hooks(run: TrainingRun) -> Sequence[Hook]:
    """Return no further hooks: plain training."""
    return ()


def detection(model: Model, opt: TrainOptions) -> TaskFactory:
    """Return the task factory of a training without a teacher."""
    return DetectionTask


def train(
    opt: TrainOptions, hooks: HookFactory = no_hooks, task: TaskMaker = detection
) -> FitResult:
    """Run train.py: make model and data from the options, then `fit`; or resume a run."""
    if opt.resume:
        return resume(opt, hooks, task)
    opt.check()
    world = dist.world_from_env()
    with dist.process_group(world, select_device(opt.device, world.local_rank)):
        with dist.main_first(world):
            data = load_data(opt.data)
        hyp = prepare_hyp(opt)
        seed_everything(opt.seed)
        model = prepare_model(opt, hyp, class_names(data.names, opt.single_cls))
        task_factory = task(model, opt)
        run_dir = make_run_dir(opt.project, opt.name, opt.exist_ok) if world.main else Path()
        run = TrainingRun(model, data, hyp, opt, dist.broadcast(run_dir, world))
        return fit(run, task=task_factory, hooks=hooks(run), new_anchors=opt.fits_anchors)


def resume(
    opt: TrainOptions, hooks: HookFactory = no_hooks, task: TaskMaker = detection
) -> FitResult:
    """Go on with an interrupted run in its own folder, with its own options.

    `opt.resume` is the path of a `last.pt`, or "latest" for the newest below `opt.project`; of the
    other options only the device is used, and those that say where moved files are.

    Raises:
        UserError: There is no such checkpoint, its training has finished, it lies outside of its
            run's folder, or the classes of the data have changed.
    """
    path = latest_checkpoint(opt.project) if opt.resume == "latest" else Path(opt.resume)
    checkpoint = load_checkpoint(path)
    require_train_state(path, checkpoint)
    old = with_moves(type(opt).from_dict(checkpoint["args"]), opt)
    folder = run_folder(path, checkpoint["args"])
    data = data_of(path, checkpoint, old)
    hyp = load_hyp(checkpoint["hyp"])
    LOGGER.info(f"Resuming {path} after epoch {checkpoint['epoch']}")
    model = model_from_checkpoint(checkpoint)
    task_factory = task(model, old)
    run = TrainingRun(model, data, hyp, old, folder)
    return fit(run, task=task_factory, hooks=hooks(run), resume=checkpoint["train_state"])


def fit(
    run: TrainingRun,
    *,
    task: TaskFactory = DetectionTask,
    hooks: Sequence[Hook] = (),
    resume: dict[str, Any] | None = None,
    new_anchors: bool = False,
) -> FitResult:
    """Train a ready model on a data set into a run folder.

    Args:
        run: Model, data, hyper-parameters, options and folder.
        task: Makes the task from (model, detection loss, world size).
        hooks: Further hooks, called around the steps.
        resume: `train_state` of a `last.pt`; None for a new run.
        new_anchors: Whether autoanchor may replace anchors that fit the data badly.
    """
    world = dist.world_from_env()
    device = select_device(run.opt.device, world.local_rank)
    lock = run_lock(run.run_dir) if world.main else nullcontext()
    log = logging_to(run.run_dir / "log.txt") if world.main else nullcontext()
    last = run.run_dir / "weights" / "last.pt"
    earlier = 0 if resume else written(last)
    stop = GracefulStop(lambda: run.opt.resume_hint(run.run_dir, progress(last, earlier)))
    with lock, log, dist.process_group(world, device), stop:
        run = replace(run, opt=with_whole_strides(run.opt, run.stride), model=run.model.to(device))
        session = Session(run, world, device)
        if world.main and resume is None:
            _record(session)
        elif world.main:
            note_moves(run.opt, run.run_dir)
        trainer = build_trainer(session, task, [*hooks, stop], new_anchors)
        if resume is not None:
            trainer.load_state_dict(resume)
        LOGGER.info(
            f"{run.opt.epochs} epochs of {len(trainer.loader)} batches at {run.opt.imgsz} px on"
            f" {device_name(device)}"
        )
        LOGGER.info(f"{run.model.summary()}")
        trainer.fit()
        best = last.with_name("best.pt")
        result = _final_validation(session, best) if world.main else None
    LOGGER.info(f"Results saved to {run.run_dir}")
    return FitResult(best, last, result)


def _record(session: Session) -> None:
    """Write what a new run is made of into its folder."""
    run, folder = session.run, session.run.run_dir
    (folder / "weights").mkdir(exist_ok=True)
    origin = environment(session.device)
    save_options(run.opt, folder / "opt.yaml", **origin, data_hash=run.data.hash)
    save_yaml(run.hyp.to_dict(), folder / "hyp.yaml")
    save_yaml(run.effective_hyp.to_dict(), folder / "hyp_effective.yaml")
    save_yaml(run.model.cfg, folder / "model.yaml")


def _final_validation(session: Session, best: Path) -> EvalResult:
    """Validate `best.pt` as it is deployed, log a line for each class and draw the pictures."""
    run, opt = session.run, session.run.opt
    if not best.is_file():
        raise UserError(
            f"{run.run_dir}: no checkpoint was written, the weights were never finite; try a"
            " lower lr0"
        )
    model = load_model(best, session.device)
    pictures = None if opt.noplots else batch_pictures(model.names, run.run_dir)
    result = evaluate(
        model.fuse(),
        session.val_loader,
        names=model.names,
        single_cls=opt.single_cls,
        max_det=opt.max_det,
        coco=True,
        on_batch=pictures,
    )
    LOGGER.info(f"\nBest epoch, {best}:")
    log_table(result, per_class=True)
    if result.coco:
        LOGGER.info(
            "COCO metric: "
            + ", ".join(f"{name} {value:.4g}" for name, value in result.coco.items())
        )
    if not opt.noplots:
        plot_evaluation(result, model.names, run.run_dir)
    return result
