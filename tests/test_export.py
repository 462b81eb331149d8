"""Exported files are the model: outputs, widths, NMS; what is wrong leaves no file."""

import copy
import importlib.util
import shutil
import warnings
from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from deploy import load_runtime
from deploy.blame import rows_to_blame
from deploy.exporters import EXPORTERS, Exporter
from deploy.graph import suppress
from deploy.metadata import Metadata
from deploy.metadata_file import write_metadata
from deploy.nms_check import difference_after_nms
from deploy.runtimes import Runtime
from deploy.settings import EndToEnd, ExportSettings
from deploy.staging import staged
from deploy.verify import (
    compare,
    model_widths,
    relative_difference,
    require_agreement,
    require_widths,
)
from models import Model, build_model
from prune_methods import Prunable, find_groups
from recipes.export import check_request, export, export_one, settings_of
from recipes.photos import Photos, letterboxed, verification_photos
from tests.conftest import ROOT
from tests.prune_toys import randomised
from utils.boxes import non_max_suppression
from utils.errors import UserError
from utils.options.export import ExportOptions

SIZE = (64, 96)


def installed(name: str) -> bool:
    return all(map(importlib.util.find_spec, EXPORTERS[name].libraries))


FORMATS = [
    pytest.param(name, marks=pytest.mark.skipif(not installed(name), reason="not installed"))
    for name in EXPORTERS
]
needs_onnx = pytest.mark.skipif(not installed("onnx"), reason="needs onnx and onnxruntime")


def photos(size: tuple[int, int] = SIZE, count: int = 3) -> Photos:
    generator = torch.Generator().manual_seed(0)
    return Photos(torch.rand(count, 3, *size, generator=generator), "of noise")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recipes.photos.trained_on", lambda weights: "")
    monkeypatch.setattr("recipes.export.SECONDS", 0.0)


def cut(name: str, nc: int = 3) -> Model:
    """A model with statistics as after training, 40 % of its channels cut."""
    torch.manual_seed(0)
    model = randomised(build_model(name, nc=nc))
    groups = find_groups(model)
    rng = np.random.default_rng(0)
    masks = {group.name: rng.random(group.size) < 0.6 for group in groups}
    for mask in masks.values():
        mask[0] = True
    return Prunable(model, groups).cut(masks).fuse()


@pytest.fixture(scope="module")
def pruned() -> Model:
    return cut("yolov5n")


def written(name: str, model: Model, settings: ExportSettings, folder: Path) -> Path:
    settings = replace(settings, simplify=False)  # one test does, the others are quicker so
    path = folder / f"best{EXPORTERS[name].suffix}"
    export_one(EXPORTERS[name](), model, settings, photos(settings.imgsz), path)
    return path


@pytest.mark.parametrize("name", FORMATS)
def test_a_pruned_model_in_every_format(name: str, pruned: Model, tmp_path: Path) -> None:
    path = written(name, pruned, ExportSettings(imgsz=SIZE, batch=2), tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    runtime = load_runtime(path)
    batch = 1 if name == "ncnn" else 2
    assert (runtime.names, runtime.imgsz, runtime.batch) == (pruned.names, SIZE, batch)
    assert runtime.stride.tolist() == [8, 16, 32] and not runtime.dynamic
    images = torch.rand(3, 3, *SIZE)  # the third fills a batch of its own
    found, wanted = runtime(images).decoded, pruned(images).decoded
    assert found.shape == wanted.shape
    torch.testing.assert_close(found[..., :4], wanted[..., :4], rtol=0, atol=0.02)
    torch.testing.assert_close(found[..., 4:], wanted[..., 4:], rtol=0, atol=2e-4)
    found = EXPORTERS[name]().widths(path)
    assert not model_widths(pruned, images) - found
    assert model_widths(build_model("yolov5n", nc=3).fuse(), images) - found


STRUCTURES = ["yolov7-tiny", "yolov7-tiny-dcn-afpn", "yolov7-tiny-fasternet-dbb"]
REFUSED = ("yolov7-tiny-fasternet-dbb", "ncnn")  # pnnx crashes on it; docs/deploy.md says so


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("structure", STRUCTURES)
def test_other_structures(structure: str, name: str, tmp_path: Path) -> None:
    if (structure, name) == REFUSED:
        with pytest.raises(UserError, match="ncnn: pnnx was ended by signal 11 on this model"):
            written(name, cut_once(structure), ExportSettings(imgsz=(64, 64)), tmp_path)
        return
    written(name, cut_once(structure), ExportSettings(imgsz=(64, 64)), tmp_path)


@cache
def cut_once(structure: str) -> Model:
    return cut(structure)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [p for p in FORMATS if "dynamic" in EXPORTERS[str(p.values[0])].takes]
)
def test_a_dynamic_file_takes_any_size_and_batch(name: str, pruned: Model, tmp_path: Path) -> None:
    path = written(name, pruned, ExportSettings(imgsz=SIZE, dynamic=True), tmp_path)
    runtime = load_runtime(path, imgsz=(96, 160))
    assert (runtime.imgsz, runtime.batch, runtime.dynamic) == ((96, 160), None, True)
    for images in (torch.rand(5, 3, 96, 160), torch.rand(1, 3, 32, 32)):
        assert relative_difference(runtime(images).decoded, pruned(images).decoded) < 1e-4


@needs_onnx
def test_sizes_that_a_dynamic_file_cannot_follow_are_refused(tmp_path: Path) -> None:
    """GoldYOLO averages maps to sizes that the trace takes as constants."""
    model = build_model("yolov5n-fasternet-goldyolo-asf", nc=2).fuse()
    settings = ExportSettings(imgsz=(64, 64), dynamic=True, simplify=False)
    with pytest.raises(UserError, match="best.onnx at .* px.*no file is left"):
        written("onnx", model, settings, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@needs_onnx
@pytest.mark.parametrize("name", [p for p in FORMATS if p.values[0] in ("onnx", "openvino")])
def test_half_stores_half_and_decodes_in_float(name: str, pruned: Model, tmp_path: Path) -> None:
    full = written(name, pruned, ExportSettings(imgsz=SIZE), tmp_path / "a")
    half = written(name, pruned, ExportSettings(imgsz=SIZE, half=True), tmp_path / "b")
    sizes = [sum(f.stat().st_size for f in [p, *p.rglob("*")] if f.is_file()) for p in (full, half)]
    assert sizes[1] < 0.65 * sizes[0]
    runtime = load_runtime(half)
    assert runtime.precision == "fp16"
    images = photos().images
    assert 1e-6 < compare(runtime, pruned, images).difference < 2e-2


CROWD = EndToEnd(conf_thres=0.02, iou_thres=0.5, max_det=20)


def crowded(model: Model) -> Model:
    """Outputs spread so that NMS has work in every image."""
    with torch.no_grad():
        for layer in model.head.m:
            layer.weight.mul_(4)
            torch.nn.init.uniform_(layer.bias, -1, 1)
    return model


@pytest.mark.slow
@needs_onnx
@pytest.mark.parametrize("name", [p for p in FORMATS if p.values[0] in ("onnx", "openvino")])
@pytest.mark.parametrize("dynamic", [False, True])
def test_nms_in_the_file(name: str, dynamic: bool, pruned: Model, tmp_path: Path) -> None:
    """Verified by export_one; another NMS of a caller changes nothing then."""
    torch.manual_seed(1)
    model = crowded(copy.deepcopy(pruned))
    settings = ExportSettings(imgsz=SIZE, batch=3, dynamic=dynamic, end2end=CROWD)
    runtime = load_runtime(written(name, model, settings, tmp_path))
    decoded = runtime(photos().images).decoded
    assert runtime.end2end and decoded.shape == (3, 20, 8) and decoded[..., 4].max() > 0.02
    again = non_max_suppression(decoded, 0.001, 0.6, multi_label=True)
    assert [len(boxes) for boxes in again] == (decoded[..., 4] > 0).sum(1).tolist()


@needs_onnx
def test_nms_that_keeps_nothing_gives_no_rows(pruned: Model, tmp_path: Path) -> None:
    settings = ExportSettings(imgsz=SIZE, end2end=EndToEnd(conf_thres=0.999))
    runtime = load_runtime(written("onnx", pruned, settings, tmp_path))
    assert runtime(torch.zeros(1, 3, *SIZE)).decoded.abs().max() == 0


def test_suppress_by_hand() -> None:
    """Two images; overlapping boxes of one class and of two, and one box too many."""
    one = [[50, 50, 20, 20, 0.9, 0.1, 1.0], [51, 50, 20, 20, 0.8, 0.2, 1.0]]
    two = [[52, 50, 20, 20, 0.7, 1.0, 0.1], [10, 10, 4, 4, 0.6, 1.0, 0.0]]
    empty = [[9, 9, 2, 2, 0.1, 1.0, 1.0]] * 4
    rows = suppress(torch.tensor([one + two, empty]), EndToEnd(0.25, 0.5, 2))
    expected = [[0, 40, 40, 60, 60, 1, 0.9], [0, 42, 40, 62, 60, 0, 0.7]]
    torch.testing.assert_close(rows, torch.tensor(expected))


class Lying(Exporter):
    """Writes another model than it is given."""

    name, suffix = "lying", ".onnx"

    def __init__(self, other: Model):
        self.other, self.inner = other, EXPORTERS["onnx"]()

    def write(self, model: Model, path: Path, settings: ExportSettings) -> None:
        self.inner.write(self.other, path, settings)

    def widths(self, path: Path) -> Counter:
        return self.inner.widths(path)


@needs_onnx
def test_a_file_that_is_not_the_model_takes_no_name(pruned: Model, tmp_path: Path) -> None:
    target = tmp_path / "best.onnx"
    target.write_text("the earlier one")
    other = build_model("yolov5n", nc=3).fuse()
    settings = ExportSettings(imgsz=SIZE)
    with pytest.raises(UserError, match="lacks .* of the model's 60 convolutions"):
        export_one(Lying(other), pruned, settings, photos(), target)
    torch.manual_seed(5)
    with pytest.raises(UserError, match=r"differ from the model's by .*so no file is left"):
        export_one(Lying(build_model("yolov5n", nc=3).fuse()), other, settings, photos(), target)
    assert target.read_text() == "the earlier one" and len(list(tmp_path.iterdir())) == 1


FACTS = Metadata(("a", "b"), (8.0,), 8, SIZE, max_det=3, conf_thres=0.3, iou_thres=0.5)
BOXES = torch.tensor(
    [
        [50, 50, 20, 20, 0.9, 1, 0],
        [52, 50, 20, 20, 0.8, 1, 0],  # under the first
        [52, 50, 20, 20, 0.7, 0, 1],  # of another class
        [20, 20, 8, 8, 0.3005, 1, 0],  # near the threshold
    ]
)
KEPT = torch.tensor([[40, 40, 60, 60, 0.9, 0], [42, 40, 62, 60, 0.7, 1.0]])


def test_a_right_nms_is_one_of_several() -> None:
    tied = BOXES.clone()
    tied[1, 4] = 0.9
    other = torch.tensor([[42, 40, 62, 60, 0.9, 0], [42, 40, 62, 60, 0.7, 1.0]])
    last = torch.tensor([[16, 16, 24, 24, 0.3005, 0]])
    for kept in (KEPT, torch.cat((KEPT, last))):
        assert difference_after_nms(kept, BOXES, FACTS) == pytest.approx(0, abs=1e-6)
    assert difference_after_nms(other, tied, FACTS) == pytest.approx(0, abs=1e-6)
    assert difference_after_nms(KEPT[:0], BOXES[3:], FACTS) == 0


def test_a_wrong_nms_is_infinitely_far() -> None:
    both = torch.tensor(
        [[40, 40, 60, 60, 0.9, 0], [42, 40, 62, 60, 0.8, 0], [42, 40, 62, 60, 0.7, 1.0]]
    )
    weaker = torch.tensor([[42, 40, 62, 60, 0.8, 0], [42, 40, 62, 60, 0.7, 1.0]])
    other_class = KEPT.clone()
    other_class[1, 5] = 0
    for kept in (both, weaker, other_class, KEPT[:1], KEPT[1:], KEPT[:0]):
        assert difference_after_nms(kept, BOXES, FACTS) == float("inf")
    assert difference_after_nms(KEPT, BOXES[:0], FACTS) == float("inf")
    moved = KEPT.clone()
    moved[0, :4] += 0.62
    assert difference_after_nms(moved, BOXES, FACTS) == pytest.approx(0.01, rel=1e-3)


class Suppress(torch.nn.Module):
    def forward(self, decoded: torch.Tensor) -> torch.Tensor:
        return suppress(decoded, CROWD)


def spread(nc: int, generator: torch.Generator) -> torch.Tensor:
    """Predictions of three images with distinct confidences; nothing is found in the second."""
    decoded = torch.rand(3, 400, 5 + nc, generator=generator)
    decoded[..., :2] *= 100
    decoded[..., 2:4] = decoded[..., 2:4] * 30 + 5
    order = torch.rand(3, 400, generator=generator).argsort(1).argsort(1)
    decoded[..., 4] = 0.01 + order / 450
    decoded[..., 5:] = (decoded[..., 5:].argsort(-1) == 0).float()
    decoded[1, :, 4] = 0.001
    return decoded


@needs_onnx
@pytest.mark.parametrize("nc", [1, 4])
def test_nms_of_other_runtimes_is_ours(nc: int, tmp_path: Path) -> None:
    path = tmp_path / "nms.onnx"
    decoded = spread(nc, torch.Generator().manual_seed(nc))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(Suppress(), (decoded,), str(path), dynamo=False, opset_version=17)
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    results = [session.run(None, {session.get_inputs()[0].name: decoded.numpy()})[0]]
    if installed("openvino"):
        import openvino

        results.append(openvino.compile_model(str(path), "CPU")([decoded.numpy()])[0])
    own = non_max_suppression(decoded, CROWD.conf_thres, CROWD.iou_thres, max_det=CROWD.max_det)
    assert [len(boxes) for boxes in own] == [CROWD.max_det, 0, CROWD.max_det]
    for found in results:
        rows = torch.from_numpy(found)
        assert rows[:, 0].tolist() == [0.0] * 20 + [2.0] * 20
        for number, boxes in enumerate(own):
            mine = rows[rows[:, 0] == number][:, [1, 2, 3, 4, 6, 5]]
            torch.testing.assert_close(mine, boxes, rtol=0, atol=1e-4)


def test_scores_count_beside_pixels() -> None:
    wanted = torch.tensor([[[600.0, 300, 50, 40, 0.5, 0.25]]])
    found = wanted.clone()
    found[..., 5] += 0.005
    assert relative_difference(found, wanted) == pytest.approx(0.01)
    found = wanted.clone()
    found[..., 2] -= 6
    assert relative_difference(found, wanted) == pytest.approx(0.01)
    assert relative_difference(found[:, :0], wanted) == float("inf")
    assert relative_difference(found * torch.nan, wanted) == float("inf")


def test_missing_widths_are_named() -> None:
    with pytest.raises(UserError, match="lacks 2 of the model's 3 .* 4 outputs of 27 weights"):
        require_widths(Counter({(8, 9): 5}), Counter({(8, 9): 1, (4, 27): 2}), "x.onnx")


def test_folders_are_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "best_openvino_model"
    target.mkdir()
    (target / "old").touch()
    write_metadata(FACTS, target)
    with pytest.raises(KeyError), staged(target) as path:
        path.mkdir()
        raise KeyError
    assert sorted(p.name for p in target.iterdir()) == ["metadata.yaml", "old"]
    with staged(target) as path:
        path.mkdir()
        (path / "new").touch()
    assert [p.name for p in target.iterdir()] == ["new"]
    assert [p.name for p in tmp_path.iterdir()] == [target.name]


def test_photos_are_the_sets_own_or_the_demo_sets(tmp_path: Path) -> None:
    found = verification_photos("", str(ROOT / "best.pt"), (64, 128), 9)
    assert found.images.shape == (9, 3, 64, 128) and found.source == "of the demo set's photos"
    assert torch.equal(found.images[0], found.images[8])  # eight photos
    (tmp_path / "x.jpg").write_text("no image")
    with pytest.raises(UserError, match="1 images, none of which can be read"):
        letterboxed([tmp_path / "x.jpg"], (64, 64), 1)


def options(weights: Path | str, **more) -> ExportOptions:
    return ExportOptions(weights=str(weights), **more)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"weights": ""}, "--weights is missing"),
        ({"weights": "best.onnx"}, r"export.py reads checkpoints \(.pt\)"),
        ({"include": ("engine",)}, "--include engine: no such format.*docs/deploy.md"),
        ({"include": ()}, "--include"),
        ({"imgsz": (1, 2, 3)}, "one side, or height and width"),
        ({"device": "0"}, "files are written on the CPU"),
        ({"opset": 9}, "opset"),
        ({"calib_images": 7}, "--calib-images: has no effect without --int8"),
        ({"calib_method": "entropy"}, "--calib-method: has no effect without --int8"),
        ({"max_drop": 0.0}, "--max-drop: has no effect without --int8"),
        ({"seed": 4}, "--seed: has no effect without --int8"),
        ({"conf_thres": 0.9}, "--conf-thres: has no effect without --end2end"),
        ({"iou_thres": 0.9}, "--iou-thres: has no effect without --end2end"),
        ({"max_det": 3}, "--max-det: has no effect without --end2end"),
    ],
)
def test_bad_options(more: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        ExportOptions(**({"weights": "best.pt"} | more)).check()


def test_what_a_format_cannot_do_is_refused_before_anything_is_written() -> None:
    with pytest.raises(UserError, match="--half: the format torchscript.*onnx and openvino can"):
        EXPORTERS["torchscript"]().check(ExportSettings(half=True))


@pytest.mark.parametrize(
    ("more", "flag"), [({"opset": 13}, "--opset"), ({"simplify": False}, "--no-simplify")]
)
def test_options_of_onnx_alone_are_refused_where_no_onnx_is_made(more: dict, flag: str) -> None:
    opt = options("best.pt", include=("torchscript", "ncnn"), **more)
    with pytest.raises(UserError, match=f"^{flag}: .* torchscript and ncnn; onnx and openvino"):
        check_request(opt, [EXPORTERS["torchscript"](), Without()])
    check_request(opt, [EXPORTERS["torchscript"](), With()])


class Without(Exporter):
    """A format that needs no library and no ONNX."""

    name, suffix, takes = "without", ".without", frozenset()

    def write(self, model: Model, path: Path, settings: ExportSettings) -> None:
        raise NotImplementedError

    def widths(self, path: Path) -> Counter:
        raise NotImplementedError


class With(Without):
    """One that is made from ONNX."""

    takes = frozenset({"opset", "simplify"})


def test_more_detections_than_memory_are_refused_before_anything_is_written() -> None:
    class Wide:
        nc, imgsz, max_stride = 20_000, 64, 32

    opt = options("best.pt", end2end=True, max_det=10_000)
    with pytest.raises(UserError, match="--max-det: 10000 detections of 20000 classes.*most 838"):
        settings_of(opt, Wide())  # type: ignore[arg-type]
    assert settings_of(options("best.pt", end2end=True), Wide()).end2end == EndToEnd()  # type: ignore[arg-type]


def test_a_missing_library_is_named_with_its_pip_command(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(f"No module named '{name}'", name=name)

    monkeypatch.setattr("deploy.libraries.importlib.import_module", missing)
    with pytest.raises(UserError, match='needs onnx, which is not installed; .*pip install "onnx>'):
        export(options("best.pt"))


BROKEN = {
    "torchscript": "cannot be read",
    "onnx": "ONNX Runtime cannot load it",
    "openvino": "cannot read it|not whole|no such file",
    "ncnn": "cannot be read|not whole|no such file|cannot load",
}


@pytest.mark.parametrize("name", FORMATS)
def test_half_a_file_is_one_line(name: str, pruned: Model, tmp_path: Path) -> None:
    path = written(name, pruned, ExportSettings(imgsz=SIZE), tmp_path)
    files = [path] if path.is_file() else sorted(path.iterdir())
    for file in files:
        whole = file.read_bytes()
        for content in (whole[: len(whole) // 2], b"", b"x" * 100):
            file.write_bytes(content)
            with pytest.raises(UserError) as caught:
                run_once(load_runtime(path))
            assert str(path.name) in str(caught.value) and "\n" not in str(caught.value)
        file.write_bytes(whole)
    run_once(load_runtime(path))
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(UserError, match="no such"):
        load_runtime(path)


def run_once(runtime: Runtime) -> None:
    runtime(torch.zeros(1, 3, *SIZE))


@needs_onnx
@pytest.mark.skipif(not importlib.util.find_spec("onnxslim"), reason="needs onnxslim")
def test_onnxslim_shortens_the_graph_and_keeps_names(pruned: Model, tmp_path: Path) -> None:
    import onnx

    nodes = []
    for simplify in (False, True):
        path = tmp_path / f"{simplify}.onnx"
        settings = ExportSettings(imgsz=SIZE, simplify=simplify)
        export_one(EXPORTERS["onnx"](), pruned, settings, photos(), path)
        nodes.append([node.name for node in onnx.load(str(path)).graph.node])
    assert len(nodes[1]) < 0.8 * len(nodes[0]) and "/model.0/conv/Conv" in nodes[1]


@needs_onnx
def test_onnx_of_others_is_refused(tmp_path: Path) -> None:
    layer = torch.nn.Conv2d(3, 4, 1)
    path = tmp_path / "classifier.onnx"
    torch.onnx.export(layer, (torch.zeros(1, 3, 8, 8),), str(path), dynamo=False)
    with pytest.raises(UserError, match="classifier.onnx: it does not say its 'names'"):
        load_runtime(path)


@needs_onnx
def test_metadata_that_contradict_the_graph_are_refused(pruned: Model, tmp_path: Path) -> None:
    import onnx

    path = written("onnx", pruned, ExportSettings(imgsz=SIZE), tmp_path)
    content = onnx.load(str(path))
    for key, text, message in (
        ("imgsz", "[96, 96]", "its metadata say"),
        ("names", '["one"]', "output has the shape"),
        ("batch", "4", "its metadata say"),
    ):
        changed = onnx.ModelProto.FromString(content.SerializeToString())
        for item in changed.metadata_props:
            if item.key == key:
                item.value = text
        onnx.save(changed, str(path))
        with pytest.raises(UserError, match=message):
            run_once(load_runtime(path))


def test_int8_files_are_judged_by_their_map() -> None:
    class Int8:
        precision = "int8"

    from deploy.verify import Agreement

    require_agreement(Agreement(0.5, 1), Int8(), "x")  # type: ignore[arg-type]


class NoCounterpart(torch.nn.Module):
    """A block whose operator ONNX does not have."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.linalg.eigvalsh(x[:, :1, :2, :2]).mean()


@needs_onnx
def test_a_refusal_names_the_rows(pruned: Model, tmp_path: Path) -> None:
    model = copy.deepcopy(pruned)
    index = model.rows[5].index
    model.model[index] = torch.nn.Sequential(model.model[index], NoCounterpart())
    with pytest.raises(UserError, match=rf"opset 17 cannot express .*: row {index} \(\w+\)$"):
        written("onnx", model, ExportSettings(imgsz=SIZE), tmp_path)
    assert not list(tmp_path.iterdir())


def test_rows_are_tried_alone_with_their_own_maps(pruned: Model) -> None:
    shapes: list[list[tuple[int, ...]]] = []

    def attempt(row: torch.nn.Module, maps: list[torch.Tensor]) -> None:
        shapes.append([tuple(one.shape) for one in maps])
        outputs = row(*maps)
        if len(outputs) > 1:
            raise UserError("no")

    blamed = rows_to_blame(pruned, torch.zeros(1, 3, 64, 64), attempt)
    assert blamed == f": row {pruned.rows[-1].index} (Detect)"
    assert shapes[0] == [(1, 3, 64, 64)] and len(shapes[-1]) == 3
