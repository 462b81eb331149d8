"""What `prune.py` does to a model between the search and the finetune: cut it, make up for what is
lost, validate each step.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

from data.config import DataConfig
from data.loader import build_loader, validation_loader
from models import Model, save_model
from prune_methods import ChannelGroup, Masks, Plan, apply
from prune_methods.search.cost import COST_SIZE
from prune_methods.surgery.fold import fold_constants
from prune_methods.surgery.recalibrate import recalibrate_bn
from prune_methods.surgery.verify import verify
from recipes.prune.report import Report, write_channels
from utils.config import load_hyp
from utils.evaluator import EvalResult, evaluate, log_table
from utils.log import LOGGER
from utils.options.base import to_dict
from utils.options.prune import PruneOptions

SHUFFLED_ONLY = dict.fromkeys(
    (
        "hsv_h",
        "hsv_s",
        "hsv_v",
        "degrees",
        "translate",
        "scale",
        "shear",
        "perspective",
        "flipud",
        "fliplr",
        "mosaic",
        "mixup",
    ),
    0.0,
)  # augmentation switched off: shuffled training images as they are


class Stages:
    """The steps of one run that share data, options and folder; each adds its row to the report."""

    def __init__(self, data: DataConfig, opt: PruneOptions, folder: Path, stride: int):
        self.opt, self.folder = opt, folder
        self.report = Report(COST_SIZE)
        common: dict[str, Any] = {
            "imgsz": opt.imgsz,
            "workers": opt.workers,
            "stride": stride,
            "single_cls": opt.single_cls,
        }
        self.val_loader = validation_loader(data, batch_size=2 * opt.batch_size, **common)
        plain = load_hyp(opt.finetune_hyp).replace(**SHUFFLED_ONLY)
        common |= {"batch_size": opt.batch_size, "seed": opt.seed}
        self.plain_loader = build_loader(data, "train", hyp=plain, augment=True, **common)

    def validate(self, model: Model, title: str) -> EvalResult:
        """mAP of a model as it is now."""
        LOGGER.info(f"\n{title}:")
        result = evaluate(
            model.fuse(), self.val_loader, names=model.names, single_cls=self.opt.single_cls
        )
        log_table(result)
        return result

    def add(self, stage: str, model: Model) -> None:
        """Validate a model for its row."""
        self.report.add(stage, model, self.validate(model, stage[:1].upper() + stage[1:]))

    def cut(self, model: Model, groups: list[ChannelGroup], plan: Plan) -> Model:
        """The smaller model, checked and saved as `pruned.pt`; validated as cut and after each
        compensation.
        """
        smaller = cast(Model, apply(model, groups, plan.masks))
        verify(model, groups, plan, smaller, COST_SIZE)
        LOGGER.info(f"Cut to {plan.speed_up:.3f}x in {len(plan.steps)} steps; {smaller.summary()}")
        write_channels(model, smaller, self.folder, picture=not self.opt.noplots)
        self.add("after the cut", smaller)
        for stage in self.compensate(model, groups, plan.masks, smaller):
            self.add(stage, smaller)
        smaller.names = model.names
        save_model(smaller, self.folder / "weights" / "pruned.pt", args=to_dict(self.opt))
        return smaller

    def compensate(
        self, model: Model, groups: list[ChannelGroup], masks: Masks, smaller: Model
    ) -> Iterable[str]:
        """Fold constants, then renew batch norm statistics, in place and as far as asked for; names
        each when it is done.
        """
        if self.opt.fold_constants:
            result = fold_constants(model, groups, masks, smaller)
            LOGGER.info(
                f"{result.folded} reads of removed channels folded as constants, {result.left} are"
                " not constant"
            )
            if result.folded:
                yield "after folding constants"
        if recalibrate_bn(smaller, self.plain_loader, self.opt.recalibrate_batches):
            yield "after BN recalibration"

    def as_pruned(
        self, model: Model, groups: list[ChannelGroup], masks: Masks, title: str
    ) -> EvalResult:
        """mAP of a model cut by these masks, compensated, for a look on the way."""
        smaller = cast(Model, apply(model, groups, masks))
        list(self.compensate(model, groups, masks, smaller))
        return self.validate(smaller, title)
