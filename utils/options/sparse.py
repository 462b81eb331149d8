"""Options of train_sparse.py: train.py's, the penalty's, and a teacher's. Standard library only."""

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
    """What one sparse training is told; a checkpoint of it is resumed by train_sparse.py."""

    script: ClassVar[str] = "train_sparse.py"
    method: str = option("slim", "penalty; prune.py takes the same name", choices=METHODS)
    reg: str = option(
        "5e-4", "strength of the penalty, or auto: gamma at zero after 70% of this run"
    )
    reg_decay: str | None = option(
        None,
        "fall of reg over the epochs, linear if not given; group_reg has none",
        choices=("linear", "cosine", "constant"),
    )
    reg_end_factor: float | None = option(None, "reg of the last epoch / reg, 0.01 if not given")
    delta_reg: float = option(
        1e-4, "group_reg: growth of the weakest channel's factor every --delta-every steps"
    )
    delta_every: int = option(10, "group_reg: optimizer steps between two growths")
    ignore: tuple[str, ...] = option(
        (), "layers that are left alone: row numbers, names, globs ('model.*.cv3')", multi=True
    )
    hist_every: int = option(0, "epochs between two histogram pictures; 0 = about ten in a run")
    patience: int = option(
        0,
        "epochs without a better fitness before it stops; 0 = never: fitness falls before"
        " channels do",
    )
    project: str = option("runs/sparse", "folder of the runs")

    def check(self) -> None:
        """`UserError` for what is missing or out of range."""
        super().check()
        if self.method not in METHODS:
            raise UserError(f"--method '{self.method}': is not known ({', '.join(METHODS)})")
        end, reg = self.reg_end_factor, self.strength
        if reg is not None and not 0 <= reg < float("inf"):
            raise UserError(f"--reg {self.reg}: must not be negative")
        if end is not None and not 0 <= end <= 1:
            raise UserError(f"--reg-end-factor {end:g}: must be from 0 to 1")
        if not 0 <= self.delta_reg < float("inf"):
            raise UserError(f"--delta-reg {self.delta_reg:g}: must not be negative")
        if self.delta_every < 1:
            raise UserError(f"--delta-every {self.delta_every}: must be at least 1")
        if self.hist_every < 0:
            raise UserError(f"--hist-every {self.hist_every}: must not be negative")

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
        """Of the decay in effect."""
        return 0.01 if self.reg_end_factor is None else self.reg_end_factor
