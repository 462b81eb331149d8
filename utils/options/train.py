"""Options of train.py: the flags of YOLOv5 and YOLOv7 under their own names and aliases.

Standard library only.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Literal

from utils.errors import UserError, suggest
from utils.log import LOGGER
from utils.options.base import RunOptions, changed_options, option
from utils.options.meta import MOST_PIXELS
from utils.options.stored import options_from

MOVABLE = ("data", "teacher")
"""Options that a resumed run takes from its command line: files that may have moved."""

Progress = Literal["nothing", "epoch", "all"]
"""What an interrupted run has saved: no epoch, an epoch to go on from, or all of them."""


@dataclass(frozen=True)
class TrainOptions(RunOptions):
    """Options of one training run; the finetune stage of prune.py fills this class in code."""

    script: ClassVar[str] = "train.py"  # the script that resumes such a run
    weights: str = option(
        "",
        "checkpoint to start from: ours, an official YOLOv5 / YOLOv7 .pt, or empty to train from"
        " scratch",
        group="what",
        path=True,
    )
    cfg: str = option(
        "",
        "model YAML: bare name (yolov5n) or path; may be left out where --weights bring their own"
        " structure",
        group="what",
        path=True,
    )
    data: str = option("", "data YAML: bare name (demo) or path", group="what", path=True)
    reinit: bool = option(
        False,
        "keep the structure of --weights, a pruned one for instance, and start from new weights",
        group="what",
    )
    hyp: str = option(
        "scratch-low",
        "hyper-parameter YAML: bare name (finetune) or path",
        group="training",
        path=True,
    )
    loss: str | None = option(
        None,
        "box-to-target assignment; without it the hyp file decides",
        group="training",
        choices=("yolo", "ota"),
    )
    epochs: int = option(100, "passes over the training images", group="training", least=1)
    batch_size: int = option(
        16,
        "images a step over all ranks; gradients accumulate up to the hyp file's nbs",
        "batch",
        group="training",
        least=1,
    )
    imgsz: int = option(
        640,
        "training image size in pixels; a second value is the size of validation",
        "img",
        "img-size",
        group="data",
        second="val_imgsz",
        least=1,
        most=MOST_PIXELS,
    )
    rect: bool = option(
        False,
        "rectangular training batches: less padding, no shuffling, no mosaic",
        group="data",
    )
    resume: str = option(
        "",
        "go on with an interrupted run: its last.pt, or alone for the latest run in --project",
        group="run",
        bare="latest",
    )
    nosave: bool = option(
        False,
        "write checkpoints only after the last epoch (the run cannot be resumed)",
        group="run",
    )
    noval: bool = option(False, "validate only after the last epoch", "notest", group="run")
    noautoanchor: bool = option(
        False,
        "keep the anchors of the model YAML even where they fit the data badly",
        group="training",
    )
    autoanchor: bool = option(
        False,
        "replace the anchors of --weights too where they fit the data badly",
        group="training",
    )
    noplots: bool = option(False, "no pictures", group="run")
    cache: str = option(
        "",
        "keep decoded images in memory (ram) or as files (disk)",
        "cache-images",
        group="data",
        bare="ram",
        choices=("", "ram", "disk"),
    )
    image_weights: bool = option(False, "draw images with rare classes more often", group="data")
    multi_scale: bool = option(
        False,
        "vary the image size between half and 1.5 times from batch to batch",
        group="data",
    )
    max_det: int = option(300, "most detections of one image in validation", group="data", least=1)
    single_cls: bool = option(False, "train all classes as one", group="data")
    optimizer: str = option("SGD", "optimizer", group="training", choices=("SGD", "Adam", "AdamW"))
    adam: bool = option(False, "the same as --optimizer Adam", group="training")
    sync_bn: bool = option(
        False, "batch-norm statistics over all GPUs (torchrun only)", group="training"
    )
    lr_schedule: str = option(
        "linear",
        "fall of the learning rate from lr0 to lr0 * lrf",
        group="training",
        choices=("linear", "cosine", "one-cycle"),
    )
    cos_lr: bool = option(False, "the same as --lr-schedule cosine", group="training")
    linear_lr: bool = option(
        False, "the same as --lr-schedule linear, which is the default", group="training"
    )
    label_smoothing: float = option(
        0.0,
        "replaces the hyp file's label_smoothing where above 0",
        group="training",
        least=0,
        most=1,
    )
    patience: int = option(
        100,
        "epochs without a better fitness before training stops; 0 = never",
        group="training",
    )
    freeze: tuple[int, ...] = option(
        (),
        "freeze the first N rows (--freeze 10) or these rows (--freeze 0 1 2)",
        group="training",
        multi=True,
        least=0,
    )
    save_period: int = option(
        -1, "also keep epochN.pt every so many epochs; below 1 = never", group="run"
    )
    amp: str = option(
        "fp16",
        "mixed precision on a GPU; the CPU always trains in float32",
        group="training",
        choices=("fp16", "bf16", "off"),
    )
    local_rank: int = option(
        -1,
        "accepted for old launch commands; torchrun sets the rank by itself",
        group="run",
    )
    project: str = option("runs/train", "folder of the runs", group="run")
    val_imgsz: int = option(
        0,
        "validation image size in pixels; 0: that of training",
        group="data",
        least=0,
        hint="the second value of --img-size",
        most=MOST_PIXELS,
    )

    def resume_hint(self, run_dir: Path, progress: "Progress" = "epoch") -> str:
        """Return what to do next where a run is interrupted.

        Args:
            run_dir: Folder of the run.
            progress: What the run has saved.
        """
        weights = run_dir / "weights"
        last = weights / "last.pt"
        if progress == "nothing":
            other = f" ({last} is of an earlier run)" if last.is_file() else ""
            return f"stopped before the first epoch was complete, nothing is saved{other}"
        if progress == "all":
            return (
                "all epochs are done and saved, only the last validation is missing: python val.py"
                f" --weights {weights / 'best.pt'} --data {self.data}"
            )
        return (
            f"the last completed epoch is saved; go on with: python {self.script} --resume {last}"
        )

    def check(self) -> None:
        """Raise `UserError` for what is missing; warn of what is given in vain."""
        super().check()
        if self.resume:
            self._warn_of_others()
            return
        missing = [] if self.cfg or self.weights else ["a model (--cfg yolov5n or --weights x.pt)"]
        missing += [] if self.data else ["a data set (--data demo)"]
        if missing:
            example = f"python {self.script} --cfg yolov5n --data demo --hyp demo"
            raise UserError(f"missing: {' and '.join(missing)}; for example: {example}")
        if self.autoanchor and self.noautoanchor:
            raise UserError("--autoanchor and --noautoanchor exclude each other")
        if self.reinit and (self.cfg or not self.weights):
            raise UserError(
                "--reinit: takes the structure of --weights, without --cfg; for example: --weights"
                " pruned.pt --reinit"
            )

    def _warn_of_others(self) -> None:
        """Warn of options given beside `--resume`: a resumed run goes on with its own."""
        if changed := changed_options(
            self, besides={"resume", "project", "device", "local_rank", *MOVABLE}
        ):
            LOGGER.warning(
                f"{', '.join(changed)}: no effect with --resume, the run goes on with its own"
                " options"
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "TrainOptions":
        """Return the options that a checkpoint holds as `args`.

        `imgsz` may be a list of one or two sizes, as pasted command lines give it.

        Raises:
            UserError: an option that this script does not know.
        """
        known = [item.name for item in fields(cls)]
        for name in values:
            if name not in known:
                raise UserError(
                    f"args: unknown option '{name}'{suggest(name, known)}; resume with the script"
                    " that trained it"
                )
        return options_from(cls, cls.sizes(values), "args")

    @staticmethod
    def sizes(values: Mapping[str, Any]) -> dict[str, Any]:
        """Return stored options with one number for each image size."""
        given = dict(values)
        if isinstance(sizes := given.get("imgsz"), list) and sizes:
            given |= {"imgsz": sizes[0], "val_imgsz": given.get("val_imgsz") or sizes[-1]}
        return given

    @property
    def fits_anchors(self) -> bool:
        """True where autoanchor may replace the anchors: those of a new model, or as asked for."""
        return self.autoanchor or not (self.weights or self.noautoanchor)

    @property
    def anchor_remedy(self) -> str:
        """End of the warning that the anchors fit badly: what the user may do."""
        if self.noautoanchor:
            return "; leave out --noautoanchor"
        given = f" --cfg {self.cfg}" if self.cfg else ""
        return (
            "; let new ones be found: python train.py --weights"
            f" {self.weights}{given} --data {self.data} --autoanchor"
        )

    @property
    def optimizer_name(self) -> str:
        """Name of the optimizer, whichever flag gave it.

        Raises:
            UserError: flags contradict each other.
        """
        if self.adam and self.optimizer == "AdamW":
            raise UserError("--adam and --optimizer AdamW contradict each other; give one of them")
        return "Adam" if self.adam else self.optimizer

    @property
    def schedule(self) -> str:
        """Name of the learning rate schedule, whichever flag gave it.

        Raises:
            UserError: flags contradict each other.
        """
        named = {"cosine": self.cos_lr, "linear": self.linear_lr}
        wanted = [name for name, on in named.items() if on] or [self.lr_schedule]
        if len(wanted) > 1 or (self.lr_schedule != "linear" and wanted[0] != self.lr_schedule):
            raise UserError(
                "--cos-lr, --linear-lr and --lr-schedule contradict each other; give one of them"
            )
        return wanted[0]
