"""Options of train_sparse.py: those of train.py, of the penalty and of a teacher.

Standard library only.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

from utils.config import ROOT
from utils.errors import UserError
from utils.options.base import option
from utils.options.distill import WithTeacherOptions
from utils.registry import registered_names

METHODS = registered_names(ROOT / "prune_methods", "PENALTIES")
AUTO = "auto"


@dataclass(frozen=True)
class SparseOptions(WithTeacherOptions):
    """Options of one sparse training; train_sparse.py resumes its checkpoints."""

    script: ClassVar[str] = "train_sparse.py"
    method: str = option(
        "slim", "penalty; prune.py takes the same name", group="sparse", choices=METHODS
    )
    reg: str = option(
        "5e-4",
        "strength of the penalty, or auto: gamma at zero after 70% of this run",
        group="sparse",
    )
    reg_decay: str | None = option(
        None,
        "fall of reg over the epochs, linear if not given; group_reg has none",
        group="sparse",
        choices=("linear", "cosine", "constant"),
    )
    reg_end_factor: float | None = option(
        None,
        "reg of the last epoch / reg, 0.01 if not given",
        group="sparse",
        least=0,
        most=1,
    )
    delta_reg: float = option(
        1e-4,
        "group_reg: growth of the weakest channel's factor every --delta-every steps",
        group="sparse",
        negative=False,
    )
    delta_every: int = option(
        10, "group_reg: optimizer steps between two growths", group="sparse", least=1
    )
    ignore: tuple[str, ...] = option(
        (),
        "layers that are left alone: row numbers, names, globs ('model.*.cv3')",
        group="sparse",
        multi=True,
    )
    hist_every: int = option(
        0,
        "epochs between two histogram pictures; 0 = about ten in a run",
        group="sparse",
        negative=False,
    )
    patience: int = option(
        0,
        "epochs without a better fitness before it stops; 0 = never: fitness falls before"
        " channels do",
        group="training",
    )
    project: str = option("runs/sparse", "folder of the runs", group="run")

    def check(self) -> None:
        """Raise `UserError` for an option that is missing or out of range."""
        super().check()
        reg = self.strength
        if reg is not None and not 0 <= reg < math.inf:
            raise UserError(f"--reg {self.reg}: must not be negative")

    @property
    def strength(self) -> float | None:
        """`--reg` as a number, None for auto."""
        if self.reg == AUTO:
            return None
        try:
            return float(self.reg)
        except ValueError:
            raise UserError(f"--reg '{self.reg}': must be a number (5e-4) or auto") from None

    @property
    def decay(self) -> str:
        """Name of the decay in effect."""
        return "constant" if self.method == "group_reg" else self.reg_decay or "linear"

    @property
    def end_factor(self) -> float:
        """End factor of the decay in effect."""
        return 0.01 if self.reg_end_factor is None else self.reg_end_factor
