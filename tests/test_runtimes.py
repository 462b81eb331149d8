"""Every runtime: the call contract of a model, sizes, batches, and what is refused."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from deploy import RUNTIMES, Runtime, load_runtime
from deploy.metadata import Metadata
from deploy.runtimes import runtime_of
from models import Model, build_model, save_model
from models.heads.base import Detections
from utils.errors import UserError

FACTS = Metadata(names=("a", "b"), stride=(8.0, 16.0), max_stride=16, imgsz=(64, 96))


@pytest.fixture
def model() -> Model:
    model = build_model("yolov5n", nc=2)
    model.names, model.imgsz = ["cell", "platelet"], 128
    return model


class Recorder(Runtime):
    """A runtime without a file: records what it is asked to run."""

    name, suffix = "recorder", ".none"

    def __init__(self, metadata: Metadata, rows: Tensor | None = None):
        super().__init__(Path("x.none"), metadata)
        self.seen: list[Tensor] = []
        self.rows = rows

    @classmethod
    def open(cls, path: Path, device: torch.device, threads: int | None) -> "Recorder":
        raise NotImplementedError

    def run(self, images: Tensor) -> Detections:
        self.seen.append(images)
        if self.rows is not None:
            return Detections(self.rows, [])
        means = images.mean((1, 2, 3)).view(-1, 1, 1)
        return Detections(means.expand(-1, 3, 5 + self.nc), [])


def changed(**values) -> Metadata:
    return Metadata(**(vars(FACTS) | values))


def test_a_checkpoint_gives_what_its_deployed_model_gives(model: Model, tmp_path: Path) -> None:
    save_model(model, tmp_path / "best.pt", args={"imgsz": 128})
    runtime = load_runtime(tmp_path / "best.pt")
    images = torch.rand(3, 3, 64, 96)
    found, wanted = runtime(images), model.fuse()(images)
    assert torch.equal(found.decoded, wanted.decoded) and len(found.raw) == 3
    assert (runtime.names, runtime.nc, runtime.imgsz) == (["cell", "platelet"], 2, (128, 128))
    assert runtime.stride.tolist() == [8, 16, 32] and runtime.max_stride == 32
    assert (runtime.batch, runtime.dynamic, runtime.end2end) == (None, True, False)
    assert next(iter(runtime.parameters())).device.type == "cpu"


def test_a_fixed_batch_is_split_and_filled() -> None:
    runtime = Recorder(changed(batch=2))
    images = torch.rand(5, 3, 64, 96)
    decoded = runtime(images).decoded
    assert [tuple(seen.shape) for seen in runtime.seen] == [(2, 3, 64, 96)] * 3
    torch.testing.assert_close(decoded[:, 0, 0], images.mean((1, 2, 3)))
    assert runtime.seen[2][1].abs().max() == 0


def test_a_fixed_size_takes_smaller_images_and_no_larger_ones() -> None:
    runtime = Recorder(FACTS)
    runtime(torch.zeros(1, 3, 32, 64))
    (seen,) = runtime.seen
    assert seen.shape == (1, 3, 64, 96) and seen[..., :32, :64].abs().max() == 0
    grey = [pytest.approx(114 / 255)]
    assert seen[..., 32:, :].unique().tolist() == seen[..., 64:].unique().tolist() == grey
    with pytest.raises(UserError, match="96x96 px are larger than the 64x96 px"):
        runtime(torch.zeros(1, 3, 96, 96))


def test_sizes_are_chosen_rounded_up_or_refused() -> None:
    fixed, dynamic = Recorder(FACTS), Recorder(changed(dynamic=True))
    with pytest.raises(UserError, match="takes images of 64x96 px only"):
        fixed.set_imgsz(64)
    fixed.set_imgsz((64, 96))
    dynamic.set_imgsz(50)
    assert (fixed.imgsz, dynamic.imgsz) == ((64, 96), (64, 64))
    dynamic.set_imgsz((33, 48))
    dynamic.set_imgsz(0)
    assert dynamic.imgsz == (48, 48)
    with pytest.raises(UserError, match="40 is no multiple of the stride 16"):
        dynamic(torch.zeros(1, 3, 32, 40))


def test_boxes_of_nms_in_the_file_become_predictions() -> None:
    rows = torch.tensor([[1, 10, 20, 30, 60, 1, 0.75], [0, 0, 0, 4, 8, 0, 0.5]])
    runtime = Recorder(changed(max_det=3, conf_thres=0.25, iou_thres=0.45), rows)
    decoded = runtime(torch.zeros(2, 3, 64, 96)).decoded
    assert decoded.shape == (2, 3, 7)
    assert decoded[0, 0].tolist() == [2, 4, 4, 8, 0.5, 1, 0]
    assert decoded[1, 0].tolist() == [20, 40, 20, 40, 0.75, 0, 1]
    assert decoded[:, 1:].abs().max() == 0


def test_images_that_fill_up_a_batch_take_no_predictions(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file may say that it takes 65,536 images a call."""
    rows = torch.tensor([[0, 0, 0, 4, 8, 0, 0.5], [1, 0, 0, 4, 8, 0, 0.9]])
    runtime = Recorder(changed(max_det=3, batch=64), rows)
    counts: list[int] = []
    original = runtime._as_predictions

    def counted(rows: Tensor, count: int) -> Tensor:
        counts.append(count)
        return original(rows, count)

    monkeypatch.setattr(runtime, "_as_predictions", counted)
    decoded = runtime(torch.zeros(1, 3, 64, 96)).decoded
    assert counts == [1] and decoded.shape == (1, 3, 7) and decoded[..., 4].sum() == 0.5


def test_metadata_cannot_ask_for_more_than_the_memory() -> None:
    names = tuple(map(str, range(2**14 - 5)))  # rows of 2^14 values, 2^10 of them are the limit
    texts = changed(names=names, max_det=1024).to_texts()
    assert Metadata.from_texts(texts, "f").max_det == 1024
    with pytest.raises(UserError, match="f: metadata 'max_det': 1025 detections.*at most 1024"):
        Metadata.from_texts(texts | {"max_det": "1025"}, "f")


def test_the_file_name_chooses_the_runtime() -> None:
    assert runtime_of(Path("a/best.pt")) is RUNTIMES["torch"]
    with pytest.raises(UserError, match=r"best.tflite: no format that is known; .*\*.pt, "):
        load_runtime("best.tflite")
    with pytest.raises(UserError, match="no such file"):
        load_runtime("nowhere.pt")


def test_metadata_survive_as_texts() -> None:
    texts = changed(names=("café", "2"), batch=4).to_texts()
    assert texts["imgsz"] == "[64, 96]"
    assert Metadata.from_texts(texts | {"author": "x"}, "f") == changed(
        names=("café", "2"), batch=4
    )


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("names", "{}"),
        ("names", "__import__('os')"),
        ("stride", "[0]"),
        ("imgsz", "[64]"),
        ("batch", "-1"),
        ("dynamic", "1"),
        ("task", '"segment"'),
        ("max_stride", "[" * 100_000),
    ],
)
def test_odd_metadata_are_one_line(key: str, text: str) -> None:
    with pytest.raises(UserError, match=f"f: metadata '{key}'"):
        Metadata.from_texts(FACTS.to_texts() | {key: text}, "f")


def test_missing_metadata_name_the_way_out() -> None:
    with pytest.raises(UserError, match="does not say its 'names'.*export.py"):
        Metadata.from_texts({}, "f")


@pytest.mark.parametrize(("name", "warned"), [("no.onnx", 1), ("no_ncnn_model", 1), ("no.pt", 0)])
def test_a_runtime_without_a_gpu_says_so(name: str, warned: int, monkeypatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("deploy.runtimes.LOGGER.warning", said.append)
    with pytest.raises(UserError, match="no"):
        load_runtime(name, device="cuda")
    assert len(said) == warned and all("computes on the CPU here, not on cuda" in s for s in said)
