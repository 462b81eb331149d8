"""TensorBoard's event files, which a run can do without."""

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from utils.files import refusal
from utils.log import LOGGER


class EventFile:
    """Writer of TensorBoard's events that gives up, with a line, where the disk refuses them.

    TensorBoard writes in a thread of its own, whose error would be printed as a traceback.
    """

    def __init__(self, folder: Path, epoch: int):
        """Open an event file in `folder`; events of an earlier run from `epoch` on are hidden.

        Raises:
            ImportError: TensorBoard is not installed.
        """
        from torch.utils.tensorboard import SummaryWriter

        self.folder = folder
        self._hook, threading.excepthook = threading.excepthook, self._thread_failed
        self._writer: Any = None
        try:
            self._writer = SummaryWriter(str(folder), purge_step=epoch)
        except OSError as error:
            self._give_up(error)

    def add(
        self, epoch: int, scalars: Mapping[str, float], histograms: Mapping[str, Tensor]
    ) -> None:
        """Add the values of an epoch by name."""
        if self._writer is None:
            return
        try:
            for name, value in scalars.items():
                self._writer.add_scalar(name, value, epoch)
            for name, values in histograms.items():
                self._writer.add_histogram(name, values, epoch)
            self._writer.flush()
        except OSError as error:
            self._give_up(error)

    def close(self) -> None:
        """Close the file."""
        writer, self._writer = self._writer, None
        try:
            if writer is not None:
                writer.close()
        except OSError as error:
            self._give_up(error)
        finally:
            threading.excepthook = self._hook

    def _give_up(self, error: OSError) -> None:
        """Write no more events, and say so."""
        self._writer = None
        LOGGER.warning(
            f"{self.folder}: no TensorBoard events from now on: {refusal(error)}; the run goes on"
        )

    def _thread_failed(self, failure: threading.ExceptHookArgs) -> None:
        """Leave an error of the disk in TensorBoard's thread to `add`, where it is raised again."""
        ours = type(failure.thread).__module__.startswith("tensorboard.")
        if not (ours and isinstance(failure.exc_value, OSError)):
            self._hook(failure)
