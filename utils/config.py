"""Read YAML files, find them by name, and check hyper-parameters.

A YAML never runs code: `utils.yaml_files` reads it, and every key must be a known one.
"""

import dataclasses
import math
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from utils.errors import UserError, brief, suggest
from utils.files import why_not_regular, write_atomic
from utils.hyp_ranges import RANGES, check_range
from utils.yaml_files import read_yaml

MOST_CLASSES = 20_000  # the confusion matrix has the square of it
ROOT = Path(__file__).resolve().parent.parent
CONFIG_FOLDERS = {
    "model": ROOT / "models" / "configs",
    "data": ROOT / "data" / "configs",
    "hyp": ROOT / "data" / "hyps",
}


def load_yaml(
    path: Path | str, names: Collection[str] = (), texts: Collection[str] = ()
) -> dict[str, Any]:
    """Return the mapping of a YAML file.

    Args:
        path: File to read.
        names: Keys under which every word is text, as it is written: yes, off, 007 and null too.
        texts: Keys under which every word is text, but null means that there is none.

    Raises:
        UserError: Where the file is missing, broken or no mapping; names the file and the line.
    """
    path = Path(path)
    content = read_yaml(path, names, texts)
    if not isinstance(content, dict):
        found = "nothing" if content is None else type(content).__name__
        raise UserError(f"{path}: expected 'key: value' lines, found {found}")
    return content


def save_yaml(content: dict[str, Any], path: Path) -> None:
    """Write a mapping in the order of its keys."""
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, default_flow_style=None)
    write_atomic(path, text)


def resolve(name: Path | str, kind: str) -> Path:
    """Return the YAML file that a user names.

    An existing file wins. Otherwise the basename is looked up in the project's config folder of
    that kind; dots, dashes and underscores are alike, and a leading `hyp.` is dropped
    (`hyp.scratch.p5.yaml` -> `scratch-p5`). A pasted `cfg/deploy/` path finds the `-deploy` form.

    Args:
        name: Path, bare name, or a path of YOLOv5 or YOLOv7 (`cfg/training/yolov7-tiny.yaml`).
        kind: Key of `CONFIG_FOLDERS`.

    Raises:
        UserError: Where no file fits; suggests a similar name.
    """
    path = Path(name)
    if path.suffix in {".yaml", ".yml"} and not why_not_regular(path):
        return path
    known = {_key(p.stem): p for p in sorted(CONFIG_FOLDERS[kind].rglob("*.yaml"))}
    stem = path.name.removesuffix(".yaml").removesuffix(".yml")
    key = _key(re.sub(r"^hyp[.\-_]", "", stem))
    if "deploy" in path.parts[:-1] and f"{key}-deploy" in known:
        key = f"{key}-deploy"
    if key not in known:
        names = sorted(p.stem for p in known.values())
        raise UserError(
            f"{kind} YAML '{name}' not found{suggest(stem, names)} (known: {', '.join(names)}, or a"
            " path to a file)"
        )
    return known[key]


def _key(stem: str) -> str:
    """Return a file's stem in the form that names are compared in."""
    return re.sub(r"[._\-]+", "-", stem.lower())


@dataclass(frozen=True)
class Hyp:
    """Hyper-parameters under the names of YOLOv5 and YOLOv7; frozen, every value checked.

    The gains `box`, `cls` and `obj` are those of the YAML files, for 3 layers, 80 classes and
    640 px. `scaled()` returns the gains of a training run.

    Raises:
        UserError: For a value of the wrong type or out of range.
    """

    # optimiser
    lr0: float = 0.01  # initial learning rate
    lrf: float = 0.01  # final learning rate / lr0
    momentum: float = 0.937  # SGD momentum, Adam beta1
    weight_decay: float = 0.0005
    nbs: int = 64  # nominal batch: gradients accumulate up to it, weight decay is meant at it
    warmup_epochs: float = 3.0
    warmup_momentum: float = 0.8
    warmup_bias_lr: float = 0.1
    # steps over which the average of the weights builds up; runs of 1000 steps want a tenth of this
    ema_tau: float = 2000.0
    # loss
    loss: str = "yolo"  # yolo | ota
    box: float = 0.05
    cls: float = 0.5
    cls_pw: float = 1.0  # positive weight of the class BCE
    obj: float = 1.0
    obj_pw: float = 1.0
    iou_t: float = 0.2  # kept for the files' sake: unused by YOLOv5 and YOLOv7 alike
    anchor_t: float = 4.0  # largest width / height ratio of target and anchor that still matches
    anchors: float | None = None  # anchors a level, where the model YAML leaves it open
    fl_gamma: float = 0.0  # focal loss gamma, 0 = off
    autobalance: bool = False  # move the level balance with the losses
    label_smoothing: float = 0.0
    # augmentation
    hsv_h: float = 0.015
    hsv_s: float = 0.7
    hsv_v: float = 0.4
    degrees: float = 0.0
    translate: float = 0.1
    scale: float = 0.5
    shear: float = 0.0
    perspective: float = 0.0
    flipud: float = 0.0
    fliplr: float = 0.5
    mosaic: float = 1.0
    mixup: float = 0.0
    # both need segment labels, which box labels do not have: without effect, with a warning
    copy_paste: float = 0.0
    paste_in: float = 0.0
    close_mosaic: int = 0  # last epochs without mosaic and mixup

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = _checked(field, getattr(self, field.name))
            object.__setattr__(self, field.name, value)
            if field.name in RANGES:
                check_range(field.name, value)
        if self.loss not in {"yolo", "ota"}:
            raise UserError(f"hyp: loss: '{self.loss}' is not known (yolo or ota)")

    def scaled(self, num_layers: int = 3, num_classes: int = 80, imgsz: int = 640) -> "Hyp":
        """Return the hyper-parameters with the gains of a training run.

        The rule is that of YOLOv5 and YOLOv7: box x 3/layers, cls x classes/80 x 3/layers,
        obj x (imgsz/640)^2 x 3/layers.
        """
        per_layer = 3 / num_layers
        return self.replace(
            box=self.box * per_layer,
            cls=self.cls * num_classes / 80 * per_layer,
            obj=self.obj * (imgsz / 640) ** 2 * per_layer,
        )

    def replace(self, **changes: Any) -> "Hyp":
        """Return a copy with some values changed; hyper-parameters are never mutated."""
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Return the plain values by name, without the unset ones."""
        return {k: v for k, v in dataclasses.asdict(self).items() if v is not None}


def _checked(field: dataclasses.Field, value: Any) -> Any:
    """Return the value in the type of the field.

    Raises:
        UserError: Where the value cannot be read in that type.
    """
    if field.name == "anchors" and value is None:
        return None
    kind = type(field.default) if field.default is not None else float
    try:
        if kind is float and not isinstance(value, bool):
            value = float(value)  # YAML reads 1e-3 as a string
            if math.isfinite(value):
                return value
        elif kind is int and float(value) == int(float(value)) and not isinstance(value, bool):
            return int(float(value))
        elif kind is bool and value in (True, False, 0, 1):
            return bool(value)
        elif kind is str and isinstance(value, str):
            return value
    except (TypeError, ValueError, OverflowError):
        pass
    wanted = "finite number" if kind is float else kind.__name__
    raise UserError(f"hyp: {field.name}: {brief(value)} is not a {wanted}")


def load_hyp(source: "Hyp | dict[str, Any] | Path | str") -> Hyp:
    """Return the hyper-parameters of a bare name (`scratch-low`), a path or a mapping.

    A `Hyp` is returned unchanged. YOLOv7's `loss_ota: 1` is read as `loss: ota`.

    Raises:
        UserError: For an unknown key or a wrong value; names the file and suggests a key.
    """
    if isinstance(source, Hyp):
        return source
    where, values = ("hyp", dict(source)) if isinstance(source, dict) else _hyp_file(source)
    if "loss_ota" in values:
        ota = values.pop("loss_ota")
        values.setdefault("loss", "ota" if ota else "yolo")
    known = [field.name for field in dataclasses.fields(Hyp)]
    for key in values:
        if key not in known:
            raise UserError(f"{where}: unknown key {brief(key)}{suggest(key, known)}")
    try:
        return Hyp(**values)
    except UserError as error:
        raise UserError(str(error).replace("hyp:", f"{where}:", 1)) from None


def _hyp_file(source: Path | str) -> tuple[str, dict[str, Any]]:
    """Return the path of a file of hyper-parameters and its mapping."""
    path = resolve(source, "hyp")
    return str(path), load_yaml(path)
