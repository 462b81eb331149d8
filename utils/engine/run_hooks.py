"""The hooks of every run: progress bar, results.csv, plot, TensorBoard, early stopping, checkpoints
and interrupts.
"""

import csv
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from tqdm import tqdm

from utils.engine.device import gpu_memory
from utils.engine.hooks import Hook, TrainerState
from utils.engine.precision import all_finite
from utils.files import atomic_open
from utils.log import LOGGER

DETECTION_LOSSES = ("box", "obj", "cls")
COLUMNS = (
    "epoch",
    *(f"train/{name}_loss" for name in DETECTION_LOSSES),
    *(f"metrics/{name}" for name in ("precision", "recall", "mAP_0.5", "mAP_0.5:0.95")),
    *(f"val/{name}_loss" for name in DETECTION_LOSSES),
    *(f"x/lr{i}" for i in range(3)),
)
"""The columns that YOLOv5's users read; what tasks and hooks add comes after these."""


def users_columns(row: dict[str, float]) -> dict[str, float]:
    """A trainer's row with the names users know: the detection losses are called `train/box_loss`
    and so on.
    """
    named = {
        f"{k}_loss" if k.partition("/")[2] in DETECTION_LOSSES else k: v for k, v in row.items()
    }
    return {name: named[name] for name in COLUMNS if name in named} | named


class ProgressBar(Hook):
    """YOLOv5's header and a tqdm line an epoch. Looks at the device only every `every` batches."""

    main_only = True

    def __init__(self, every: int = 10):
        self.every = every
        self._bar: tqdm | None = None

    def on_batch_end(self, trainer: TrainerState) -> None:
        """Print the header at the first batch, then refresh the mean losses now and then."""
        total = len(trainer.loader)
        if trainer.batch == 0:
            names = ["Epoch", "GPU_mem", *trainer.parts, "Instances", "Size"]
            LOGGER.info("\n" + "".join(f"{name:>11}" for name in names))
            self._bar = tqdm(
                total=total, bar_format="{l_bar}{bar:10}{r_bar}", file=sys.stdout, mininterval=0.5
            )
        assert self._bar is not None
        if trainer.batch % self.every == 0 or trainer.batch + 1 == total:
            losses = [f"{value:.4g}" for value in trainer.mean_parts().values()]
            counts = [str(len(trainer.data.targets)), str(trainer.images.shape[-1])]
            fields = [
                f"{trainer.epoch}/{trainer.epochs - 1}",
                gpu_memory(trainer.device),
                *losses,
                *counts,
            ]
            self._bar.set_description_str("".join(f"{text:>11}" for text in fields), refresh=False)
        self._bar.update(1)
        if trainer.batch + 1 == total:
            self._bar.close()


class ResultsCsv(Hook):
    """`results.csv`: written anew each epoch from the history, so that a resumed run continues
    after its checkpoint.
    """

    main_only = True

    def __init__(self, path: Path):
        self.path = path

    def on_epoch_end(self, trainer: TrainerState) -> None:
        """One line an epoch; a cell is empty where the epoch has no such value."""
        rows = [users_columns(row) for row in trainer.history]
        names = [
            *COLUMNS,
            *dict.fromkeys(name for row in rows for name in row if name not in COLUMNS),
        ]
        with atomic_open(self.path, "w") as file:
            writer = csv.DictWriter(file, names, lineterminator="\n")
            writer.writeheader()
            writer.writerows({name: _cell(value) for name, value in row.items()} for row in rows)


def _cell(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.6g}"


class TensorBoard(Hook):
    """The same values as TensorBoard scalars, where TensorBoard is installed."""

    main_only = True

    def __init__(self, folder: Path):
        self.folder = folder
        self._writer: Any = None

    def on_fit_start(self, trainer: TrainerState) -> None:
        """Open the event file."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            LOGGER.info(
                "TensorBoard is not installed: no event files (pip install tensorboard would write"
                " them)"
            )
            return
        LOGGER.info(f"TensorBoard: tensorboard --logdir {self.folder.parent}")
        self._writer = SummaryWriter(str(self.folder), purge_step=trainer.epoch)

    def on_epoch_end(self, trainer: TrainerState) -> None:
        """One point an epoch for every column."""
        if self._writer is not None:
            for name, value in users_columns(trainer.row).items():
                self._writer.add_scalar(name, value, trainer.epoch)
            self._writer.flush()

    def on_fit_end(self, trainer: TrainerState) -> None:
        """Close the event file."""
        if self._writer is not None:
            self._writer.close()


class EarlyStopping(Hook):
    """Stops training after `patience` epochs without a better fitness; 0 = never."""

    main_only = True

    def __init__(self, patience: int):
        self.patience = patience
        self.best_epoch = 0

    def on_epoch_end(self, trainer: TrainerState) -> None:
        """Compare with the best epoch up to now."""
        if trainer.is_best:
            self.best_epoch = trainer.epoch
        if self.patience > 0 and trainer.epoch - self.best_epoch >= self.patience:
            trainer.stop = True
            LOGGER.info(
                f"Stopped early: no better fitness for {self.patience} epochs, the best was epoch"
                f" {self.best_epoch} (--patience 0 would train on)"
            )

    def state_dict(self) -> dict[str, Any]:
        """The epoch of the best fitness."""
        return {"best_epoch": self.best_epoch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take it back."""
        self.best_epoch = state["best_epoch"]


class Checkpoints(Hook):
    """`last.pt` every epoch with all that resuming needs, `best.pt` without, `epochN.pt` every
    `period` epochs.

    `save(path, model, **fields)` writes atomically. Weights that are not finite are never written.
    Give it as the last hook: what others do at the end of an epoch belongs into the checkpoint.
    """

    main_only = True

    def __init__(
        self, folder: Path, save: Callable[..., None], *, period: int = -1, every_epoch: bool = True
    ):
        self.save = save
        self.last, self.best = folder / "last.pt", folder / "best.pt"
        self.period, self.every_epoch = period, every_epoch
        self._fields: dict[str, Any] = {}

    def on_epoch_end(self, trainer: TrainerState) -> None:
        """The best is written before the last: if we die in between, the resumed epoch writes it
        again.
        """
        if trainer.skipped:
            LOGGER.warning(
                f"epoch {trainer.epoch}: {trainer.skipped} steps were skipped, their gradient was"
                " not finite"
            )
        if not (all_finite(trainer.ema.model) and all_finite(trainer.task)):
            LOGGER.warning(
                f"epoch {trainer.epoch}: the weights are not finite, no checkpoint is written"
            )
            return
        history = [users_columns(row) for row in trainer.history]
        self._fields = {
            "epoch": trainer.epoch,
            "best_fitness": trainer.best_fitness,
            "history": history,
        }
        if not self.every_epoch and not (trainer.stop or trainer.epoch + 1 == trainer.epochs):
            return
        model = trainer.ema.model
        if (
            trainer.is_best or not self.every_epoch or not self.best.exists()
        ):  # the only one written is the best there is
            self.save(self.best, model, **self._fields)
        if self.period > 0 and (trainer.epoch + 1) % self.period == 0:
            self.save(self.last.with_name(f"epoch{trainer.epoch}.pt"), model, **self._fields)
        self.save(self.last, model, train_state=trainer.state_dict(), **self._fields)

    def on_fit_end(self, trainer: TrainerState) -> None:
        """A finished run is not resumed: strip `last.pt` to what is deployed."""
        if self._fields:
            self.save(self.last, trainer.ema.model, **self._fields)

    def state_dict(self) -> dict[str, Any]:
        """What the last checkpoint was called, so that a run killed before stripping can still
        finish.
        """
        return {"fields": self._fields}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take it back."""
        self._fields = state["fields"]


class GracefulStop(Hook):
    """Ends the program on SIGINT (exit code 130) and SIGTERM (143) and says how to go on.

    Use it as a context.

    The signal is raised where it arrives, so that nothing is waited for; should library code
    swallow that, the next batch raises it again.
    """

    def __init__(self, advice: Callable[[], str]):
        self.advice = advice
        self._signal: int | None = None

    def __enter__(self) -> "GracefulStop":
        self._pid = os.getpid()
        self._previous = {
            number: signal.signal(number, self._stop) for number in (signal.SIGINT, signal.SIGTERM)
        }
        self._unraisable, sys.unraisablehook = sys.unraisablehook, self._swallowed
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        sys.unraisablehook = self._unraisable
        if self._signal is not None and kind is not None:
            LOGGER.info(f"\n{signal.Signals(self._signal).name}: {self.advice()}")
            raise SystemExit(128 + self._signal) from None  # whatever else failed on the way out

    def on_batch_end(self, trainer: TrainerState) -> None:
        """Raise again what was swallowed."""
        if self._signal is not None:
            self._stop(self._signal, None)

    def _swallowed(self, found: "sys.UnraisableHookArgs") -> None:
        """A signal that arrives in a finalizer cannot end the program there; Python would print a
        traceback of it.
        """
        if not (self._signal is not None and found.exc_type is SystemExit):
            self._unraisable(found)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:
            os._exit(
                128 + number
                # a data worker, which inherited the handler: it goes without a word, the main
                # process speaks
            )
        self._signal = number
        # A signal to the whole group ends the data workers too, which is no failure. Not SIG_DFL:
        # of a SIGCHLD that waits for its handler then, Python would print a traceback ("ignored due
        # to race condition").
        signal.signal(signal.SIGCHLD, lambda *_: None)
        raise SystemExit(128 + number)
