"""Options of prune.py. Standard library only."""

from dataclasses import dataclass

from utils.config import ROOT
from utils.errors import UserError
from utils.log import LOGGER
from utils.options.base import RunOptions, changed_options, option
from utils.options.distill import TeacherOptions
from utils.registry import registered_names

METHODS = registered_names(ROOT / "prune_methods", "PRUNERS")
SPARSE_METHODS = registered_names(ROOT / "prune_methods", "PENALTIES")
EXAMPLE = "python prune.py --weights runs/train/exp/weights/best.pt --data demo"


@dataclass(frozen=True)
class PruneOptions(TeacherOptions, RunOptions):
    """What one pruning run is told: how to cut, and how to finetune what is left."""

    weights: str = option(
        "", "trained checkpoint: ours (a pruned one too) or an official YOLOv5 / YOLOv7 .pt"
    )
    data: str = option("", "data YAML: bare name (demo) or path; --dry-run needs none")
    method: str = option("lamp", f"what a channel is worth: {', '.join(METHODS)}")
    speed_up: float = option(2.0, "what --target counts, of the deployed model, before over after")
    target: str = option(
        "macs",
        "what --speed-up counts: MACs, or measured time (latency)",
        choices=("macs", "latency"),
    )
    latency_batch: int = option(
        0,
        "images of a batch when time is measured; 0: 32, on a CPU as many as it can do in about a"
        " second",
        least=0,
    )
    latency_seconds: float = option(
        2.0, "time spent on each measuring of time; 0: do not measure any", least=0
    )
    calib_batches: int = option(
        10,
        "training batches that group_taylor and group_hessian take gradients of, pagcp its losses",
    )
    recalib_every: int = option(
        0, "take these gradients anew, from the model as cut so far, every so many steps; 0 = once"
    )
    max_steps: int = option(
        200, "most steps; each takes 0.5% of the channels and scores the rest anew"
    )
    initial_rate: float = option(
        0.05, "pagcp: by how much the first cut layer may raise a loss, as a share of it"
    )
    initial_thres: float = option(
        5.0, "pagcp: how many times as high all layers of a round together may raise a loss"
    )
    topk: float = option(
        1.0,
        "pagcp: share of the cut layers that stay cut, those with the least loss per FLOP saved",
    )
    exp: bool = option(
        True,
        "pagcp: tolerances that follow lambda^i, so that they end at --initial-thres; without, all"
        " alike",
    )
    pagcp_rounds: int = option(
        3, "pagcp: most rounds over all layers, until the speed-up is met", least=1
    )
    across_layers: bool = option(
        False, "rank the channels of all layers together; the default", "global"
    )
    per_layer: bool = option(
        False, "rank within each layer, so that all layers lose the same share", "local"
    )
    max_ratio: float = option(1.0, "largest share of a layer's channels that may go")
    min_channels: int = option(4, "channels that every layer keeps at least")
    round_to: int = option(1, "cut widths to multiples of this; 8 suits GPUs")
    ignore: tuple[str, ...] = option(
        (), "layers that keep their outputs: row numbers, names, globs ('model.*.cv3')", multi=True
    )
    allow_less: bool = option(
        False, "go as far as the limits allow where the speed-up cannot be reached"
    )
    resume: str = option(
        "",
        "go on with an interrupted run: its folder (runs/prune/exp), whose options count; --device"
        " may be another",
    )
    dry_run: bool = option(
        False,
        "list every layer, what it is tied to or why it stays whole, and the reachable speed-up,"
        " also as files; stop",
    )
    graph_time_limit: float = option(
        120.0,
        "seconds for finding out which channels are coupled; layers not done by then stay whole",
        least=1,
    )
    val_every: int = option(0, "validate the model as cut so far every so many steps; 0 = never")
    sparse_epochs: int = option(
        0,
        "sparse-train for so many epochs first, for slim, group_slim, group_sl, group_reg",
        least=0,
    )
    sparse_reg: str = option(
        "auto",
        "strength of that penalty: a number, or auto: gamma at zero after 70% of these epochs",
    )
    fold_constants: bool = option(
        True, "give the constant part of removed channels to the layers that read them"
    )
    recalibrate_batches: int = option(
        50, "training batches for new batch norm statistics after the cut; 0 = keep the old ones"
    )
    finetune: bool = option(True, "train what is left")
    finetune_epochs: int = option(100, "passes over the training images")
    finetune_hyp: str = option(
        "finetune", "hyper-parameter YAML of finetune and sparse training: bare name or path", "hyp"
    )
    loss: str | None = option(
        None, "box-to-target assignment; without it the hyp file decides", choices=("yolo", "ota")
    )
    optimizer: str = option(
        "SGD", "optimizer of finetune and sparse training", choices=("SGD", "Adam", "AdamW")
    )
    patience: int = option(
        100, "epochs without a better fitness before the finetune stops; 0 = never"
    )
    batch_size: int = option(16, "images a step", "batch")
    imgsz: int = option(
        0, "image size in pixels; 0: what the weights were trained at", "img", "img-size"
    )
    cache: str = option(
        "",
        "keep decoded images in memory (ram) or as files (disk)",
        "cache-images",
        bare="ram",
        choices=("", "ram", "disk"),
    )
    single_cls: bool = option(False, "treat all classes as one, as the weights were trained")
    noplots: bool = option(False, "no pictures")
    project: str = option("runs/prune", "folder of the runs")

    def check(self) -> None:
        """`UserError` for what is missing or out of range."""
        for name in ("weights",) if self.dry_run else ("weights", "data"):
            if not getattr(self, name):
                raise UserError(f"--{name} is missing; e.g. {EXAMPLE}")
        if not 1 < self.speed_up < float("inf"):
            raise UserError(f"--speed-up {self.speed_up:g}: must be above 1 (2 halves the GFLOPs)")
        if not 0 < self.max_ratio <= 1:
            raise UserError(f"--max-ratio {self.max_ratio:g}: must be above 0 and at most 1")
        for name in (
            "max_steps",
            "min_channels",
            "round_to",
            "batch_size",
            "finetune_epochs",
            "calib_batches",
        ):
            if getattr(self, name) < 1:
                raise UserError(
                    f"--{name.replace('_', '-')} {getattr(self, name)}: must be at least 1"
                )
        for name in ("val_every", "recalibrate_batches", "imgsz", "recalib_every"):
            if getattr(self, name) < 0:
                raise UserError(
                    f"--{name.replace('_', '-')} {getattr(self, name)}: must not be negative"
                )
        if self.across_layers and self.per_layer:
            raise UserError("--global and --local exclude each other")
        self._check_finetune_teacher()
        self._check_pagcp()
        self._check_sparse()

    def check_resume(self) -> None:
        """`UserError` for what would turn a resumed run into another one, a warning for what has no
        effect on it.
        """
        if self.dry_run:
            raise UserError(
                "--dry-run: cannot be had with --resume, which goes on with the run; give --weights"
                " instead"
            )
        if changed := changed_options(self, besides={"resume", "device"}):
            LOGGER.warning(
                f"{', '.join(changed)}: no effect with --resume, the run goes on with its own"
                " options"
            )

    def _check_finetune_teacher(self) -> None:
        self.check_teacher()
        if self.teacher and not (self.finetune or self.sparse_epochs):
            LOGGER.warning("--teacher has no effect with --no-finetune: nothing is trained")

    def _check_sparse(self) -> None:
        if self.sparse_reg != "auto" and not _is_strength(self.sparse_reg):
            raise UserError(
                f"--sparse-reg {self.sparse_reg}: must be auto or a number that is not negative"
                " (5e-4)"
            )
        if self.sparse_reg != "auto" and not self.sparse_epochs:
            LOGGER.warning("--sparse-reg has no effect without --sparse-epochs")
        if self.sparse_epochs and self.method not in SPARSE_METHODS:
            raise UserError(
                f"--sparse-epochs: {self.method} has no penalty to train with; methods that have"
                f" one: {', '.join(SPARSE_METHODS)}"
            )

    def _check_pagcp(self) -> None:
        if not 0 < self.initial_rate < float("inf"):
            raise UserError(
                f"--initial-rate {self.initial_rate:g}: must be above 0 (.05 lets the first layer"
                " raise a loss by 5 %)"
            )
        if not 1 + self.initial_rate < self.initial_thres < float("inf"):
            raise UserError(
                f"--initial-thres {self.initial_thres:g}: must be above 1 + --initial-rate ="
                f" {1 + self.initial_rate:g}, which the first layer alone may use up"
            )
        if not 0 < self.topk <= 1:
            raise UserError(f"--topk {self.topk:g}: must be above 0 and at most 1")
        if self.method == "pagcp" and self.target == "latency":
            raise UserError(
                "--target latency: --method pagcp counts MACs only; take another method, or leave"
                " --target out"
            )


def _is_strength(text: str) -> bool:
    try:
        return 0 <= float(text) < float("inf")
    except ValueError:
        return False


SEARCH_ONLY = ("initial_rate", "initial_thres", "topk", "exp", "pagcp_rounds")
RANKING_ONLY = ("max_steps", "recalib_every", "across_layers", "per_layer")
FLAGS = {
    "across_layers": "--global",
    "per_layer": "--local",
    "exp": "--no-exp",
}  # where the name does not say it


def idle_options(opt: PruneOptions) -> list[str]:
    """What was given (and is not the default) without any effect, a line each."""
    search, default = opt.method == "pagcp", PruneOptions()

    def given(name: str) -> bool:
        return getattr(opt, name) != getattr(default, name)

    idle = [name for name in (RANKING_ONLY if search else SEARCH_ONLY) if given(name)]
    lines = [
        f"{FLAGS.get(name, '--' + name.replace('_', '-'))}: has no effect with --method"
        f" {opt.method}"
        for name in idle
    ]
    if search and not opt.exp and given("initial_thres"):
        lines.append("--initial-thres: has no effect with --no-exp")
    return lines
