"""Official files through the restricted unpickler, and what it refuses."""

import io
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from models import build_model, load_model
from models.checkpoint import model_from_official
from models.importer import LEGACY_MAGIC, is_official, read_official
from utils.errors import UserError

DEMO = Path(__file__).resolve().parent.parent / "data" / "demo"


@pytest.fixture(scope="module")
def official(shared: Path) -> Path:
    return shared / "weights" / "yolov5n.pt"


def test_official_weights_fill_our_yolov5n(official: Path) -> None:
    content = read_official(official)
    own = build_model("yolov5n").state_dict()
    assert content.nc == 80
    assert content.names[:3] == ["person", "bicycle", "car"]
    assert {k: v.shape for k, v in content.state_dict.items()} == {
        k: v.shape for k, v in own.items()
    }
    assert all(v.dtype == own[k].dtype for k, v in content.state_dict.items())
    model = load_model(official)
    assert all(torch.equal(v, content.state_dict[k]) for k, v in model.state_dict().items())
    assert torch.isfinite(model.eval()(torch.rand(1, 3, 64, 64))[0]).all()


@pytest.mark.parametrize(("photo", "name"), [("astronaut.jpg", "person"), ("chelsea.jpg", "cat")])
def test_official_weights_see_what_is_there(photo: str, name: str, official: Path) -> None:
    image = cv2.imread(str(DEMO / photo))
    assert image is not None
    scale = 320 / max(image.shape[:2])
    image = cv2.resize(image, (round(image.shape[1] * scale), round(image.shape[0] * scale)))
    canvas = np.full((320, 320, 3), 114, np.uint8)
    canvas[: image.shape[0], : image.shape[1]] = image
    x = torch.from_numpy(canvas[..., ::-1].copy()).permute(2, 0, 1)[None] / 255
    model = load_model(official)
    with torch.no_grad():
        boxes = model.fuse()(x)[0][0]
    scores = boxes[:, 4:5] * boxes[:, 5:]
    best = int(scores.max(0).values.argmax())
    assert model.names[best] == name
    assert scores.max() > 0.5


class _Pickled:
    """An object that pickles as a class of another name with the given state, as the official
    modules do.
    """

    def __init__(self, module: str, name: str, state: dict[str, Any]):
        self.kind, self.state = (module, name), state


class _ByName:
    def __init__(self, module: str, name: str):
        self.text = f"c{module}\n{name}\n".encode()


class _Pickler(pickle._Pickler):  # the Python one: lets us write globals that do not exist here
    def __init__(self, file: Any, storages: list[Tensor]):
        super().__init__(file, 2)
        self.storages = storages

    def save(self, obj: Any, *args: Any, **kwargs: Any) -> None:
        if isinstance(obj, _ByName):
            self.write(obj.text)
        elif isinstance(obj, _Pickled):
            self.write(f"c{obj.kind[0]}\n{obj.kind[1]}\n".encode() + b")\x81")
            self.save(obj.state)
            self.write(b"b")
        elif isinstance(obj, Tensor):
            names = {
                torch.float16: "HalfStorage",
                torch.float32: "FloatStorage",
                torch.int64: "LongStorage",
            }
            self.storages.append(obj.contiguous())
            reference = (
                "storage",
                _ByName("torch", names[obj.dtype]),
                str(len(self.storages) - 1),
                "cpu",
                obj.numel(),
            )
            self.write(_ByName("torch._utils", "_rebuild_tensor_v2").text + b"((")
            for item in reference:
                self.save(item)
            self.write(b"tQ")
            for item in (0, tuple(obj.shape), obj.contiguous().stride(), False, OrderedDict()):
                self.save(item)
            self.write(b"tR")
        else:
            super().save(obj, *args, **kwargs)


def inert(state: dict[str, Tensor], cfg: dict[str, Any], names: Any) -> _Pickled:
    """A pickled official model with these tensors, in fp16 where they are floating point."""
    root: dict[str, Any] = {}
    for key, tensor in state.items():
        node = root
        *path, last = key.split(".")
        for part in path:
            node = node.setdefault(part, {})
        node[last] = tensor.half() if tensor.is_floating_point() else tensor

    def module(node: dict[str, Any], **more: Any) -> _Pickled:
        tensors = {k: v for k, v in node.items() if isinstance(v, Tensor)}
        buffers = {
            k: v for k, v in tensors.items() if "running" in k or "num_" in k or "anchor" in k
        }
        parameters = OrderedDict((k, v) for k, v in tensors.items() if k not in buffers)
        children = OrderedDict((k, module(v)) for k, v in node.items() if isinstance(v, dict))
        return _Pickled(
            "models.yolo",
            "Model",
            {"_parameters": parameters, "_buffers": buffers, "_modules": children, **more},
        )

    return module(root, yaml=cfg, names=names)


def zipped(path: Path, content: Any) -> Path:
    storages: list[Tensor] = []
    data = io.BytesIO()
    _Pickler(data, storages).dump(content)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", data.getvalue())
        for key, tensor in enumerate(storages):
            archive.writestr(f"archive/data/{key}", tensor.numpy().tobytes())
    return path


def legacy(path: Path, content: Any) -> Path:
    storages: list[Tensor] = []
    with path.open("wb") as file:
        for value in (LEGACY_MAGIC, 1001, {"little_endian": True}):
            pickle.dump(value, file, 2)
        _Pickler(file, storages).dump(content)
        pickle.dump([str(k) for k in range(len(storages))], file, 2)
        for tensor in storages:
            file.write(struct.pack("<q", tensor.numel()) + tensor.numpy().tobytes())
    return path


@pytest.mark.parametrize("write", [zipped, legacy])
def test_ema_wins_halves_become_floats_and_names_may_be_a_dict(write: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build_model("yolov7-tiny", nc=2)
    other = build_model("yolov7-tiny", nc=2)
    names = {1: "b", 0: "a"}
    content = {
        "model": inert(other.state_dict(), other.cfg, names),
        "ema": inert(model.state_dict(), model.cfg, names),
    }
    path = write(tmp_path / "official.pt", content)
    assert is_official(path)
    loaded = load_model(path)
    assert loaded.names == ["a", "b"]
    for key, tensor in loaded.state_dict().items():
        if "anchor" not in key:
            expected = model.state_dict()[key]
            assert torch.equal(
                tensor, expected.half().float() if expected.is_floating_point() else expected
            ), key


def test_model_counts_where_there_is_no_ema(tmp_path: Path) -> None:
    model = build_model("yolov5n", nc=2)
    path = zipped(
        tmp_path / "x.pt", {"ema": None, "model": inert(model.state_dict(), model.cfg, ["a", "b"])}
    )
    assert torch.equal(
        model_from_official(path).model[0].conv.weight, model.model[0].conv.weight.half().float()
    )


def test_weights_that_do_not_fit_are_named(tmp_path: Path) -> None:
    model = build_model("yolov5n", nc=2)
    state = dict(model.state_dict())
    del state["model.3.conv.weight"]
    path = zipped(tmp_path / "x.pt", {"model": inert(state, model.cfg, ["a", "b"])})
    with pytest.raises(UserError, match=r"the first that differs is 'model\.3\.conv\.weight'"):
        load_model(path)


class _Call:
    """Pickles as a call of a function with arguments."""

    def __init__(self, function: Any, *arguments: Any):
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> Any:
        return self.function, self.arguments


def hostile_pickles(marker: Path) -> dict[str, bytes]:
    """Each would create `marker` if anything of it ran.

    All carry the words that make a file look official.
    """
    command = f"touch {marker}"
    code = f"open({str(marker)!r}, 'w')"
    text = "models.yolo"
    posix = f"c{os.name}\nsystem\n".encode()
    return {
        "os.system": pickle.dumps([text, _Call(os.system, command)], 2),
        "eval": pickle.dumps([text, _Call(eval, code)], 2),
        "exec": pickle.dumps([text, _Call(exec, code)], 4),
        "nested": pickle.dumps({"model": [text, [_Call(_Call, _Call(os.system, command))]]}, 4),
        "getattr": b"\x80\x02cbuiltins\ngetattr\n(cos\nsystem\nX\x08\x00\x00\x00__call__tR.",
        "import": (
            b"\x80\x02X\x0b\x00\x00\x00models.yoloc__builtin__\n__import__\n(X\x02\x00\x00\x00ostR."
        ),
        "dotted": b"\x80\x04\x8c\x0bmodels.yolo\x8c\x08builtins\x8c\x04eval\x93(\x8c\x011tR.",
        "posix": b"\x80\x02X\x0b\x00\x00\x00models.yolo" + posix + b"(X\x04\x00\x00\x00truetR.",
        "subprocess": (
            b"\x80\x02X\x0b\x00\x00\x00models.yolocsubprocess\nPopen\n(X\x04\x00\x00\x00truetR."
        ),
        "torch.load": b"\x80\x02X\x0b\x00\x00\x00models.yoloctorch\nload\n(X\x01\x00\x00\x00xtR.",
        "class attribute": b"\x80\x02ccollections\nOrderedDict\n}X\x01\x00\x00\x00aK\x01sb.",
    }


@pytest.mark.parametrize("name", hostile_pickles(Path("x")))
@pytest.mark.parametrize("container", ["zip", "legacy", "bare"])
def test_hostile_pickles_are_refused_and_run_nothing(
    name: str, container: str, tmp_path: Path
) -> None:
    marker, path = tmp_path / "ran", tmp_path / "hostile.pt"
    data = hostile_pickles(marker)[name]
    if container == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", data)
    elif container == "legacy":
        path.write_bytes(b"".join(pickle.dumps(v, 2) for v in (LEGACY_MAGIC, 1001, {})) + data)
    else:
        path.write_bytes(data)
    for read in (read_official, load_model):
        with pytest.raises(UserError) as caught:
            read(path)
        assert "\n" not in str(caught.value)
    assert not marker.exists()


def test_unknown_storages_and_sizes_are_refused(tmp_path: Path) -> None:
    huge = b"\x80\x02(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuJ\xff\xff\xff\x7ftQ."  # noqa: E501
    path = tmp_path / "x.pt"
    path.write_bytes(b"".join(pickle.dumps(v, 2) for v in (LEGACY_MAGIC, 1001, {})) + huge)
    with pytest.raises(UserError, match="larger than the file"):
        read_official(path)


def test_tensors_without_data_are_refused(tmp_path: Path) -> None:
    """torch would fill them with whatever the memory held before."""
    path = legacy(tmp_path / "x.pt", {"model": inert({"w": torch.ones(3)}, {"nc": 1}, ["a"])})
    assert read_official(path).state_dict["w"].tolist() == [1, 1, 1]
    keys, without = pickle.dumps(["0"], 2), pickle.dumps([], 2)
    data = path.read_bytes()
    assert data.count(keys) == 1
    path.write_bytes(data[: data.index(keys)] + without)
    with pytest.raises(UserError, match="no data for 1 of its storages"):
        read_official(path)


def test_truncated_official_file(official: Path, tmp_path: Path) -> None:
    data = official.read_bytes()
    for size in (100, len(data) // 2, len(data) - 100):
        (tmp_path / "x.pt").write_bytes(data[:size])
        with pytest.raises(UserError):
            load_model(tmp_path / "x.pt")
