"""One run of prune.py: its options, data, folder, loaders and report travel together."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from data.config import DataConfig
from data.loader import DetectionLoader, build_loader, validation_loader
from models import Model
from prune_methods import Limits
from prune_methods.search.plan import COST_SIZE
from recipes.prune.report import Report
from utils.config import load_hyp
from utils.evaluator import EvalResult, evaluate, log_table, warn_of_settings
from utils.log import LOGGER
from utils.options.prune import PruneOptions

AUGMENTATIONS = (
    *("hsv_h", "hsv_s", "hsv_v", "degrees", "translate", "scale", "shear", "perspective"),
    *("flipud", "fliplr", "mosaic", "mixup"),
)


@dataclass(frozen=True)
class PruneRun:
    """What the stages of a run share.

    Attributes:
        opt: options; `opt.imgsz` is a multiple of `stride`.
        data: the data set; its classes are the model's.
        folder: the run folder, which exists.
        stride: largest stride of the model, pixels.
        report: the table of stages.
    """

    opt: PruneOptions
    data: DataConfig
    folder: Path
    stride: int
    report: Report = field(default_factory=lambda: Report(COST_SIZE))

    @property
    def limits(self) -> Limits:
        """Bounds of every group."""
        return limits_of(self.opt)

    @cached_property
    def val_loader(self) -> DetectionLoader:
        """Validation images in rectangles, batches of up to twice the training batch."""
        batch = 2 * self.opt.batch_size
        loader = validation_loader(self.data, batch_size=batch, **self._loading())
        warn_of_settings(loader.dataset.labels, self.opt.max_det)
        return loader

    @cached_property
    def plain_loader(self) -> DetectionLoader:
        """Shuffled training images as they are: augmentation is switched off."""
        hyp = load_hyp(self.opt.finetune_hyp).replace(**dict.fromkeys(AUGMENTATIONS, 0.0))
        own: dict[str, Any] = {"batch_size": self.opt.batch_size, "seed": self.opt.seed}
        return build_loader(self.data, "train", hyp=hyp, augment=True, **own, **self._loading())

    def _loading(self) -> dict[str, Any]:
        """Return what both loaders share."""
        opt = self.opt
        return {
            "imgsz": opt.imgsz,
            "workers": opt.workers,
            "worker_timeout": opt.worker_timeout,
            "stride": self.stride,
            "single_cls": opt.single_cls,
        }

    def validate(self, model: Model, title: str) -> EvalResult:
        """Validate a model as it is deployed, under a title in the log."""
        LOGGER.info(f"\n{title}:")
        opt = self.opt
        result = evaluate(
            model.fuse(),
            self.val_loader,
            names=model.names,
            single_cls=opt.single_cls,
            max_det=opt.max_det,
        )
        log_table(result)
        return result

    def add_row(self, stage: str, model: Model) -> None:
        """Validate a model and add its row to the report."""
        self.report.add(stage, model, self.validate(model, stage[:1].upper() + stage[1:]))


def limits_of(opt: PruneOptions) -> Limits:
    """Return the bounds of every group that the options state."""
    return Limits(opt.min_channels, opt.max_ratio, opt.round_to)
