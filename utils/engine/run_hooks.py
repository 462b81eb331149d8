"""The hooks of every run.

Progress bar, results.csv, TensorBoard, early stopping, checkpoints and interrupts.
"""

import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from tqdm import tqdm

from utils.engine.device import gpu_memory
from utils.engine.hooks import Hook, TrainerState
from utils.engine.precision import all_finite
from utils.event_file import EventFile
from utils.files import dispensable, write_csv
from utils.log import LOGGER, log_to_file

DETECTION_LOSSES = ("box", "obj", "cls")
COLUMNS = (
    "epoch",
    *(f"train/{name}_loss" for name in DETECTION_LOSSES),
    *(f"metrics/{name}" for name in ("precision", "recall", "mAP_0.5", "mAP_0.5:0.95")),
    *(f"val/{name}_loss" for name in DETECTION_LOSSES),
    *(f"x/lr{i}" for i in range(3)),
)
"""The columns that users of YOLOv5 read; columns of tasks and hooks come after these."""


def users_columns(row: dict[str, float]) -> dict[str, float]:
    """Return a trainer's row under the names that users know, in the order of `COLUMNS`.

    The detection losses are called `train/box_loss` and so on.
    """
    named = {}
    for name, value in row.items():
        is_loss = name.partition("/")[2] in DETECTION_LOSSES
        named[f"{name}_loss" if is_loss else name] = value
    return {name: named[name] for name in COLUMNS if name in named} | named


class ProgressBar(Hook):
    """YOLOv5's header and a tqdm line for each epoch.

    Losses are read from the device only every `every` batches.
    """

    main_only = True

    def __init__(self, every: int = 10):
        self.every = every
        self._bar: tqdm | None = None

    def on_batch_end(self, trainer: TrainerState) -> None:
        """Print the header at the first batch, then refresh the mean losses now and then."""
        total = len(trainer.loader)
        last = trainer.batch + 1 == total
        if trainer.batch == 0:
            names = ["Epoch", "GPU_mem", *trainer.parts, "Instances", "Size"]
            LOGGER.info("\n" + _columns(names))
            self._bar = tqdm(
                total=total, bar_format="{l_bar}{bar:10}{r_bar}", file=sys.stdout, mininterval=0.5
            )
        assert self._bar is not None
        if trainer.batch % self.every == 0 or last:
            self._bar.set_description_str(_columns(_progress(trainer)), refresh=False)
        self._bar.update(1)
        if last:
            self._bar.close()
            log_to_file(_columns(_progress(trainer)))


def _columns(words: Sequence[str]) -> str:
    return "".join(f"{word:>11}" for word in words)


def _progress(trainer: TrainerState) -> list[str]:
    """Return the fields of the progress bar, in the order of its header."""
    epoch = f"{trainer.epoch}/{trainer.epochs - 1}"
    losses = [f"{value:.4g}" for value in trainer.mean_parts().values()]
    instances, size = str(len(trainer.data.targets)), str(trainer.images.shape[-1])
    return [epoch, gpu_memory(trainer.device), *losses, instances, size]


class ResultsCsv(Hook):
    """Writer of `results.csv`.

    The file is written anew each epoch from the history, so that a resumed run continues after its
    checkpoint.
    """

    main_only = True

    def __init__(self, path: Path):
        self.path = path

    def on_epoch_end(self, trainer: TrainerState) -> None:
        """Write a line for each epoch; a cell is empty where the epoch has no such value."""
        rows = [users_columns(row) for row in trainer.history]
        names = list(dict.fromkeys([*COLUMNS, *(name for row in rows for name in row)]))
        cells = [[_cell(row[name]) if name in row else "" for name in names] for row in rows]
        with dispensable(self.path):  # the history is in the checkpoint too
            write_csv(self.path, names, cells)


def _cell(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.6g}"


class TensorBoard(Hook):
    """Writer of the values of `results.csv` as TensorBoard scalars, where that is installed."""

    main_only = True

    def __init__(self, folder: Path):
        self.folder = folder
        self._file: EventFile | None = None

    def on_fit_start(self, trainer: TrainerState) -> None:
        """Open the event file, or log that TensorBoard is not installed."""
        try:
            self._file = EventFile(self.folder, trainer.epoch)
        except ImportError:
            LOGGER.info(
                "TensorBoard is not installed: no event files (pip install tensorboard would write"
                " them)"
            )
            return
        LOGGER.info(f"TensorBoard: tensorboard --logdir {self.folder.parent}")

    def on_epoch_end(self, trainer: TrainerState) -> None:
        """Add a point of this epoch for every column."""
        if self._file is not None:
            self._file.add(trainer.epoch, users_columns(trainer.row), {})

    def on_fit_end(self, trainer: TrainerState) -> None:
        """Close the event file."""
        if self._file is not None:
            self._file.close()


class EarlyStopping(Hook):
    """Stop training after `patience` epochs without a better fitness; 0: never."""

    main_only = True

    def __init__(self, patience: int):
        self.patience = patience
        self.best_epoch = 0

    def on_epoch_end(self, trainer: TrainerState) -> None:
        """Compare this epoch with the best one up to now; stop where that is too long ago."""
        if trainer.is_best:
            self.best_epoch = trainer.epoch
        if self.patience > 0 and trainer.epoch - self.best_epoch >= self.patience:
            trainer.stop = True
            LOGGER.info(
                f"Stopped early: no better fitness for {self.patience} epochs, the best was epoch"
                f" {self.best_epoch} (--patience 0 would train on)"
            )

    def state_dict(self) -> dict[str, Any]:
        """Return the epoch of the best fitness."""
        return {"best_epoch": self.best_epoch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the epoch of the best fitness."""
        self.best_epoch = state["best_epoch"]


class Checkpoints(Hook):
    """Writer of `last.pt`, `best.pt` and `epochN.pt`.

    `last.pt` is written every epoch with all that resuming needs, `best.pt` without that, and
    `epochN.pt` every `period` epochs. Weights that are not finite are never written. Give this hook
    last: changes that other hooks make at the end of an epoch belong into the checkpoint.

    Args:
        folder: Folder of the checkpoints.
        save: Writes a checkpoint atomically: `save(path, model, **fields)`.
        period: Epochs between two `epochN.pt`; 0 or less: none.
        every_epoch: Whether every epoch is written; otherwise only the last one of the run.
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
        """Write the checkpoints that are due, `best.pt` before `last.pt`.

        Where the program dies between the two, the resumed epoch writes the best again.
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
        ends = trainer.stop or trainer.epoch + 1 == trainer.epochs
        if not (self.every_epoch or ends):
            return
        model = trainer.ema.model
        # The only epoch that is written is the best there is.
        if trainer.is_best or not self.every_epoch or not self.best.exists():
            self.save(self.best, model, **self._fields)
        if self.period > 0 and (trainer.epoch + 1) % self.period == 0:
            self.save(self.last.with_name(f"epoch{trainer.epoch}.pt"), model, **self._fields)
        self.save(self.last, model, train_state=trainer.state_dict(), **self._fields)

    def on_fit_end(self, trainer: TrainerState) -> None:
        """Strip `last.pt` to what is deployed: a finished run is not resumed."""
        if self._fields:
            self.save(self.last, trainer.ema.model, **self._fields)

    def state_dict(self) -> dict[str, Any]:
        """Return the fields of the last checkpoint.

        A run that was killed after its last epoch, before stripping, is resumed and needs them.
        """
        return {"fields": self._fields}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the fields of the last checkpoint."""
        self._fields = state["fields"]


class GracefulStop(Hook):
    """Context that ends the program on SIGINT (exit code 130) and SIGTERM (143).

    On the way out `advice()`, how to go on with the run, is logged. The signal raises SystemExit
    where it arrives, so that the program waits for nothing. Should library code swallow the
    exception, the next batch raises it again.
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
        """Raise again for a signal whose exception was swallowed."""
        if self._signal is not None:
            self._stop(self._signal, None)

    def _swallowed(self, found: "sys.UnraisableHookArgs") -> None:
        """Keep Python from printing a traceback of a signal that arrived in a finalizer.

        No exception can end the program there; the next batch raises it again.
        """
        if not (self._signal is not None and found.exc_type is SystemExit):
            self._unraisable(found)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal: end a data worker silently, raise SystemExit in the main process."""
        if os.getpid() != self._pid:  # a data worker inherits the handler
            os._exit(128 + number)
        self._signal = number
        # A signal to the whole group ends the data workers too, which is no failure. The handler is
        # not SIG_DFL: Python would print a traceback ("ignored due to race condition") of a SIGCHLD
        # that still waits for its handler.
        signal.signal(signal.SIGCHLD, lambda *_: None)
        raise SystemExit(128 + number)
