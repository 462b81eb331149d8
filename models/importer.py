"""Read official YOLOv5 and YOLOv7 `.pt` files, which are pickled modules, without running them.

A restricted unpickler turns every class of these projects into an inert `Record`, rebuilds tensors
with our own code, and refuses everything else: no import, no call of a foreign function, no
attribute access.

`torch.load(weights_only=True)` with stubs in `torch.serialization.safe_globals` would be shorter,
but is less safe for files that torch wrote before 1.6: torch reserves as much memory as the file
claims (8 GB for a file of 300 bytes), and gives tensors whose data the file lacks whatever the
memory held before. `get_unsafe_globals_in_checkpoint` cannot list the classes of such files, and
`safe_globals` changes a list of the whole process, which other threads use at the same time.
"""

import io
import math
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from models.archive import ARCHIVE_ERRORS, is_archive, one_line, opened
from utils.errors import UserError

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # first pickle of files that torch wrote before 1.6
INERT_MODULES = (
    "models",
    "utils",
    "torch.nn",
    "numpy",
    "pathlib",
    "datetime",
    "argparse",
)  # and what is below them
MOST_VALUES = 100_000  # of a model's YAML
MOST_MODULES = 100_000
STORAGE_TYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


class Record:
    """Attributes of a foreign object, without its behaviour."""

    def __new__(cls, *args: Any, **kwargs: Any) -> "Record":  # noqa: D102 (object's own takes no arguments)
        return object.__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any):
        """Take any arguments and keep none."""

    def __setstate__(self, state: Any) -> None:
        """Take a plain dict as attributes; keep anything else aside."""
        if isinstance(state, dict):
            self.__dict__.update(state)
        else:
            self.__dict__["state"] = state


@dataclass(frozen=True)
class OfficialCheckpoint:
    """Content of an official file that our models use."""

    cfg: dict[str, Any]  # the model YAML, as parsed
    state_dict: dict[str, Tensor]  # by official name; floating point tensors in float32
    names: list[str]
    nc: int


PICKLED_HERE = (
    "this is a whole model, pickled by torch.save(model), as after Torch-Pruning; save it where it"
    " was made by models.save_model(model, 'pruned.pt'), which keeps the widths of its layers"
)


def is_official(path: Path) -> bool:
    """Return whether the file pickles a module of the official projects, by its bytes alone."""
    try:
        data = _pickle_bytes(path)
    except (UserError, *ARCHIVE_ERRORS):
        return False
    return (
        b"cmodels.yolo\n" in data or b"\x8c\x0bmodels.yolo" in data
    )  # a class there, as protocols 2 and 4 write it


def read_official(path: Path | str) -> OfficialCheckpoint:
    """Read an official checkpoint; prefer its EMA weights.

    Raises:
        UserError: The file is no official checkpoint, or holds anything unexpected.
    """
    path = Path(path)
    try:
        content = _read_zip(path) if is_archive(path) else _read_legacy(path)
        model = _model_of(content)
        if "yaml" not in model.__dict__ and "cfg" in model.__dict__:
            raise UserError(PICKLED_HERE)
        cfg = _plain(model.__dict__["yaml"])
        state = {
            n: t.float() if t.is_floating_point() else t for n, t in _tensors(model, "").items()
        }
        names = model.__dict__.get("names", [])
        names = (
            [str(names[key]) for key in sorted(names)]
            if isinstance(names, Mapping)
            else [str(n) for n in names]
        )
        nc = int(cfg.get("nc", len(names)))
    except UserError as error:
        raise UserError(f"{path}: {str(error).removeprefix(f'{path}: ')}") from None
    except (OSError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: cannot be read: {one_line(error)}") from None
    except (
        *(pickle.UnpicklingError, struct.error, EOFError, MemoryError),
        *(RecursionError, ArithmeticError),
    ) as error:
        raise UserError(f"{path}: damaged pickle: {one_line(error)}") from None
    except ARCHIVE_ERRORS as error:
        raise UserError(
            f"{path}: no YOLOv5 or YOLOv7 checkpoint: {type(error).__name__}: {one_line(error)}"
        ) from None
    return OfficialCheckpoint(
        cfg, state, names if len(names) == nc else [str(i) for i in range(nc)], nc
    )


class _Unpickler(pickle._Unpickler):  # pyright: ignore[reportAttributeAccessIssue]
    """Unpickler of containers, tensors and inert records, which refuses other globals by name.

    The one in Python: that in C reserves memory for whatever index a pickle gives its memo.
    """

    def __init__(self, file: Any, storage: Callable[[str, torch.dtype, int], Tensor]):
        super().__init__(file, encoding="utf-8")
        self.storage = storage

    def find_class(self, module: str, name: str) -> Any:
        """Return the stand-in for a global; raise `UserError` where there is none."""
        known = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
            ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
            ("_codecs", "encode"): _encode,
            ("builtins", "set"): set,
            ("__builtin__", "set"): set,
            ("torch", "Size"): tuple,
        }
        if (module, name) in known:
            return known[module, name]
        if module == "torch" and name in STORAGE_TYPES:
            return STORAGE_TYPES[name]
        if (module, name) == ("torch", "device") or f"{module}.".startswith(
            tuple(f"{m}." for m in INERT_MODULES)
        ):
            return type(name.rpartition(".")[2], (Record,), {})
        raise UserError(
            f"refused: its pickle asks for '{module}.{name}', which no checkpoint needs"
        )

    def persistent_load(self, pid: Any) -> Tensor:
        """Return the flat tensor of ("storage", type, key, location, elements[, view])."""
        kind, dtype, key, _, size = pid[:5]
        if kind != "storage" or not isinstance(dtype, torch.dtype) or type(size) is not int:
            raise UserError(f"refused: unknown reference {kind!r} in its pickle")
        return self.storage(str(key), dtype, size)


def _rebuild_tensor(
    storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any
) -> Tensor:
    """Return the view that the pickle describes; torch checks that it stays inside the storage.

    Raises:
        UserError: The strides repeat values, so that a copy would be larger than the storage.
    """
    if math.prod(size) > storage.numel():
        raise UserError("damaged: a tensor claims to be larger than its data")
    return storage.as_strided(tuple(size), tuple(stride), offset)


def _rebuild_parameter(data: Tensor, *_: Any) -> Tensor:
    return data


def _encode(text: str, encoding: str) -> bytes:
    """Return the bytes that Python 2 protocols write as text."""
    return text.encode("latin1" if encoding == "latin1" else "utf-8")


def _pickle_bytes(path: Path) -> bytes:
    """Return the `data.pkl` of a zipped checkpoint, or the first 64 KiB of an old one."""
    if not is_archive(path):
        with path.open("rb") as file:
            return file.read(65536)
    with opened(path) as archive:
        name = next((n for n in archive.namelist() if n.endswith("data.pkl")), None)
        return archive.read(name) if name else b""


def _read_zip(path: Path) -> Any:
    with opened(path) as archive:
        name = next((n for n in archive.namelist() if n.endswith("data.pkl")), None)
        if name is None:
            raise UserError("a zip without data.pkl is no checkpoint")
        folder = name.removesuffix("data.pkl")
        cache: dict[str, Tensor] = {}

        def storage(key: str, dtype: torch.dtype, size: int) -> Tensor:
            if key not in cache:
                data = bytearray(archive.read(f"{folder}data/{key}"))
                cache[key] = (
                    torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
                )
            return cache[key]

        return _Unpickler(io.BytesIO(archive.read(name)), storage).load()


def _read_legacy(path: Path) -> Any:
    """Return the object of a file that torch wrote before 1.6.

    Such a file holds pickles of a magic number, a version, the system, the object and the keys of
    its storages, then the raw storages.
    """
    total = path.stat().st_size
    cache: dict[str, Tensor] = {}

    def storage(key: str, dtype: torch.dtype, size: int) -> Tensor:
        if not 0 <= size * dtype.itemsize <= total:
            raise UserError("damaged: a tensor is larger than the file")
        return cache.setdefault(key, torch.zeros(size, dtype=dtype))

    with path.open("rb") as file:

        def load() -> Any:
            return _Unpickler(file, storage).load()

        if load() != LEGACY_MAGIC:
            raise UserError("neither a zipped nor an old torch checkpoint")
        for _ in ("protocol version", "system information"):
            load()
        content = load()
        keys = [str(key) for key in load()]
        if missing := cache.keys() - keys:
            raise UserError(f"damaged: the file has no data for {len(missing)} of its storages")
        for key in keys:
            _fill(cache[key], file)
    return content


def _fill(storage: Tensor, file: BinaryIO) -> None:
    """Read a raw storage: its number of elements as int64, then the elements."""
    (size,) = struct.unpack("<q", file.read(8))
    if size != storage.numel():
        raise UserError("damaged: a storage has another size than its tensors say")
    if size:
        storage.copy_(
            torch.frombuffer(
                bytearray(file.read(size * storage.dtype.itemsize)), dtype=storage.dtype
            )
        )


def _model_of(content: Any) -> Record:
    """Return the pickled module: `ema` where there is one, else `model`, else the object itself."""
    if isinstance(content, dict):
        content = content.get("ema") or content.get("model")
    if not isinstance(content, Record) or "_modules" not in content.__dict__:
        raise UserError("no model is in this file")
    return content


def _tensors(module: Record, prefix: str, left: Iterator[int] | None = None) -> dict[str, Tensor]:
    """Return the state dict of an inert module: tensors by name, those of its children too.

    Args:
        module: The module.
        prefix: Put in front of every name.
        left: One number for each module that may still come, shared ones counted each time.

    Raises:
        UserError: There are too many modules.
    """
    left = iter(range(MOST_MODULES)) if left is None else left
    if next(left, None) is None:
        raise UserError(f"damaged: more than {MOST_MODULES} modules")
    found: dict[str, Tensor] = {}
    hidden = module.__dict__.get("_non_persistent_buffers_set", ())
    for table in ("_parameters", "_buffers"):
        for name, value in module.__dict__.get(table, {}).items():
            if isinstance(value, Tensor) and name not in hidden:
                found[prefix + name] = value
    for name, child in module.__dict__.get("_modules", {}).items():
        if isinstance(child, Record):
            found |= _tensors(child, f"{prefix}{name}.", left)
    return found


def _plain(value: Any, left: Iterator[int] | None = None) -> Any:
    """Return the YAML of a pickled model as mappings, lists and scalars.

    Args:
        value: The YAML.
        left: One number for each value that it may still have, shared ones counted each time.

    Raises:
        UserError: The YAML holds anything else, or too much.
    """
    left = iter(range(MOST_VALUES)) if left is None else left
    if next(left, None) is None:
        raise UserError(f"the model's YAML holds more than {MOST_VALUES} values")
    if isinstance(value, Mapping):
        return {str(k): _plain(v, left) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v, left) for v in value]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    raise UserError("the model's YAML holds more than plain values")
