"""Options of prune.py. Standard library only."""

import math
from dataclasses import dataclass

from utils.config import ROOT
from utils.errors import UserError
from utils.log import LOGGER
from utils.options.base import RunOptions, changed_options, option
from utils.options.distill import TeacherOptions
from utils.options.meta import MOST_PIXELS
from utils.options.train import MOVABLE
from utils.registry import registered_names

METHODS = registered_names(ROOT / "prune_methods", "PRUNERS")
SPARSE_METHODS = registered_names(ROOT / "prune_methods", "PENALTIES")
EXAMPLE = "python prune.py --weights runs/train/exp/weights/best.pt --data demo"

MOVED = ("weights", *MOVABLE)
"""Options that a resumed run takes from its command line: files that may have moved."""


@dataclass(frozen=True)
class PruneOptions(TeacherOptions, RunOptions):
    """Options of one pruning run: how to cut, and how to train the smaller model."""

    weights: str = option(
        "",
        "trained checkpoint: ours (a pruned one too) or an official YOLOv5 / YOLOv7 .pt",
        group="what",
        path=True,
    )
    data: str = option(
        "", "data YAML: bare name (demo) or path; --dry-run needs none", group="what", path=True
    )
    method: str = option(
        "group_fisher", f"what a channel is worth: {', '.join(METHODS)}", group="target"
    )
    speed_up: float = option(
        2.0,
        "what --target counts, of the deployed model, before over after",
        group="target",
        above=1,
        hint="2 halves the GFLOPs",
    )
    target: str = option(
        "macs",
        "what --speed-up counts: MACs, or measured time (latency)",
        choices=("macs", "latency"),
        group="target",
    )
    latency_batch: int = option(
        0,
        "images of a batch when time is measured; 0: 32, on a CPU as many as it can do in about a"
        " second",
        least=0,
        group="target",
    )
    latency_seconds: float = option(
        2.0, "time spent on each measuring of time; 0: do not measure any", least=0, group="target"
    )
    calib_batches: int = option(
        10,
        "training batches that group_taylor and group_hessian take gradients of, pagcp its losses",
        group="search",
        least=1,
    )
    recalib_every: int = option(
        0,
        "take these gradients anew, from the model as cut so far, every so many steps; 0 = once",
        group="search",
        negative=False,
    )
    max_steps: int = option(
        200,
        "most steps; each takes 0.5% of the channels and scores the rest anew",
        group="search",
        least=1,
    )
    initial_rate: float = option(
        0.05,
        "pagcp: by how much the first cut layer may raise a loss, as a share of it",
        group="search",
        above=0,
        hint=".05 lets the first layer raise a loss by 5 %",
    )
    initial_thres: float = option(
        5.0,
        "pagcp: how many times as high all layers of a round together may raise a loss",
        group="search",
    )
    topk: float = option(
        1.0,
        "pagcp: share of the cut layers that stay cut, those with the least loss per FLOP saved",
        group="search",
        above=0,
        most=1,
    )
    exp: bool = option(
        True,
        "pagcp: tolerances that follow lambda^i, so that they end at --initial-thres; without, all"
        " alike",
        group="search",
    )
    pagcp_rounds: int = option(
        3, "pagcp: most rounds over all layers, until the speed-up is met", least=1, group="search"
    )
    across_layers: bool = option(
        False, "rank the channels of all layers together; the default", "global", group="search"
    )
    per_layer: bool = option(
        False,
        "rank within each layer, so that all layers lose the same share",
        "local",
        group="search",
    )
    per: str = option(
        "auto",
        "divide the worth of a channel by what it frees: MACs, bytes of feature maps, the geometric"
        " mean of both, measured time; auto: both for methods that score in units of the loss",
        choices=("auto", "none", "macs", "bytes", "both", "time"),
        group="search",
    )
    max_ratio: float = option(
        1.0, "largest share of a layer's channels that may go", group="search", above=0, most=1
    )
    min_channels: int = option(
        4, "channels that every layer keeps at least", group="search", least=1
    )
    round_to: int = option(
        1, "cut widths to multiples of this; 8 suits GPUs", group="search", least=1
    )
    ignore: tuple[str, ...] = option(
        (),
        "layers that keep their outputs: row numbers, names, globs ('model.*.cv3')",
        multi=True,
        group="search",
    )
    allow_less: bool = option(
        False, "go as far as the limits allow where the speed-up cannot be reached", group="target"
    )
    resume: str = option(
        "",
        "go on with an interrupted run: its folder (runs/prune/exp), whose options count; --device"
        " may be another",
        group="run",
    )
    dry_run: bool = option(
        False,
        "list every layer, what it is tied to or why it stays whole, and the reachable speed-up,"
        " also as files; stop",
        group="run",
    )
    graph_time_limit: float = option(
        120.0,
        "seconds for finding out which channels are coupled; layers not done by then stay whole",
        least=1,
        group="search",
    )
    val_every: int = option(
        0,
        "validate the model as cut so far every so many steps; 0 = never",
        group="search",
        negative=False,
    )
    sparse_epochs: int = option(
        0,
        "sparse-train for so many epochs first, for slim, group_slim, group_sl, group_reg",
        least=0,
        group="sparse",
    )
    sparse_reg: str = option(
        "auto",
        "strength of that penalty: a number, or auto: gamma at zero after 70% of these epochs",
        group="sparse",
    )
    compensate: str = option(
        "auto",
        "how the cut model makes up for what it lost; auto: all that apply, the best by the loss on"
        " training images that nothing was fitted to",
        choices=("auto", "none", "fold", "recalibrate", "reconstruct"),
        group="compensation",
    )
    reconstruct_images: int = option(
        128,
        "training images that the weights of the cut model are fitted on",
        least=1,
        group="compensation",
    )
    repair_steps: int = option(
        300,
        "steps towards the uncut model after that, without labels; 0 = none",
        least=0,
        group="compensation",
    )
    recalibrate_batches: int = option(
        50,
        "training batches for new batch norm statistics after the cut; 0 = keep the old ones",
        group="compensation",
        negative=False,
    )
    finetune: bool = option(True, "train what is left", group="finetune")
    finetune_epochs: int = option(100, "passes over the training images", group="finetune", least=1)
    finetune_hyp: str = option(
        "finetune",
        "hyper-parameter YAML of finetune and sparse training: bare name or path",
        "hyp",
        group="finetune",
    )
    loss: str | None = option(
        None,
        "box-to-target assignment; without it the hyp file decides",
        choices=("yolo", "ota"),
        group="finetune",
    )
    optimizer: str = option(
        "SGD",
        "optimizer of finetune and sparse training",
        choices=("SGD", "Adam", "AdamW"),
        group="finetune",
    )
    patience: int = option(
        100,
        "epochs without a better fitness before the finetune stops; 0 = never",
        group="finetune",
    )
    batch_size: int = option(16, "images a step", "batch", group="what", least=1)
    imgsz: int = option(
        0,
        "image size in pixels; 0: what the weights were trained at",
        "img",
        "img-size",
        group="what",
        least=0,
        most=MOST_PIXELS,
    )
    cache: str = option(
        "",
        "keep decoded images in memory (ram) or as files (disk)",
        "cache-images",
        bare="ram",
        choices=("", "ram", "disk"),
        group="what",
    )
    max_det: int = option(300, "most detections of one image in validation", group="what", least=1)
    single_cls: bool = option(
        False, "treat all classes as one, as the weights were trained", group="what"
    )
    noplots: bool = option(False, "no pictures", group="run")
    project: str = option("runs/prune", "folder of the runs", group="run")

    @property
    def repairs(self) -> bool:
        """Whether a repair follows the compensation."""
        return self.repair_steps > 0 and self.compensate in ("auto", "reconstruct")

    def check(self) -> None:
        """Raise `UserError` for an option that is missing, out of range or does not fit."""
        super().check()
        for name in ("weights",) if self.dry_run else ("weights", "data"):
            if not getattr(self, name):
                raise UserError(f"--{name} is missing; e.g. {EXAMPLE}")
        if self.across_layers and self.per_layer:
            raise UserError("--global and --local exclude each other")
        self._check_finetune_teacher()
        self._check_pagcp()
        self._check_sparse()

    def check_resume(self) -> None:
        """Check a command with `--resume`; warn of options that a resumed run does not take.

        Raises:
            UserError: an option that would turn the run into another one.
        """
        if self.dry_run:
            raise UserError(
                "--dry-run: cannot be had with --resume, which goes on with the run; give --weights"
                " instead"
            )
        if changed := changed_options(self, besides={"resume", "device", *MOVED}):
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
        if not 1 + self.initial_rate < self.initial_thres:
            raise UserError(
                f"--initial-thres {self.initial_thres:g}: must be above 1 + --initial-rate ="
                f" {1 + self.initial_rate:g}, which the first layer alone may use up"
            )
        if self.method == "pagcp" and self.target == "latency":
            raise UserError(
                "--target latency: --method pagcp counts MACs only; take another method, or leave"
                " --target out"
            )


def _is_strength(text: str) -> bool:
    try:
        return 0 <= float(text) < math.inf
    except ValueError:
        return False


SEARCH_ONLY = ("initial_rate", "initial_thres", "topk", "exp", "pagcp_rounds")
RANKING_ONLY = ("max_steps", "recalib_every", "across_layers", "per_layer")
# Spellings that users know, where the name of the option is another.
FLAGS = {"across_layers": "--global", "per_layer": "--local", "exp": "--no-exp"}


def idle_options(opt: PruneOptions) -> list[str]:
    """Return one line for each option that is not at its default and has no effect."""
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
