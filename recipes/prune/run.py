"""`prune.py`: preflight -> masks for the target -> cut -> compensate -> validate -> finetune ->
report."""

from dataclasses import replace
from pathlib import Path
from typing import cast

from data.config import DataConfig, load_data
from models import Model, load_model
from prune_methods import PRUNERS, Criterion, Prunable
from prune_methods.search.latency import TimeModel
from recipes.distill import check_teacher
from recipes.prepare import class_names
from recipes.prune.compensation import Compensator
from recipes.prune.context import PruneRun, limits_of
from recipes.prune.gradients import warn_if_dense
from recipes.prune.latency import both_ratios, cost_fn_of
from recipes.prune.plan import find_plan
from recipes.prune.preflight_report import (
    layer_fates,
    short_form,
    table,
    totals,
    write_preflight,
)
from recipes.prune.report import REPORT_JSON, Report
from recipes.prune.stages import cut_and_compensate
from recipes.prune.training import (
    check_data,
    finetune,
    forget_earlier,
    interrupted_run,
    sparse_train,
)
from recipes.resuming import found_data, note_moves
from utils.engine import dist
from utils.engine.device import select_device
from utils.engine.run_hooks import GracefulStop
from utils.engine.seed import seed_everything
from utils.errors import UserError
from utils.images import whole_strides
from utils.log import LOGGER, logging_to
from utils.options.prune import PruneOptions
from utils.run_lock import run_lock
from utils.rundir import environment, make_run_dir, save_options

FINETUNED = "after finetune"
DRY_RUN = "dry-run"  # the folder of its files


def prune(opt: PruneOptions) -> Path | None:
    """Do a whole run; return the path of the best checkpoint, None for a dry run."""
    if dist.world_from_env().size > 1:
        raise UserError(
            "prune.py is one process; cut with --no-finetune, then: torchrun --nproc-per-node 2"
            " train.py --weights runs/prune/exp/weights/pruned.pt --hyp finetune"
        )
    folder = None
    if opt.resume:
        opt, folder = interrupted_run(opt)
        if (folder / REPORT_JSON).is_file():
            return go_on_after_cut(opt, folder)
    opt.check()
    criterion = PRUNERS[opt.method](seed=opt.seed)
    seed_everything(opt.seed)
    model = load_model(opt.weights, select_device(opt.device))
    prunable = Prunable.of(model, opt.ignore, opt.graph_time_limit, progress=True)
    prunable = prunable.for_criterion(criterion)
    if opt.dry_run:
        dry_run(prunable, opt)
        return None
    check_reachable(prunable, opt)
    if criterion.sparse and not opt.sparse_epochs:
        warn_if_dense(model, opt)
    stride = model.max_stride
    opt = replace(opt, imgsz=whole_strides(opt.imgsz or model.imgsz, stride))
    data = matching_data(model, opt, folder)
    check_teacher(model, opt)
    cost_fn = cost_fn_of(prunable, opt)
    new = folder is None
    folder = folder or make_run_dir(opt.project, opt.name, opt.exist_ok)
    with run_lock(folder), logging_to(folder / "log.txt"), stoppable(folder):
        if new:
            forget_earlier(folder)
        return run_stages(PruneRun(opt, data, folder, stride), prunable, criterion, cost_fn)


def dry_run(prunable: Prunable, opt: PruneOptions) -> None:
    """Show what would be cut and what stays whole, on the console and as files."""
    fates = layer_fates(prunable)
    LOGGER.info(f"{table(fates)}\n{totals(prunable)}")
    best = prunable.reachable(limits_of(opt))
    LOGGER.info(f"Reachable speed-up within the limits: {best:.2f}x")
    folder = make_run_dir(opt.project, DRY_RUN, exist_ok=True)  # takes no run's number
    with run_lock(folder):
        write_preflight(prunable, folder)
    LOGGER.info(f"preflight.csv and skipped.csv are in {folder}")


def run_stages(
    run: PruneRun, prunable: Prunable, criterion: Criterion, cost_fn: TimeModel | None = None
) -> Path:
    """Do everything after the preflight, into the run folder; return the best checkpoint.

    Args:
        run: options, data, folder and report.
        prunable: the model and its channels.
        criterion: the pruning method.
        cost_fn: measured time by mask, where the target is in time.
    """
    model = cast(Model, prunable.model)
    device = next(model.parameters()).device
    origin = {"data_hash": run.data.hash, "class_names": run.data.names}
    save_options(run.opt, run.folder / "opt.yaml", **environment(device), **origin)
    write_preflight(prunable, run.folder)
    LOGGER.info(model.summary())
    LOGGER.info(short_form(prunable))
    run.add_row("base", model)
    if run.opt.sparse_epochs:
        model = sparse_train(run, model)
        prunable = prunable.with_model(model)
        run.add_row("after sparse training", model)
    compensate = Compensator(run, prunable)
    plan = find_plan(run, prunable, criterion, compensate, cost_fn)
    smaller = cut_and_compensate(run, prunable, compensate, plan)
    run.report.conclude(plan)
    run.report.remarks += both_ratios(model, smaller, run.opt)
    run.report.write(run.folder)
    return finish(run, smaller)


def go_on_after_cut(opt: PruneOptions, folder: Path) -> Path:
    """Do what an interrupted run lacks once the cut is on disk: the finetune, and its row."""
    with run_lock(folder), logging_to(folder / "log.txt"), stoppable(folder):
        smaller = load_model(folder / "weights" / "pruned.pt", select_device(opt.device))
        data, stride = matching_data(smaller, opt, folder), smaller.max_stride
        note_moves(opt, folder)
        return finish(PruneRun(opt, data, folder, stride, Report.read(folder)), smaller)


def stoppable(folder: Path) -> GracefulStop:
    """Return a hook that ends an interrupted run, at any stage, with a line how to go on."""
    return GracefulStop(lambda: f"go on with: python prune.py --resume {folder}")


def finish(run: PruneRun, smaller: Model) -> Path:
    """Finetune if asked for, and report; return the best checkpoint."""
    best = run.folder / "weights" / "pruned.pt"
    if run.opt.finetune:
        best = run.folder / "weights" / "best.pt"
        finetune_and_report(run, smaller)
    elif (run.folder / "finetune").exists():
        LOGGER.warning(
            f"{run.folder / 'finetune'} is of an earlier run of this name, it has nothing to do"
            " with this cut"
        )
    LOGGER.info("\n" + run.report.markdown())
    LOGGER.info(f"Results saved to {run.folder}; the model is {best}")
    return best


def finetune_and_report(run: PruneRun, smaller: Model) -> None:
    """Finetune, and write the row of the best model."""
    found = finetune(run, smaller)
    model = load_model(found.best, next(smaller.parameters()).device)
    model.names = smaller.names
    report = run.report
    report.rows = [row for row in report.rows if row.stage != FINETUNED]
    report.add(FINETUNED, model, found.result or run.validate(model, "After finetune"))
    report.write(run.folder)


def check_reachable(prunable: Prunable, opt: PruneOptions) -> None:
    """Refuse a run in which nothing can be cut, or that cannot meet a target in MACs."""
    best = prunable.reachable(limits_of(opt))
    if best <= 1:
        raise UserError(
            f"{opt.weights}: nothing can be pruned within these limits; see which layers and why"
            " with --dry-run"
        )
    if opt.target == "macs" and best < opt.speed_up and not opt.allow_less:
        raise UserError(
            f"--speed-up {opt.speed_up:g}: cannot be reached, the limits allow {best:.2f}x at most;"
            " ask for less, loosen --min-channels, --max-ratio or --ignore, or go as far as"
            " possible with --allow-less"
        )


def matching_data(model: Model, opt: PruneOptions, resumed: Path | None = None) -> DataConfig:
    """Load the data, whose classes must be the model's, and those that a resumed run began with.

    Args:
        model: Model to cut or to finetune; gets the names of the classes.
        opt: Options of the run.
        resumed: Folder of a run that is resumed; None for a new one.
    """
    data = found_data(opt.data) if resumed else load_data(opt.data)
    if resumed:
        check_data(resumed, data, opt.data)
    names = class_names(data.names, opt.single_cls)
    if len(names) != model.nc:
        raise UserError(
            f"{opt.weights}: has {model.nc} classes, {opt.data} has {len(names)}; prune with the"
            " data that it was trained on, or train it on these first: python train.py --weights"
            f" {opt.weights} --data {opt.data} --hyp finetune"
        )
    model.names = names
    return data
