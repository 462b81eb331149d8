"""Options of train.py: the flags of YOLOv5 and YOLOv7 under their own names and aliases.

Standard library only.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

from utils.errors import UserError, suggest
from utils.log import LOGGER
from utils.options.base import RunOptions, changed_options, option


@dataclass(frozen=True)
class TrainOptions(RunOptions):
    """What one training run is told; `prune.py`'s finetune stage fills the same class in code."""

    script: ClassVar[str] = "train.py"  # what to call to resume such a run
    weights: str = option(
        "",
        "checkpoint to start from: ours, an official YOLOv5 / YOLOv7 .pt, or empty to train from"
        " scratch",
    )
    cfg: str = option(
        "",
        "model YAML: bare name (yolov5n) or path; may be left out where --weights bring their own"
        " structure",
    )
    data: str = option("", "data YAML: bare name (demo) or path")
    reinit: bool = option(
        False,
        "keep the structure of --weights, a pruned one for instance, and start from new weights",
    )
    hyp: str = option("scratch-low", "hyper-parameter YAML: bare name (finetune) or path")
    loss: str | None = option(
        None, "box-to-target assignment; without it the hyp file decides", choices=("yolo", "ota")
    )
    epochs: int = option(100, "passes over the training images", least=1)
    batch_size: int = option(
        16,
        "images a step over all ranks; gradients accumulate up to the hyp file's nbs",
        "batch",
        least=1,
    )
    imgsz: int = option(
        640,
        "training image size in pixels; a second value is the size of validation",
        "img",
        "img-size",
        multi=True,
        least=1,
    )
    rect: bool = option(
        False, "rectangular training batches: less padding, no shuffling, no mosaic"
    )
    resume: str = option(
        "",
        "go on with an interrupted run: its last.pt, or alone for the latest run in --project",
        bare="latest",
    )
    nosave: bool = option(
        False, "write checkpoints only after the last epoch (the run cannot be resumed)"
    )
    noval: bool = option(False, "validate only after the last epoch", "notest")
    noautoanchor: bool = option(
        False, "keep the anchors of the model YAML even where they fit the data badly"
    )
    noplots: bool = option(False, "no pictures")
    cache: str = option(
        "",
        "keep decoded images in memory (ram) or as files (disk)",
        "cache-images",
        bare="ram",
        choices=("", "ram", "disk"),
    )
    image_weights: bool = option(False, "draw images with rare classes more often")
    multi_scale: bool = option(
        False, "vary the image size between half and 1.5 times from batch to batch"
    )
    single_cls: bool = option(False, "train all classes as one")
    optimizer: str = option("SGD", "optimizer", choices=("SGD", "Adam", "AdamW"))
    sync_bn: bool = option(False, "batch-norm statistics over all GPUs (torchrun only)")
    lr_schedule: str = option(
        "linear",
        "fall of the learning rate from lr0 to lr0 * lrf",
        choices=("linear", "cosine", "one-cycle"),
    )
    cos_lr: bool = option(False, "the same as --lr-schedule cosine")
    linear_lr: bool = option(False, "the same as --lr-schedule linear, which is the default")
    label_smoothing: float = option(0.0, "replaces the hyp file's label_smoothing where above 0")
    patience: int = option(100, "epochs without a better fitness before training stops; 0 = never")
    freeze: tuple[int, ...] = option(
        (), "freeze the first N rows (--freeze 10) or these rows (--freeze 0 1 2)", multi=True
    )
    save_period: int = option(-1, "also keep epochN.pt every so many epochs; below 1 = never")
    amp: str = option(
        "fp16",
        "mixed precision on a GPU; the CPU always trains in float32",
        choices=("fp16", "bf16", "off"),
    )
    local_rank: int = option(
        -1, "accepted for old launch commands; torchrun sets the rank by itself"
    )
    project: str = option("runs/train", "folder of the runs")
    val_imgsz: int = field(init=False, default=0)  # --imgsz's second value, or the first

    def __post_init__(self) -> None:
        sizes = self.imgsz if isinstance(self.imgsz, tuple) else (self.imgsz,)
        if len(sizes) > 2:
            raise UserError(
                f"--imgsz {' '.join(map(str, sizes))}: one size, or one for training and one for"
                " validation"
            )
        object.__setattr__(self, "imgsz", sizes[0])
        object.__setattr__(self, "val_imgsz", sizes[-1])

    def resume_hint(self, run_dir: Path) -> str:
        """What is said where a run is interrupted."""
        last = run_dir / "weights" / "last.pt"
        if last.is_file():
            return (
                f"the last completed epoch is saved; go on with: python {self.script} --resume"
                f" {last}"
            )
        return "stopped before the first epoch was complete, nothing is saved"

    def check(self) -> None:
        """Say in one line what is missing, or what is given in vain."""
        if self.resume:
            self._warn_of_others()
            return
        missing = [] if self.cfg or self.weights else ["a model (--cfg yolov5n or --weights x.pt)"]
        missing += [] if self.data else ["a data set (--data demo)"]
        if missing:
            example = f"python {self.script} --cfg yolov5n --data demo --hyp demo"
            raise UserError(f"missing: {' and '.join(missing)}; for example: {example}")
        if self.reinit and (self.cfg or not self.weights):
            raise UserError(
                "--reinit: takes the structure of --weights, without --cfg; for example: --weights"
                " pruned.pt --reinit"
            )

    def _warn_of_others(self) -> None:
        """A resumed run goes on with its own options."""
        if changed := changed_options(self, besides={"resume", "project", "device", "local_rank"}):
            LOGGER.warning(
                f"{', '.join(changed)}: no effect with --resume, the run goes on with its own"
                " options"
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "TrainOptions":
        """The options that a checkpoint holds as `args`.

        `UserError` for one that this script does not know.
        """
        known = [item.name for item in fields(cls)]
        for name in values:
            if name not in known:
                raise UserError(
                    f"args: unknown option '{name}'{suggest(name, known)}; resume with the script"
                    " that trained it"
                )
        given: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in values.items()
        }
        sizes: Any = (
            given.get("imgsz", 640),
            given.pop("val_imgsz", None) or given.get("imgsz", 640),
        )
        return cls(**{**given, "imgsz": sizes})

    @property
    def fits_anchors(self) -> bool:
        """Whether autoanchor may replace the anchors: only those of a model that is new."""
        return not (self.weights or self.noautoanchor)

    @property
    def schedule(self) -> str:
        """Name of the learning rate schedule, whichever flag gave it.

        `UserError` where flags contradict each other.
        """
        named = {"cosine": self.cos_lr, "linear": self.linear_lr}
        wanted = [name for name, on in named.items() if on] or [self.lr_schedule]
        if len(wanted) > 1 or (self.lr_schedule != "linear" and wanted[0] != self.lr_schedule):
            raise UserError(
                "--cos-lr, --linear-lr and --lr-schedule contradict each other; give one of them"
            )
        return wanted[0]
