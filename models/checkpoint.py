"""Write and read checkpoints: plain data and tensors, written atomically, with pruned widths.

No other file writes or reads weights. See docs/checkpoint_format.md.
"""

import pickle
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any, cast

import torch
from torch import Tensor, nn

from models.archive import ARCHIVE_ERRORS, is_archive, one_line, opened
from models.importer import is_official, read_official
from models.lineage import ancestors_from
from models.registry import awaiting_weights
from models.schema import check_checkpoint
from models.widths import set_widths, widths_of
from models.yolo import Model, build_model
from utils.errors import UserError, brief
from utils.files import atomic_open, why_not_regular
from utils.options.meta import MOST_PIXELS

FORMAT = 1
DEFAULTS: dict[str, Any] = {"hyp": {}, "args": {}, "epoch": -1, "best_fitness": 0.0, "history": []}
DAMAGED = (
    RuntimeError,
    LookupError,
    TypeError,
    ValueError,
    AttributeError,
    AssertionError,
    ArithmeticError,
)
"""Errors that a damaged file raises in torch's reader, or wherever its values are used."""
REQUIRED = ("format", "model_cfg", "structure", "state_dict", "names", "stride", "anchors")


def save_checkpoint(path: Path | str, model: Model, **fields: Any) -> None:
    """Write a model and `fields` to one file.

    The file appears whole or not at all: an earlier one stays valid whatever happens.

    Args:
        path: File to write.
        model: Model in its training form.
        fields: hyp, args, epoch, best_fitness, history, train_state ...: plain data and tensors.

    Raises:
        UserError: The model is fused, or the disk refuses.
        TypeError: A field holds something else than plain data and tensors.
    """
    if model.deployed:
        raise UserError(
            f"{path}: a fused model has lost its training form; save the model that fuse() was"
            " called on"
        )
    _check_plain(fields, "fields")
    changed = {
        name: widths
        for name, widths in widths_of(model).items()
        if model.built_widths.get(name) != widths
    }
    content = {
        **DEFAULTS,
        **fields,
        "format": FORMAT,
        "model_cfg": model.cfg,
        "structure": changed,
        "state_dict": {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()},
        "names": list(model.names),
        **model.head.state(),
    }
    if model.ancestors:
        content["ancestors"] = [ancestor.stored() for ancestor in model.ancestors]
    write_atomically(content, Path(path))


def save_model(model: Model, path: Path | str, **fields: Any) -> None:
    """Write a model by `save_checkpoint`; the model is the first argument."""
    save_checkpoint(path, model, **fields)


def write_atomically(content: Any, path: Path) -> None:
    """Write the whole content by `torch.save`, or nothing; `UserError` if the disk refuses."""
    with atomic_open(path) as file:
        sink = _Sink(file)
        try:
            torch.save(content, cast(IO[bytes], sink))
        except RuntimeError as error:
            if sink.error is not None:
                raise sink.error from error
            reason = str(error).splitlines()[0]
            raise UserError(
                f"{path}: cannot be written: {reason}; an earlier file is untouched"
            ) from error


class _Sink:
    """File that `torch.save` writes to, which remembers why a write failed.

    The zip writer of torch turns a full disk into a RuntimeError that does not say so.
    """

    def __init__(self, file: IO[bytes]):
        self._file = file
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        """Write bytes; keep the error of a disk that refuses them."""
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        """Do nothing: the file is flushed where it is closed."""


def _check_plain(value: Any, place: str) -> None:
    """Refuse what could be written but not read again: a caller's bug, so a TypeError."""
    if type(value) in (dict, OrderedDict):
        for key, item in value.items():
            _check_plain(item, f"{place}[{key!r}]")
    elif type(value) in (list, tuple):
        for index, item in enumerate(value):
            _check_plain(item, f"{place}[{index}]")
    elif not (
        value is None or type(value) in (bool, int, float, str, bytes) or isinstance(value, Tensor)
    ):
        raise TypeError(
            f"checkpoint {place} is a {type(value).__name__}; only plain data and tensors can be"
            " read again"
        )


def load_checkpoint(path: Path | str, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read and check a checkpoint of ours, which holds only plain data and tensors.

    Raises:
        UserError: The file is missing, damaged, or no checkpoint of ours.
    """
    path = Path(path)
    wrong = f"{path}: this is no checkpoint of ours"
    if not is_archive(path):
        raise UserError(f"{path}: cannot be read, it is damaged or no checkpoint")
    with opened(path):
        pass  # the directory is sound
    try:
        content = torch.load(path, map_location=device, weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(
            f"{wrong}: it holds more than plain data and tensors, such as a whole model from"
            " torch.save(model); models.save_model(model, 'x.pt') writes a model of ours, pruned by"
            " whatever tool"
        ) from None
    except (*ARCHIVE_ERRORS, *DAMAGED) as error:
        raise UserError(
            f"{path}: cannot be read, it is damaged or no checkpoint: {one_line(error)}"
        ) from None
    if not isinstance(content, dict) or "format" not in content:
        raise UserError(f"{wrong}: it has no 'format'")
    if type(content["format"]) is not int or content["format"] != FORMAT:
        raise UserError(
            f"{path}: checkpoint format {brief(content['format'])}; this version reads format"
            f" {FORMAT}"
        )
    missing = [key for key in REQUIRED if key not in content]
    if missing:
        raise UserError(f"{wrong}: it has no '{missing[0]}'")
    try:
        check_checkpoint(content, path.stat().st_size)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return content


def model_from_checkpoint(checkpoint: Mapping[str, Any]) -> Model:
    """Build the model of a loaded checkpoint, in training mode.

    The model is built from the YAML in the checkpoint, set to its widths and loaded strictly.

    Raises:
        UserError: The weights do not fit the structure.
    """
    state: dict[str, Tensor] = checkpoint["state_dict"]
    try:
        with awaiting_weights():
            model = build_model(checkpoint["model_cfg"])
        set_widths(model, checkpoint["structure"])
        model.head.load_state(checkpoint)
        model.load_state_dict(state, strict=True)
        model.names = _names(checkpoint["names"], model.nc)
        model.ancestors = ancestors_from(checkpoint.get("ancestors", ()))
        model.imgsz = _training_size(checkpoint.get("args", {}).get("imgsz")) or model.imgsz
    except UserError:
        raise
    except DAMAGED as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"checkpoint: its weights do not fit its own structure: {reason}"
        ) from error
    require_finite(state)
    return model.to(next(iter(state.values())).device)


def require_finite(state: Mapping[str, Tensor]) -> None:
    """Refuse weights that are not numbers: their model finds nothing, and no training mends them.

    Raises:
        UserError: Names the first tensor.
    """
    floats = {name: tensor for name, tensor in state.items() if tensor.is_floating_point()}
    bad = [name for name, tensor in floats.items() if not tensor.isfinite().all()]
    if bad:
        raise UserError(
            f"{len(bad)} of its {len(floats)} tensors are not finite numbers (NaN or infinite), the"
            f" first is '{bad[0]}': the training that wrote it had diverged; take an earlier"
            " checkpoint"
        )


def _names(stored: Iterable[Any], nc: int) -> list[str]:
    """Return the stored class names; `UserError` where they are not `nc`."""
    names = [str(name) for name in stored]
    if len(names) != nc:
        raise UserError(f"checkpoint: {len(names)} names for a model of {nc} classes")
    return names


def _training_size(stored: Any) -> int:
    """Return the training size of stored options, 0 for none; a list holds it first."""
    size = stored[0] if isinstance(stored, list) else stored
    size = int(size or 0)
    if not 0 <= size <= MOST_PIXELS:
        raise UserError(f"checkpoint: args: imgsz: {size} is out of range (0 to {MOST_PIXELS})")
    return size


def load_model(path: Path | str, device: torch.device | str = "cpu") -> Model:
    """Load a model, in training form and mode, from our checkpoint or an official pickled `.pt`.

    Raises:
        UserError: The file is missing, damaged, or neither of the two.
    """
    path = Path(path)
    if reason := why_not_regular(path):
        raise UserError(f"{path}: {reason}")
    if is_official(path):
        return model_from_official(path).to(device)
    checkpoint = load_checkpoint(path, device)
    try:
        return model_from_checkpoint(checkpoint)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def model_from_official(path: Path | str) -> Model:
    """Build our model with the weights of an official checkpoint (EMA preferred), in float32.

    Raises:
        UserError: The weights do not fit the model that the file describes.
    """
    official = read_official(path)
    model = build_model(official.cfg, nc=official.nc)
    state = {k: v for k, v in official.state_dict.items() if k.rsplit(".", 1)[-1] != "anchor_grid"}
    own = {k: v for k, v in model.state_dict().items() if k.rsplit(".", 1)[-1] != "anchor_grid"}
    odd = sorted(set(state) ^ set(own)) or [k for k in own if state[k].shape != own[k].shape]
    if set(state) == set(own) and odd:
        narrower = sum(state[k].numel() < own[k].numel() for k in odd)
        raise UserError(
            f"{path}: {len(odd)} of its tensors have other sizes than its YAML asks for, {narrower}"
            " are smaller: it was pruned by another tool; load the unpruned file with"
            " models.load_model, prune that, and save it by models.save_model(model, 'pruned.pt')"
        )
    if odd:
        raise UserError(
            f"{path}: its weights do not fit the model that it describes; the first that differs is"
            f" '{odd[0]}'"
        )
    try:
        require_finite(state)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    model.load_state_dict(state, strict=False)
    model.head.refresh()
    model.names = official.names
    return model


def transfer_weights(
    model: nn.Module,
    state_dict: Mapping[str, Tensor],
    exclude: Iterable[str] = ("anchors", "anchor_grid"),
) -> tuple[int, int]:
    """Copy the weights that agree in name and shape with entries of the model.

    Names that contain a word of `exclude` are left out.

    Returns:
        Number of copied entries and of all entries, as in `Transferred 342/349 items`.
    """
    words = tuple(exclude)
    own = model.state_dict()
    fitting = {
        name: tensor
        for name, tensor in state_dict.items()
        if name in own
        and own[name].shape == tensor.shape
        and not any(word in name for word in words)
    }
    model.load_state_dict(fitting, strict=False)
    return len(fitting), len(own)
