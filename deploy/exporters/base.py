"""What the program asks of an export format.

A format is one file: a subclass of `Exporter` in `EXPORTERS`. It writes a file, and reads the
widths of the convolutions from the file again. The runtime of the same suffix runs the file.
"""

from abc import ABC, abstractmethod
from collections import Counter
from pathlib import Path
from typing import ClassVar

from deploy.settings import ExportSettings
from models import Model
from utils.errors import UserError
from utils.registry import Registry

EXPORTERS = Registry("export format")
Widths = Counter[tuple[int, int]]
"""How many convolutions have each (outputs, weights of an output)."""


class Exporter(ABC):
    """Write a deployed model in one format."""

    name: ClassVar[str]
    suffix: ClassVar[str]
    """End of the name of the file, as `.onnx`, or of the folder, as `_openvino_model`."""
    libraries: ClassVar[tuple[str, ...]] = ()
    """Modules that writing and running need: keys of `deploy.libraries.FLOORS`."""
    takes: ClassVar[frozenset[str]] = frozenset({"dynamic", "half", "end2end"})
    """Settings that the format offers; `opset` and `simplify` where it comes from an ONNX graph."""

    @classmethod
    def makes_folder(cls) -> bool:
        """Return whether the format is a folder, not a file."""
        return not cls.suffix.startswith(".")

    def check(self, settings: ExportSettings) -> None:
        """Refuse what the format cannot do.

        Raises:
            UserError: Names the option.
        """
        asked = {
            "dynamic": settings.dynamic,
            "half": settings.half,
            "end2end": settings.end2end is not None,
        }
        for option, wanted in asked.items():
            if wanted and option not in self.takes:
                raise UserError(
                    f"--{option}: the format {self.name} cannot do it; {able(option)} can"
                )

    @abstractmethod
    def write(self, model: Model, path: Path, settings: ExportSettings) -> None:
        """Write a deployed model under `path`, a file or a folder that is made.

        Raises:
            UserError: The format cannot express the model.
        """

    @abstractmethod
    def widths(self, path: Path) -> Widths:
        """Return the widths of the convolutions that are in a file."""


def able(option: str) -> str:
    """Return the formats that take a setting, in words: `onnx and openvino`."""
    return " and ".join(name for name in EXPORTERS if option in EXPORTERS[name].takes)
