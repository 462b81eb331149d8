"""Metadata in a file of their own, for formats that are folders, with the digests of the others."""

import hashlib
from pathlib import Path

from deploy.metadata import Metadata
from utils.config import load_yaml, save_yaml
from utils.errors import UserError
from utils.files import why_not_regular

METADATA_FILE = "metadata.yaml"
DIGESTS = "sha256"


def write_metadata(metadata: Metadata, folder: Path) -> None:
    """Write `metadata.yaml` into an exported folder whose other files are complete.

    Every value is JSON, beside them the SHA-256 of each file: libraries that read half a file of
    weights may end the process instead of raising an error.
    """
    digests = {file.name: _digest(file) for file in sorted(folder.iterdir())}
    save_yaml({**metadata.to_texts(), DIGESTS: digests}, folder / METADATA_FILE)


def read_metadata(folder: Path) -> Metadata:
    """Return the metadata of an exported folder, after checking that its files are whole.

    Raises:
        UserError: There is no such folder, or a file of it is missing or not as it was written.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    file = folder / METADATA_FILE
    if not file.exists():
        raise UserError(f"{file}: no such file; export.py writes it beside the graph")
    content = load_yaml(file)
    texts = {str(key): value for key, value in content.items() if isinstance(value, str)}
    metadata = Metadata.from_texts(texts, str(file))
    digests = content.get(DIGESTS)
    if not isinstance(digests, dict) or not digests:
        raise UserError(f"{file}: does not list the files of the folder; export it again")
    for name, digest in digests.items():
        _check(folder / Path(str(name)).name, str(digest))
    return metadata


def foreign_entries(folder: Path) -> list[str]:
    """Return the names in a folder that export.py did not write there, in order.

    A folder without `metadata.yaml` of export.py is foreign with all that it holds. Damaged files
    are no strangers: exporting again mends them.
    """
    names = sorted(entry.name for entry in folder.iterdir())
    file = folder / METADATA_FILE
    if not names or why_not_regular(file):
        return names
    try:
        digests = load_yaml(file).get(DIGESTS)
    except UserError:
        return names
    if not isinstance(digests, dict):
        return names
    ours = {METADATA_FILE, *map(str, digests)}
    return [name for name in names if name not in ours or (folder / name).is_dir()]


def _check(file: Path, digest: str) -> None:
    """Raise `UserError` where a file is missing or not the one that was written."""
    if reason := why_not_regular(file):
        raise UserError(f"{file}: {reason}; the exported folder is not whole")
    if _digest(file) != digest:
        raise UserError(
            f"{file}: is not what export.py wrote: half a file, or changed; export it again"
        )


def _digest(file: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    return hashlib.sha256(file.read_bytes()).hexdigest()
