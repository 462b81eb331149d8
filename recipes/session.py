"""Put a training run together: loaders, loss, optimizer, hooks and trainer from model and data."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from data.autoanchor import check_anchors
from data.cache import write_report
from data.check.short import warn_of_data
from data.config import DataConfig
from data.dataset import DetectionDataset
from data.loader import DetectionLoader, build_loader, validation_loader
from models import Model
from models.checkpoint import save_checkpoint
from models.training_checks import unused_parameters
from recipes.prepare import freeze
from utils.config import Hyp
from utils.engine import dist
from utils.engine.ema import ModelEMA
from utils.engine.hooks import Hook, TrainerState
from utils.engine.optim import Schedule, build_optimizer
from utils.engine.precision import Precision
from utils.engine.run_hooks import Checkpoints, EarlyStopping, ProgressBar, ResultsCsv, TensorBoard
from utils.engine.tasks import Task, TaskFactory
from utils.engine.trainer import Trainer, to_unit_range
from utils.errors import UserError
from utils.evaluator import EvalResult, evaluate, log_table, warn_of_settings
from utils.images import unit_range, whole_strides
from utils.layout import channels_last
from utils.log import LOGGER
from utils.losses import build_loss
from utils.options.base import recorded
from utils.options.train import TrainOptions
from utils.plots.drawing import save_labels
from utils.plots.labels import plot_labels
from utils.plots.results import ResultsPlot


@dataclass(frozen=True)
class TrainingRun:
    """What defines a training run.

    Args:
        model: Model in training form, with the names of the data's classes.
        data: Training and validation images.
        hyp: Hyper-parameters as given, before `Hyp.scaled`.
        opt: Options: epochs, batch size, image size and so on.
        run_dir: Existing folder that takes checkpoints, tables and pictures.
    """

    model: Model
    data: DataConfig
    hyp: Hyp
    opt: TrainOptions
    run_dir: Path

    @property
    def effective_hyp(self) -> Hyp:
        """Hyper-parameters with the loss gains as the loss uses them."""
        return self.hyp.scaled(self.model.head.nl, self.model.nc, self.opt.imgsz)

    @property
    def stride(self) -> int:
        """Largest stride in pixels of a map that the model reads."""
        return self.model.max_stride


@dataclass(frozen=True)
class Session:
    """A training run on its device: makes loaders, schedules and checkpoints.

    Args:
        run: The run; `run.model` is on the device and `run.opt.imgsz` is a multiple of the stride.
        world: Rank of this process and number of processes.
        device: Device of this process.
    """

    run: TrainingRun
    world: dist.World
    device: torch.device

    def train_loader(self, batch_size: int) -> DetectionLoader:
        """Return the loader of augmented training batches; `batch_size` counts over all ranks.

        Raises:
            UserError: The batch cannot be shared equally among the processes.
        """
        run, opt = self.run, self.run.opt
        if batch_size % self.world.size:
            raise UserError(
                f"--batch-size {batch_size}: must be a multiple of the {self.world.size} processes"
            )
        return build_loader(
            run.data,
            "train",
            imgsz=opt.imgsz,
            batch_size=batch_size // self.world.size,
            hyp=run.hyp,
            augment=True,
            rect=opt.rect,
            cache=opt.cache or None,
            single_cls=opt.single_cls,
            image_weights=opt.image_weights,
            workers=opt.workers,
            worker_timeout=opt.worker_timeout,
            seed=opt.seed,
            stride=run.stride,
            rank=self.world.rank,
            world_size=self.world.size,
            epochs=opt.epochs,
        )

    @cached_property
    def val_loader(self) -> DetectionLoader:
        """Loader of the validation images.

        Images of one shape share a batch; a batch holds up to twice as many images as a training
        batch of one process. The metrics do not depend on that number.
        """
        opt = self.run.opt
        return validation_loader(
            self.run.data,
            imgsz=opt.val_imgsz or opt.imgsz,
            batch_size=2 * max(opt.batch_size // self.world.size, 1),
            cache=opt.cache or None,
            single_cls=opt.single_cls,
            workers=opt.workers,
            worker_timeout=opt.worker_timeout,
            stride=self.run.stride,
        )

    def schedule(self, batch_size: int, batches: int) -> Schedule:
        """Return the schedule of the run for batches of `batch_size` images, `batches` an epoch.

        The number of images in an optimizer step comes from `--batch-size`, so that a halved batch
        changes nothing but the number of batches in a step.
        """
        hyp, opt = self.run.hyp, self.run.opt
        return Schedule(
            hyp,
            epochs=opt.epochs,
            batches=batches,
            batch_size=batch_size,
            kind=opt.schedule,
            nominal=max(hyp.nbs, opt.batch_size),
        )

    def save(self, path: Path, model: nn.Module, **fields: Any) -> None:
        """Write a checkpoint of this run; `fields` are entries beside model, hyp and options."""
        assert isinstance(model, Model)
        hyp, args = self.run.hyp.to_dict(), recorded(self.run.opt)
        data = self.run.data.identity
        save_checkpoint(path, model, hyp=hyp, args=args, data=data, **fields)


class BatchSize(Hook):
    """Halve the batch after the device ran out of memory; a resumed run keeps the smaller one."""

    def __init__(self, session: Session):
        self.session = session
        self.given = session.run.opt.batch_size
        self.size = self.given

    def on_fit_start(self, trainer: TrainerState) -> None:
        """Use the smaller batch of a resumed run whose batch was halved before."""
        if self.size != self.given:
            self._apply(trainer)

    def halve(self, trainer: TrainerState) -> bool:
        """Give the trainer a loader of half the batch; return False for a batch of one image."""
        if self.size == 1:
            return False
        self.size //= 2
        self._apply(trainer)
        accumulate = trainer.schedule.accumulate
        LOGGER.warning(
            f"Out of memory: the batch is {self.size} now, {accumulate} of them make a step"
        )
        return True

    def _apply(self, trainer: TrainerState) -> None:
        trainer.loader = self.session.train_loader(self.size)
        trainer.schedule = self.session.schedule(self.size, len(trainer.loader))

    def state_dict(self) -> dict[str, Any]:
        """Return the batch size in use."""
        return {"size": self.size}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the batch size in use."""
        self.size = state["size"]


class TrainPictures(Hook):
    """Draw `train_batch0.jpg` to `train_batch2.jpg`: what augmentation makes of the images."""

    main_only = True

    def __init__(self, folder: Path, names: Sequence[str]):
        self.folder, self.names = folder, names

    def on_batch_end(self, trainer: TrainerState) -> None:
        """Draw the first three batches of the run."""
        if trainer.epoch == 0 and trainer.batch < 3:
            save_labels(trainer.data, self.names, self.folder / f"train_batch{trainer.batch}.jpg")


def multi_scale(images: Tensor, batch: int, *, imgsz: int, stride: int, seed: int) -> Tensor:
    """Return the images in 0..1, resized to a random size of 0.5 to 1.5 times `imgsz`.

    The long side becomes a multiple of the stride. The size is a function of (seed, batch), so that
    all ranks agree and resuming is exact.

    Args:
        images: uint8, (N, 3, H, W).
        batch: Number of the batch, counted over the whole run.
        imgsz: Training size in pixels.
        stride: Largest stride of the model in pixels.
        seed: Seed of the run.
    """
    images = unit_range(images)
    low, high = math.ceil(imgsz * 0.5 / stride), math.floor(imgsz * 1.5 / stride)
    size = int(np.random.default_rng([seed, batch]).integers(low, high + 1)) * stride
    factor = size / max(images.shape[2:])
    height, width = (math.ceil(side * factor / stride) * stride for side in images.shape[2:])
    return interpolate(images, size=(height, width), mode="bilinear", align_corners=False)


def build_trainer(
    session: Session, task_factory: TaskFactory, hooks: Sequence[Hook], new_anchors: bool = False
) -> Trainer:
    """Return the trainer of a run, with the hooks that every run has.

    Args:
        session: The run on its device.
        task_factory: Makes the task from model, detection loss and world size.
        hooks: Further hooks; called before the checkpoint of an epoch is written.
        new_anchors: Whether autoanchor may replace anchors that fit the data badly.

    Raises:
        UserError: `--sync-bn` on CPUs, or a batch that the processes cannot share equally.
    """
    run, opt, world = session.run, session.run.opt, session.world
    # The main process writes the label cache here; nothing collective may happen within.
    with dist.main_first(world):
        loader = session.train_loader(opt.batch_size)
    batch_size = BatchSize(session)
    _describe(loader.dataset, session)
    if world.main:
        warn_of_data(
            loader.dataset.scan, session.val_loader.dataset.scan, run.model.names, opt.imgsz
        )
    check_anchors(
        loader.dataset,
        run.model,
        run.hyp.anchor_t,
        opt.imgsz,
        opt.seed,
        replace=new_anchors,
        remedy=opt.anchor_remedy,
    )
    freeze(run.model, opt.freeze)
    if world.size > 1:
        _expect_unused(run.model)
    loss = build_loss(run.model, run.effective_hyp)
    task = _task_on_device(session, task_factory, loss)
    ema = ModelEMA(run.model, tau=run.hyp.ema_tau)
    if opt.sync_bn:
        _synchronise_batch_norms(task, session)
    return Trainer(
        task=task,
        loader=loader,
        optimizer=build_optimizer(task, opt.optimizer_name, run.hyp, opt.batch_size),
        schedule=session.schedule(opt.batch_size, len(loader)),
        ema=ema,
        epochs=opt.epochs,
        precision=Precision(opt.amp, session.device),
        evaluate=_validation(session, loss) if world.main else None,
        validate_every_epoch=not opt.noval,
        hooks=[batch_size, *hooks, *_run_hooks(run, session.save)],
        prepare=_preparation(run),
        smaller_batch=batch_size.halve,
        world=world,
        seed=opt.seed,
    )


def _expect_unused(model: Model) -> None:
    """Name the parameters that get no gradient, for which the other processes would wait."""
    unused = unused_parameters(model)
    if unused:
        more = f" and {len(unused) - 5} more" if len(unused) > 5 else ""
        LOGGER.warning(
            f"forward never uses {', '.join(unused[:5])}{more}: no gradient, so no training; torch"
            " looks for such parameters in every step, remove them to train faster"
        )
        model.has_idle_layers = True


def _task_on_device(session: Session, task_factory: TaskFactory, loss: nn.Module) -> Task:
    """Return the run's task on its device, in channels-last layout.

    That layout is a fifth quicker on CPUs and what tensor cores want; the loader's images have it.
    """
    task = task_factory(session.run.model, loss, session.world.size).to(session.device)
    return channels_last(task)


def _synchronise_batch_norms(task: Task, session: Session) -> None:
    """Let the task's batch norms take their statistics over all processes (`--sync-bn`).

    Parameters and buffers stay the same objects, so the EMA still follows them.
    """
    if session.world.size == 1:
        LOGGER.warning(
            "--sync-bn has no effect in a single process; several are started by torchrun"
        )
        return
    if session.device.type == "cpu":
        raise UserError("--sync-bn: works on GPUs only")
    nn.SyncBatchNorm.convert_sync_batchnorm(task)


def _describe(dataset: DetectionDataset, session: Session) -> None:
    """Write `dataset_report.csv` where the scan found something odd, and draw `labels.jpg`."""
    if not session.world.main:
        return
    run = session.run
    if dataset.report:
        write_report(run.run_dir / "dataset_report.csv", dataset.report)
    if not run.opt.noplots:
        plot_labels(dataset.labels, run.model.names, run.run_dir / "labels.jpg")


def _validation(session: Session, loss: nn.Module) -> Callable[[nn.Module], EvalResult]:
    """Return the function that validates a model and logs the table."""
    loader, names = session.val_loader, session.run.model.names
    opt = session.run.opt
    settings = {"single_cls": opt.single_cls, "max_det": opt.max_det}
    warn_of_settings(loader.dataset.labels, opt.max_det)

    def validate(model: nn.Module) -> EvalResult:
        result = evaluate(model, loader, names=names, loss=loss, **settings)
        log_table(result)
        return result

    return validate


def _preparation(run: TrainingRun) -> Callable[[Tensor, int], Tensor]:
    """Return the function that turns the loader's images into the network's input."""
    if not run.opt.multi_scale:
        return to_unit_range
    return partial(multi_scale, imgsz=run.opt.imgsz, stride=run.stride, seed=run.opt.seed)


def _run_hooks(run: TrainingRun, save: Callable[..., None]) -> list[Hook]:
    """Return the hooks of every run; the checkpoints come last, so that they hold the others."""
    opt, folder = run.opt, run.run_dir
    plots = [
        TensorBoard(folder),
        ResultsPlot(folder / "results.png"),
        TrainPictures(folder, run.model.names),
    ]
    checkpoints = Checkpoints(
        folder / "weights", save, period=opt.save_period, every_epoch=not opt.nosave
    )
    return [
        ProgressBar(),
        EarlyStopping(opt.patience),
        ResultsCsv(folder / "results.csv"),
        *([] if opt.noplots else plots),
        checkpoints,
    ]


def with_whole_strides(opt: TrainOptions, stride: int) -> TrainOptions:
    """Return the options with both image sizes rounded up to multiples of the stride.

    Equal sizes are rounded once, so that a warning appears once.
    """
    asked = (opt.imgsz, opt.val_imgsz or opt.imgsz)
    rounded = {size: whole_strides(size, stride) for size in dict.fromkeys(asked)}
    imgsz, val_imgsz = (rounded[size] for size in asked)
    return replace(opt, imgsz=imgsz, val_imgsz=val_imgsz)
