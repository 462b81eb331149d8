"""One training run put together: loaders, loss, optimizer, hooks and trainer out of a model, data
and options.
"""

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
from data.config import DataConfig
from data.dataset import DetectionDataset
from data.loader import DetectionLoader, build_loader
from models import Model
from models.checkpoint import save_checkpoint
from recipes.prepare import freeze
from utils.config import Hyp
from utils.engine import dist
from utils.engine.ema import ModelEMA
from utils.engine.hooks import Hook
from utils.engine.optim import Schedule, build_optimizer
from utils.engine.precision import Precision
from utils.engine.run_hooks import Checkpoints, EarlyStopping, ProgressBar, ResultsCsv, TensorBoard
from utils.engine.tasks import TaskFactory
from utils.engine.trainer import Trainer, to_unit_range
from utils.errors import UserError
from utils.evaluator import EvalResult, evaluate, log_table
from utils.images import unit_range
from utils.log import LOGGER
from utils.losses import build_loss
from utils.options.base import to_dict
from utils.options.train import TrainOptions
from utils.plots.labels import plot_images, plot_labels
from utils.plots.results import ResultsPlot


@dataclass(frozen=True)
class Session:
    """What one run is made of; `model` is on the device, `hyp` as given, `opt.imgsz` already a
    multiple of the stride.
    """

    model: Model
    data: DataConfig
    hyp: Hyp
    opt: TrainOptions
    run_dir: Path
    world: dist.World
    device: torch.device

    @property
    def effective_hyp(self) -> Hyp:
        """The gains as the loss uses them."""
        return self.hyp.scaled(self.model.head.nl, self.model.nc, self.opt.imgsz)

    @property
    def stride(self) -> int:
        """Largest stride in pixels."""
        return int(self.model.stride.max())

    def train_loader(self, batch_size: int) -> DetectionLoader:
        """Augmented training batches; `batch_size` counts over all ranks."""
        opt = self.opt
        if batch_size % self.world.size:
            raise UserError(
                f"--batch-size {batch_size}: must be a multiple of the {self.world.size} processes"
            )
        return build_loader(
            self.data,
            "train",
            imgsz=opt.imgsz,
            batch_size=batch_size // self.world.size,
            hyp=self.hyp,
            augment=True,
            rect=opt.rect,
            cache=opt.cache or None,
            single_cls=opt.single_cls,
            image_weights=opt.image_weights,
            workers=opt.workers,
            seed=opt.seed,
            stride=self.stride,
            rank=self.world.rank,
            world_size=self.world.size,
            epochs=opt.epochs,
        )

    @cached_property
    def val_loader(self) -> DetectionLoader:
        """Validation images in rectangles of like proportions, twice the training batch, as YOLOv5
        does.
        """
        return build_loader(
            self.data,
            "val",
            imgsz=self.opt.val_imgsz,
            batch_size=2 * max(self.opt.batch_size // self.world.size, 1),
            rect=True,
            cache=self.opt.cache or None,
            single_cls=self.opt.single_cls,
            workers=self.opt.workers,
            stride=self.stride,
            pad=0.5,
        )

    def schedule(self, batch_size: int, batches: int) -> Schedule:
        """Also for a halved batch the gradients of as many images as before make a step."""
        opt, nominal = self.opt, max(self.hyp.nbs, self.opt.batch_size)
        return Schedule(
            self.hyp,
            epochs=opt.epochs,
            batches=batches,
            batch_size=batch_size,
            kind=opt.schedule,
            nominal=nominal,
        )

    def save(self, path: Path, model: nn.Module, **fields: Any) -> None:
        """A checkpoint of this run."""
        assert isinstance(model, Model)
        save_checkpoint(path, model, hyp=self.hyp.to_dict(), args=to_dict(self.opt), **fields)


class BatchSize(Hook):
    """Halves the batch after running out of memory; a resumed run keeps the smaller one."""

    def __init__(self, session: Session):
        self.session = session
        self.size = session.opt.batch_size

    def on_fit_start(self, trainer: Trainer) -> None:
        """A resumed run may have been halved before."""
        if self.size != self.session.opt.batch_size:
            self._apply(trainer)

    def halve(self, trainer: Trainer) -> bool:
        """Give the trainer a loader of half the batch; False where it is a single image already."""
        if self.size == 1:
            return False
        self.size //= 2
        self._apply(trainer)
        accumulate = trainer.schedule.accumulate
        LOGGER.warning(
            f"Out of memory: the batch is {self.size} now, {accumulate} of them make a step"
        )
        return True

    def _apply(self, trainer: Trainer) -> None:
        trainer.loader = self.session.train_loader(self.size)
        trainer.schedule = self.session.schedule(self.size, len(trainer.loader))

    def state_dict(self) -> dict[str, Any]:
        """The batch size in use."""
        return {"size": self.size}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take it back."""
        self.size = state["size"]


class TrainPictures(Hook):
    """train_batch0.jpg, 1 and 2: what augmentation makes of the images."""

    main_only = True

    def __init__(self, folder: Path, names: Sequence[str]):
        self.folder, self.names = folder, names

    def on_batch_end(self, trainer: Trainer) -> None:
        """Draw the first three batches of the run."""
        if trainer.epoch == 0 and trainer.batch < 3:
            plot_images(trainer.data, self.names, self.folder / f"train_batch{trainer.batch}.jpg")


def multi_scale(images: Tensor, batch: int, *, imgsz: int, stride: int, seed: int) -> Tensor:
    """Images in 0..1, resized so that the long side is a random multiple of the stride in 0.5..1.5
    x imgsz.

    The size is a function of (seed, batch), so that all ranks agree and resuming is exact.
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
    """The trainer of a run with the hooks that every run has.

    Those handed in come before checkpoints are written.

    `new_anchors`: anchors that fit the data badly may be replaced.
    """
    opt, world = session.opt, session.world
    with dist.main_first(world):  # it writes the label cache; nothing collective may happen within
        loader = session.train_loader(opt.batch_size)
    batch_size = BatchSize(session)
    _describe(loader.dataset, session)
    if new_anchors:
        check_anchors(loader.dataset, session.model, session.hyp.anchor_t, opt.imgsz, opt.seed)
    freeze(session.model, opt.freeze)
    loss = build_loss(session.model, session.effective_hyp)
    # Channels last is a fifth quicker on CPUs and what tensor cores want; the loader's images come
    # like this.
    task = task_factory(session.model, loss, world.size).to(session.device)
    task = task.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's stubs
    ema = ModelEMA(session.model, tau=session.hyp.ema_tau)
    if opt.sync_bn and world.size == 1:
        LOGGER.warning(
            "--sync-bn has no effect in a single process; several are started by torchrun"
        )
    elif opt.sync_bn:
        if session.device.type == "cpu":
            raise UserError("--sync-bn: works on GPUs only")
        nn.SyncBatchNorm.convert_sync_batchnorm(
            task
        )  # tensors stay the same objects, so the EMA still follows them
    return Trainer(
        task=task,
        loader=loader,
        optimizer=build_optimizer(task, opt.optimizer, session.hyp, opt.batch_size),
        schedule=session.schedule(opt.batch_size, len(loader)),
        ema=ema,
        epochs=opt.epochs,
        precision=Precision(opt.amp, session.device),
        evaluate=_validation(session, loss) if world.main else None,
        validate_every_epoch=not opt.noval,
        hooks=[batch_size, *hooks, *_run_hooks(session)],
        prepare=_preparation(session),
        smaller_batch=batch_size.halve,
        world=world,
        seed=opt.seed,
    )


def _describe(dataset: DetectionDataset, session: Session) -> None:
    """`dataset_report.csv` where the scan found something odd, and labels.jpg."""
    if not session.world.main:
        return
    if dataset.report:
        write_report(session.run_dir / "dataset_report.csv", dataset.report)
    if not session.opt.noplots:
        plot_labels(dataset.labels, session.model.names, session.run_dir / "labels.jpg")


def _validation(session: Session, loss: nn.Module) -> Callable[[nn.Module], EvalResult]:
    loader, names = session.val_loader, session.model.names

    def validate(model: nn.Module) -> EvalResult:
        result = evaluate(model, loader, names=names, loss=loss, single_cls=session.opt.single_cls)
        log_table(result)
        return result

    return validate


def _preparation(session: Session) -> Callable[[Tensor, int], Tensor]:
    if not session.opt.multi_scale:
        return to_unit_range
    return partial(
        multi_scale, imgsz=session.opt.imgsz, stride=session.stride, seed=session.opt.seed
    )


def _run_hooks(session: Session) -> list[Hook]:
    opt, folder = session.opt, session.run_dir
    plots = [
        TensorBoard(folder),
        ResultsPlot(folder / "results.png"),
        TrainPictures(folder, session.model.names),
    ]
    checkpoints = Checkpoints(
        folder / "weights", session.save, period=opt.save_period, every_epoch=not opt.nosave
    )
    return [
        ProgressBar(),
        EarlyStopping(opt.patience),
        ResultsCsv(folder / "results.csv"),
        *([] if opt.noplots else plots),
        checkpoints,
    ]


def whole_strides(opt: TrainOptions, stride: int) -> TrainOptions:
    """Options whose image sizes are multiples of the stride; says so where it rounds up."""
    sizes = tuple(math.ceil(size / stride) * stride for size in (opt.imgsz, opt.val_imgsz))
    if sizes != (opt.imgsz, opt.val_imgsz):
        LOGGER.warning(f"--imgsz must be a multiple of the stride {stride}: {sizes[0]} is used")
    return replace(opt, imgsz=sizes)  # type: ignore[arg-type]  # the pair is what the command line gives too
