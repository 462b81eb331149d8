"""`prune.py`: what can be cut -> masks for the target -> one cut -> recalibrate -> validate -> finetune -> report."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from data.config import DataConfig, load_data
from data.loader import build_loader
from models import Model, load_model, save_model
from prune_methods import PRUNERS, ChannelGroup, Criterion, Plan, Skipped, apply, countable, preflight, reachable_speed_up
from prune_methods.latency import TimeModel
from prune_methods.recalibrate import recalibrate_bn
from prune_methods.verify import verify
from recipes.distill import check_teacher, doctor, task_for
from recipes.preflight_report import entries, short_form, table, totals, write_preflight
from recipes.prepare import class_names, prepare_hyp
from recipes.prune_evidence import warn_if_dense
from recipes.prune_latency import both_ratios, price_of
from recipes.prune_plan import COST_SIZE, find_plan, limits
from recipes.prune_report import Report, write_channels
from recipes.train import FitResult, fit
from utils import dist
from utils.config import load_hyp
from utils.device import select_device
from utils.distill_options import DistillOptions
from utils.errors import UserError
from utils.evaluator import EvalResult, evaluate, log_table
from utils.log import LOGGER, logging_to
from utils.options import to_dict
from utils.prune_options import PruneOptions
from utils.rundir import environment, make_run_dir, save_options
from utils.seed import seed_everything
from utils.train_options import TrainOptions

SHUFFLED_ONLY = dict.fromkeys(
    ("hsv_h", "hsv_s", "hsv_v", "degrees", "translate", "scale", "shear", "perspective", "flipud", "fliplr", "mosaic", "mixup"),
    0.0,
)  # augmentation switched off: shuffled training images as they are


def prune(opt: PruneOptions) -> Path | None:
    """The whole run; gives the path of the best checkpoint, None for a dry run."""
    opt.check()
    if dist.world_from_env().size > 1:
        raise UserError(
            "prune.py is one process; cut with --no-finetune, then: "
            "torchrun --nproc-per-node 2 train.py --weights runs/prune/exp/weights/pruned.pt --hyp finetune"
        )
    criterion = PRUNERS[opt.method](seed=opt.seed)
    seed_everything(opt.seed)
    model = load_model(opt.weights, select_device(opt.device))
    groups, skipped = preflight(model, opt.ignore, opt.graph_time_limit, progress=True)
    groups, without = countable(groups, criterion)
    skipped += without
    if opt.dry_run:
        LOGGER.info(f"{table(entries(model, groups, skipped))}\n{totals(groups, skipped)}")
        LOGGER.info(f"Reachable speed-up within the limits: {reach(model, groups, opt):.2f}x")
        return None
    check_reach(model, groups, opt)
    if criterion.sparse:
        warn_if_dense(model, opt)
    stride = int(model.stride.max())
    opt = replace(opt, imgsz=-(-(opt.imgsz or model.imgsz) // stride) * stride)
    data = matching_data(model, opt)
    check_teacher(model, opt)
    price = price_of(model, groups, limits(opt), opt)
    folder = make_run_dir(opt.project, opt.name, opt.exist_ok)
    with logging_to(folder / "log.txt"):
        return run(model, groups, skipped, criterion, data, opt, folder, price)


def run(
    model: Model,
    groups: list[ChannelGroup],
    skipped: list[Skipped],
    criterion: Criterion,
    data: DataConfig,
    opt: PruneOptions,
    folder: Path,
    price: TimeModel | None = None,
) -> Path:
    """Everything after the preflight, into the run folder."""
    save_options(opt, folder / "opt.yaml", **environment(next(model.parameters()).device), data_hash=data.hash)
    write_preflight(entries(model, groups, skipped), skipped, folder)
    LOGGER.info(model.summary())
    LOGGER.info(short_form(groups, skipped))
    stage = Stages(model, data, opt, folder)
    stage.report.add("base", model, stage.validate(model, "Base model"))
    plan = find_plan(model, groups, criterion, stage.plain_loader, stage.validate, opt, folder, price)
    smaller = stage.cut(groups, plan)
    stage.report.remarks += both_ratios(model, smaller, opt)
    if not opt.finetune and (folder / "finetune").exists():
        LOGGER.warning(f"{folder / 'finetune'} is of an earlier run of this name, it has nothing to do with this cut")
    best = stage.finetune(smaller) if opt.finetune else folder / "weights" / "pruned.pt"
    stage.report.write(folder / "prune_report.md", plan)
    LOGGER.info("\n" + stage.report.markdown(plan))
    LOGGER.info(f"Results saved to {folder}; the model is {best}")
    return best


def reach(model: Model, groups: list[ChannelGroup], opt: PruneOptions) -> float:
    """The best speed-up within the clamps."""
    return reachable_speed_up(model, groups, limits(opt), COST_SIZE) if groups else 1.0


def check_reach(model: Model, groups: list[ChannelGroup], opt: PruneOptions) -> None:
    """`UserError` where it is known beforehand that the target cannot be met, or that nothing can be cut."""
    best = reach(model, groups, opt)
    if best <= 1:
        raise UserError(f"{opt.weights}: nothing can be pruned within these limits; see which layers and why with --dry-run")
    if best < opt.speed_up and not opt.allow_less:
        raise UserError(
            f"--speed-up {opt.speed_up:g}: cannot be reached, the limits allow {best:.2f}x at most; "
            "ask for less, loosen --min-channels, --max-ratio or --ignore, or go as far as possible with --allow-less"
        )


def matching_data(model: Model, opt: PruneOptions) -> DataConfig:
    """The data, which must have the model's classes."""
    data = load_data(opt.data)
    names = class_names(data.names, opt.single_cls)
    if len(names) != model.nc:
        raise UserError(
            f"{opt.weights}: has {model.nc} classes, {opt.data} has {len(names)}; prune with the data that it was trained on, or "
            f"train it on these first: python train.py --weights {opt.weights} --data {opt.data} --hyp finetune"
        )
    model.names = names
    return data


class Stages:
    """The steps of one run that share model, data, options and folder."""

    def __init__(self, model: Model, data: DataConfig, opt: PruneOptions, folder: Path):
        self.model, self.data, self.opt, self.folder = model, data, opt, folder
        self.report = Report(COST_SIZE)
        stride = int(model.stride.max())
        common: dict[str, Any] = {"imgsz": opt.imgsz, "workers": opt.workers, "stride": stride, "single_cls": opt.single_cls}
        self.val_loader = build_loader(data, "val", batch_size=2 * opt.batch_size, rect=True, pad=0.5, **common)
        plain = load_hyp(opt.finetune_hyp).replace(**SHUFFLED_ONLY)
        common |= {"batch_size": opt.batch_size, "seed": opt.seed}
        self.plain_loader = build_loader(data, "train", hyp=plain, augment=True, **common)

    def validate(self, model: Model, title: str) -> EvalResult:
        """mAP of a model as it is now."""
        LOGGER.info(f"\n{title}:")
        result = evaluate(model.fuse(), self.val_loader, names=model.names, single_cls=self.opt.single_cls)
        log_table(result)
        return result

    def cut(self, groups: list[ChannelGroup], plan: Plan) -> Model:
        """The smaller model, checked, validated right after the cut and after recalibration, saved as `pruned.pt`."""
        smaller = cast(Model, apply(self.model, groups, plan.masks))
        verify(self.model, groups, plan, smaller, COST_SIZE)
        LOGGER.info(f"Cut to {plan.speed_up:.3f}x in {len(plan.steps)} steps; {smaller.summary()}")
        write_channels(self.model, smaller, self.folder, picture=not self.opt.noplots)
        self.report.add("after the cut", smaller, self.validate(smaller, "Right after the cut"))
        if recalibrate_bn(smaller, self.plain_loader, self.opt.recalibrate_batches):
            self.report.add("after BN recalibration", smaller, self.validate(smaller, "After BN recalibration"))
        smaller.names = self.model.names
        save_model(smaller, self.folder / "weights" / "pruned.pt", args=to_dict(self.opt))
        return smaller

    def finetune(self, smaller: Model) -> Path:
        """Train what is left in `finetune/`, a run folder of its own; its best checkpoint is copied beside `pruned.pt`."""
        opt = self.opt
        shared = (
            "data",
            "loss",
            "optimizer",
            "patience",
            "batch_size",
            "cache",
            "single_cls",
            "noplots",
            "device",
            "workers",
            "seed",
        )
        kind, more = (DistillOptions, opt.teaching()) if opt.teacher else (TrainOptions, {})
        train_opt = kind(
            **{name: getattr(opt, name) for name in shared},
            **more,
            weights=str(self.folder / "weights" / "pruned.pt"),
            hyp=opt.finetune_hyp,
            epochs=opt.finetune_epochs,
            imgsz=opt.imgsz,
            project=str(self.folder),
            name="finetune",
        )
        run_dir = make_run_dir(self.folder, "finetune", exist_ok=True)
        LOGGER.info(f"\nFinetuning for {opt.finetune_epochs} epochs in {run_dir}")
        hyp = prepare_hyp(train_opt)
        task, hooks = task_for(smaller, hyp, train_opt), doctor(smaller, hyp, train_opt, run_dir)
        found: FitResult = fit(smaller, self.data, hyp, train_opt, run_dir, task=task, hooks=hooks)
        self.report.add("after finetune", load_model(found.best), found.result)
        best = self.folder / "weights" / "best.pt"
        shutil.copyfile(found.best, best)
        return best
