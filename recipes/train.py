"""Train a detector: `train` makes the model ready, `fit` turns a ready model into a trained run
folder.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data.config import DataConfig, load_data
from models import Model
from models.checkpoint import load_checkpoint, load_model, model_from_checkpoint
from recipes.prepare import class_names, prepare_hyp, prepare_model
from recipes.session import Session, build_trainer, whole_strides
from utils.config import Hyp, save_yaml
from utils.engine import dist
from utils.engine.device import device_name, select_device
from utils.engine.hooks import Hook
from utils.engine.run_hooks import GracefulStop
from utils.engine.seed import seed_everything
from utils.engine.tasks import DetectionTask, TaskFactory
from utils.errors import UserError
from utils.evaluator import evaluate, log_table
from utils.log import LOGGER, logging_to
from utils.options.train import TrainOptions
from utils.plots.evaluation import batch_pictures, plot_evaluation
from utils.rundir import environment, latest_checkpoint, make_run_dir, save_options

HookFactory = Callable[[Model, Hyp, TrainOptions, Path], Sequence[Hook]]
"""Makes the further hooks of a run from (model, hyp, options, run folder); a resumed run calls it
again.
"""


TaskMaker = Callable[[Model, Hyp, TrainOptions], TaskFactory]
"""Makes the task factory of a run; may change the model, before its loss is made.

A resumed run calls it again.
"""


@dataclass(frozen=True)
class FitResult:
    """Where a training ended: stripped checkpoints, and the validation of the best one
    (`EvalResult`, only on rank 0).
    """

    best: Path
    last: Path
    result: Any


def no_hooks(model: Model, hyp: Hyp, opt: TrainOptions, run_dir: Path) -> Sequence[Hook]:
    """Plain training."""
    return ()


def detection(model: Model, hyp: Hyp, opt: TrainOptions) -> TaskFactory:
    """Training without a teacher."""
    return DetectionTask


def train(
    opt: TrainOptions, hooks: HookFactory = no_hooks, task: TaskMaker = detection
) -> FitResult:
    """What train.py does: model and data from the options, then `fit`."""
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
        factory = task(model, hyp, opt)
        run_dir = make_run_dir(opt.project, opt.name, opt.exist_ok) if world.main else Path()
        run_dir = dist.broadcast(run_dir, world)
        more = hooks(model, hyp, opt, run_dir)
        return fit(
            model, data, hyp, opt, run_dir, task=factory, hooks=more, new_anchors=opt.fits_anchors
        )


def resume(
    opt: TrainOptions, hooks: HookFactory = no_hooks, task: TaskMaker = detection
) -> FitResult:
    """Go on with an interrupted run in its own folder, with its own options; only the device may be
    another.
    """
    path = latest_checkpoint(opt.project) if opt.resume == "latest" else Path(opt.resume)
    checkpoint = load_checkpoint(path)
    if "train_state" not in checkpoint:
        raise UserError(
            f"{path}: this training has finished, nothing to resume; start a new one from it:"
            f" --weights {path}"
        )
    old = type(opt).from_dict(checkpoint["args"])
    old = replace(old, device=opt.device or old.device, imgsz=(old.imgsz, old.val_imgsz))  # type: ignore[arg-type]
    hyp = Hyp(**checkpoint["hyp"])
    LOGGER.info(f"Resuming {path} after epoch {checkpoint['epoch']}")
    run_dir = path.absolute().parent.parent
    model = model_from_checkpoint(checkpoint)
    factory, more = task(model, hyp, old), hooks(model, hyp, old, run_dir)
    return fit(
        model,
        load_data(old.data),
        hyp,
        old,
        run_dir,
        task=factory,
        hooks=more,
        resume=checkpoint["train_state"],
    )


def fit(
    model: Model,
    data: DataConfig,
    hyp: Hyp,
    opt: TrainOptions,
    run_dir: Path,
    *,
    task: TaskFactory = DetectionTask,
    hooks: Sequence[Hook] = (),
    resume: dict[str, Any] | None = None,
    new_anchors: bool = False,
) -> FitResult:
    """Train a ready model on a data set into a run folder.

    `model` is a training-form Model whose `names` are the data's; `hyp` is unscaled; `opt` says
    epochs, batch size, image size and so on; `run_dir` exists. `task(model, loss, world_size)`
    makes the task, `hooks` are called around the steps, `resume` is the `train_state` of a
    `last.pt`. `new_anchors` allows autoanchor to replace anchors that fit the data badly.
    """
    world = dist.world_from_env()
    device = select_device(opt.device, world.local_rank)
    last = run_dir / "weights" / "last.pt"
    log = logging_to(run_dir / "log.txt") if world.main else nullcontext()
    with (
        log,
        dist.process_group(world, device),
        GracefulStop(lambda: opt.resume_hint(run_dir)) as stop,
    ):
        opt = whole_strides(opt, int(model.stride.max()))
        session = Session(model.to(device), data, hyp, opt, run_dir, world, device)
        if world.main:
            _record(session, fresh=resume is None)
        trainer = build_trainer(session, task, [*hooks, stop], new_anchors)
        if resume is not None:
            trainer.load_state_dict(resume)
        LOGGER.info(
            f"{opt.epochs} epochs of {len(trainer.loader)} batches at {opt.imgsz} px on"
            f" {device_name(device)}"
        )
        LOGGER.info(f"{model.summary()}")
        trainer.fit()
        best = last.with_name("best.pt")
        result = _final_validation(session, best) if world.main else None
    LOGGER.info(f"Results saved to {run_dir}")
    return FitResult(best, last, result)


def _record(session: Session, fresh: bool) -> None:
    """What the run is made of, as files in its folder."""
    folder = session.run_dir
    if fresh:
        (folder / "weights").mkdir(exist_ok=True)
        save_options(
            session.opt,
            folder / "opt.yaml",
            **environment(session.device),
            data_hash=session.data.hash,
        )
        save_yaml(session.hyp.to_dict(), folder / "hyp.yaml")
        save_yaml(session.effective_hyp.to_dict(), folder / "hyp_effective.yaml")
        save_yaml(session.model.cfg, folder / "model.yaml")


def _final_validation(session: Session, best: Path) -> Any:
    """Validate `best.pt` as it is deployed, print every class and draw the pictures."""
    if not best.is_file():
        raise UserError(
            f"{session.run_dir}: no checkpoint was written, the weights were never finite; try a"
            " lower lr0"
        )
    opt, model = session.opt, load_model(best, session.device)
    pictures = None if opt.noplots else batch_pictures(model.names, session.run_dir)
    result = evaluate(
        model.fuse(),
        session.val_loader,
        names=model.names,
        single_cls=opt.single_cls,
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
        plot_evaluation(result, model.names, session.run_dir)
    return result
