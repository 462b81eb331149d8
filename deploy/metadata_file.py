"""Metadata in a file of their own, for formats that are folders."""

from pathlib import Path

from deploy.metadata import Metadata
from utils.config import load_yaml, save_yaml
from utils.errors import UserError

METADATA_FILE = "metadata.yaml"


def write_metadata(metadata: Metadata, folder: Path) -> None:
    """Write `metadata.yaml` into an exported folder, every value as JSON."""
    save_yaml(dict(metadata.to_texts()), folder / METADATA_FILE)


def read_metadata(folder: Path) -> Metadata:
    """Return the metadata of an exported folder.

    Raises:
        UserError: There is no such folder, or its metadata are missing or damaged.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    file = folder / METADATA_FILE
    if not file.exists():
        raise UserError(f"{file}: no such file; export.py writes it beside the graph")
    texts = {str(key): value for key, value in load_yaml(file).items() if isinstance(value, str)}
    return Metadata.from_texts(texts, str(file))
