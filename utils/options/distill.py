"""Options of distillation (a mixin for every script that trains), and the options of distill.py.

Standard library only.
"""

import ast
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from utils.config import ROOT
from utils.errors import UserError
from utils.log import LOGGER
from utils.options.base import option
from utils.options.train import TrainOptions
from utils.registry import registered_names

FEATURE_NAMES = registered_names(ROOT / "distill", "FEATURE_LOSSES")
LOGIT_NAMES = registered_names(ROOT / "distill", "LOGIT_LOSSES")
ADAPTER_NAMES = registered_names(ROOT / "distill" / "adapters", "ADAPTERS")
AUTO = "auto"  # the adapter that suits a pair of layers
OF_FEATURES = ("student_layers", "teacher_layers", "feature_args", "adapter", "adapter_every")
SCHEDULES = registered_names(ROOT / "distill", "KD_SCHEDULES")


@dataclass(frozen=True)
class TeacherOptions:
    """Options of distillation, for every script that trains.

    Without `teacher` nothing is distilled.
    """

    teacher: str = option(
        "",
        "trained checkpoint to learn from: ours, pruned ones too, or an official YOLOv5 /"
        " YOLOv7 .pt",
        group="teacher",
        path=True,
    )
    teacher_cfg: str = option(
        "",
        "accepted for old commands; a checkpoint brings its own structure",
        group="teacher",
    )
    feature_loss: tuple[str, ...] = option(
        (),
        "feature losses, one or several; in short runs they may cost mAP (docs/results.md)",
        group="teacher",
        multi=True,
        choices=FEATURE_NAMES,
    )
    feature_weight: tuple[float, ...] = option(
        (),
        "one weight, or one for each feature loss; each its own if not given",
        group="teacher",
        multi=True,
        negative=False,
    )
    feature_args: tuple[str, ...] = option(
        (),
        "options of feature losses as loss.name=value, see docs/distillation.md",
        group="teacher",
        multi=True,
    )
    adapter: str = option(
        AUTO,
        "what brings the student's features to the teacher's channels; auto: kept under the model"
        " that the student was cut from, else closed-form",
        group="teacher",
        choices=(AUTO, *ADAPTER_NAMES),
    )
    adapter_every: int = option(
        1, "batches from one closed-form solution to the next", group="teacher", least=1
    )
    student_layers: tuple[str, ...] = option(
        (),
        "layers to compare: row numbers, tags, module paths (17,20,23); the head's inputs if not"
        " given",
        group="teacher",
        multi=True,
    )
    teacher_layers: tuple[str, ...] = option(
        (), "the teacher's layers, in the same order", group="teacher", multi=True
    )
    logit_loss: str | None = option(
        None,
        "loss between the raw outputs, ast to begin with; needs equal anchors and classes",
        group="teacher",
        choices=LOGIT_NAMES,
    )
    logit_weight: float = option(1.0, "its weight", group="teacher", negative=False)
    kd_schedule: str = option(
        "constant",
        "course of the distillation weight over the run; linear and cosine fall from 1 to"
        " --kd-floor",
        group="teacher",
        choices=SCHEDULES,
    )
    kd_floor: float = option(0.01, "where linear and cosine end", group="teacher", least=0, most=1)
    kd_stop: float = option(
        1.0,
        "share of the run after which distillation is off",
        group="teacher",
        least=0,
        most=1,
    )
    kd_warmup: float = option(
        0.0,
        "epochs over which its weight rises from 0, while adapters are new",
        group="teacher",
        negative=False,
    )

    def check_teacher(self) -> None:
        """Raise `UserError` for what is missing or does not fit together; warn of what is idle."""
        if not self.teacher:
            self._check_without()
            return
        if not (self.feature_loss or self.logit_loss):
            raise UserError(
                "--teacher: nothing says what to learn from it; e.g. --logit-loss ast, or"
                " --feature-loss pkd"
            )
        _check_distinct(self.feature_loss)
        self._check_counts()
        self.loss_arguments()
        self._warn_of_no_effect()

    def _warn_of_no_effect(self) -> None:
        if self.teacher_cfg:
            LOGGER.warning("--teacher-cfg has no effect: a checkpoint brings its own structure")
        if not self.feature_loss and any(self._given(name) for name in OF_FEATURES):
            names = ", ".join(f"--{name.replace('_', '-')}" for name in OF_FEATURES)
            LOGGER.warning(f"{names} have no effect without --feature-loss")
        elif self.adapter_every > 1 and self.adapter not in (AUTO, "closed-form"):
            LOGGER.warning(f"--adapter-every has no effect with --adapter {self.adapter}")
        if not self.distils:
            LOGGER.warning("every weight of distillation is 0: the teacher is left out")

    def _given(self, name: str) -> bool:
        """Return whether an option has another value than its default."""
        defaults = {item.name: item.default for item in fields(TeacherOptions)}
        return getattr(self, name) != defaults[name]

    def _check_counts(self) -> None:
        if len(self.feature_weight) not in {0, 1, len(self.feature_loss)}:
            raise UserError(
                f"--feature-weight: {len(self.feature_weight)} weights for {len(self.feature_loss)}"
                " feature losses; give one for all, or one for each"
            )

    def _check_without(self) -> None:
        given = [f.name for f in fields(TeacherOptions) if getattr(self, f.name) != f.default]
        if given:
            raise UserError(
                f"--{given[0].replace('_', '-')}: needs a teacher; e.g. --teacher"
                " runs/train/exp/weights/best.pt"
            )

    @property
    def feature_weights(self) -> dict[str, float | None]:
        """Weight by feature loss, None for the loss's own; losses of weight 0 are left out."""
        weights: tuple[float | None, ...] = self.feature_weight or (None,)
        weights = weights * len(self.feature_loss) if len(weights) == 1 else weights
        return {
            name: weight
            for name, weight in zip(self.feature_loss, weights, strict=True)
            if weight != 0
        }

    @property
    def logit(self) -> str | None:
        """Name of the logit loss, None where its weight is 0."""
        return self.logit_loss if self.logit_weight else None

    @property
    def distils(self) -> bool:
        """True where a teacher is given, and a loss whose weight is not 0."""
        return bool(self.teacher and (self.feature_weights or self.logit))

    def teaching(self) -> dict[str, Any]:
        """Return the values of these options by name, to fill another class with."""
        return {item.name: getattr(self, item.name) for item in fields(TeacherOptions)}

    def loss_arguments(self) -> dict[str, dict[str, Any]]:
        """Return the arguments of each feature loss, a key for every one.

        `--feature-args mgd.alpha=.5 mgd.form=sum` gives {"mgd": {"alpha": 0.5, "form": "sum"}}.
        """
        found: dict[str, dict[str, Any]] = {name: {} for name in self.feature_loss}
        for text in self.feature_args:
            target, equals, value = text.partition("=")
            loss, _, name = target.partition(".")
            if not (equals and name) or loss not in found:
                known = ", ".join(found) or "none is given"
                raise UserError(
                    f"--feature-args {text}: must be loss.name=value, the loss one of"
                    f" --feature-loss ({known})"
                )
            found[loss][name.replace("-", "_")] = _literal(value)
        return found

    @staticmethod
    def layers(given: tuple[str, ...]) -> list[str]:
        """Return the single names of `17,20,23`, `17 20 23` and mixtures."""
        return [name for text in given for name in text.split(",") if name]


@dataclass(frozen=True)
class WithTeacherOptions(TeacherOptions, TrainOptions):
    """Options of a training that may have a teacher: those of train.py and of distillation."""

    def check(self) -> None:
        """Raise `UserError` for an option that is missing or out of range."""
        super().check()
        if not self.resume:
            self.check_teacher()

    @property
    def fits_anchors(self) -> bool:
        """Raw outputs can only be compared where both have the teacher's anchors."""
        return super().fits_anchors and not (self.distils and self.logit)

    @property
    def anchor_remedy(self) -> str:
        """End of the warning that the anchors fit badly: what the user may do."""
        if self.distils and self.logit:
            return (
                "; a logit loss needs the anchors of the teacher: train the teacher with"
                " --autoanchor, or distil features only"
            )
        return super().anchor_remedy


@dataclass(frozen=True)
class DistillOptions(WithTeacherOptions):
    """Options of one distillation.

    The finetune stage of prune.py fills the same class in code where it has a teacher.
    """

    script: ClassVar[str] = "distill.py"
    project: str = option("runs/distill", "folder of the runs", group="run")

    def check(self) -> None:
        """Raise `UserError` for an option that is missing or out of range."""
        super().check()
        if not (self.teacher or self.resume):
            raise UserError(
                "missing: a teacher; for example: --teacher runs/train/exp/weights/best.pt"
                " --logit-loss ast"
            )


def _check_distinct(names: tuple[str, ...]) -> None:
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise UserError(
            f"--feature-loss: {twice[0]} is given twice; once is enough, with its --feature-weight"
        )


def _literal(text: str) -> Any:
    """Return the number, True, False or None that a text says, else the text."""
    try:
        return ast.literal_eval(
            {"true": "True", "false": "False", "none": "None"}.get(text.lower(), text)
        )
    except (ValueError, SyntaxError):
        return text
