"""INT8: names of layers, what stays in float, the search for costly layers, real files."""

import importlib.util
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deploy import load_runtime
from deploy.cpu import int8_note
from deploy.int8 import QUANTIZERS
from deploy.int8 import search as search_module
from deploy.int8.base import Calibration, layer_of, matching, row_of
from deploy.int8.search import error_of, search
from models import build_model, save_model
from recipes.export import export
from tests.flow.runs import tiny_set
from tests.prune_toys import randomised
from utils.errors import UserError
from utils.options.export import ExportOptions

LAYERS = ["model.0.conv", "model.1.conv", "model.2.cv1.conv", "model.2.cv2.conv", "model.10.conv"]


def installed(name: str) -> bool:
    return all(map(importlib.util.find_spec, QUANTIZERS[name].libraries))


FORMATS = [
    pytest.param(name, marks=pytest.mark.skipif(not installed(name), reason="not installed"))
    for name in QUANTIZERS
]


def test_nodes_belong_to_layers_by_the_names_of_the_trace() -> None:
    assert layer_of("/model.0/conv/Conv") == "model.0.conv"
    assert layer_of("/model.2/m/m.0/cv1/conv/Conv") == "model.2.m.0.cv1.conv"
    assert layer_of("/model.0/stages.0/stages.0.0/mix/conv/Conv") == "model.0.stages.0.0.mix.conv"
    assert row_of("model.12.m.0.cv1") == "model.12"


def test_a_row_stands_for_its_layers_and_no_other_row() -> None:
    assert matching(LAYERS, ["model.2"]) == {"model.2.cv1.conv", "model.2.cv2.conv"}
    assert matching(LAYERS, ["model.1", "model.2.cv1.conv"]) == {"model.1.conv", "model.2.cv1.conv"}
    with pytest.raises(UserError, match=r"--keep-float model.3: .*model.0.conv to model.10.conv"):
        matching(LAYERS, ["model.3"])


class Toy:
    """A quantiser whose files lose accuracy where costly rows are in INT8."""

    name = "onnx"
    layers = [f"model.{i}.conv" for i in range(10)]

    def __init__(self) -> None:
        self.written: list[set[str]] = []

    def write(self, path: Path, keep: Collection[str] = ()) -> None:
        self.written.append(set(keep))


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Toy:
    toy = Toy()
    monkeypatch.setattr(search_module, "load_runtime", lambda path: toy.written[-1])
    return toy


COST = {7: 0.05, 2: 0.03, 4: 0.02, 9: 0.01}


def toy_accuracy(kept: Any) -> float:
    return 0.5 - sum(cost for row, cost in COST.items() if f"model.{row}.conv" not in kept)


def ranked() -> list[str]:
    order = sorted(range(10), key=lambda row: -COST.get(row, 0))
    return [f"model.{row}" for row in order]


@pytest.mark.parametrize(
    ("needed", "rows"),
    [(0.38, 0), (0.43, 1), (0.46, 2), (0.475, 3), (0.4899, 3), (0.495, 4)],
)
def test_the_fewest_rows_that_meet_the_accuracy_stay_in_float(
    toy: Toy, needed: float, rows: int
) -> None:
    found = search(toy, Path(), toy_accuracy, needed, ranked, frozenset())  # type: ignore[arg-type]
    assert list(found.rows) == ["model.7", "model.2", "model.4", "model.9"][:rows]
    assert found.accuracy >= needed and found.kept == {f"{row}.conv" for row in found.rows}


def test_what_the_user_keeps_is_kept_and_a_target_out_of_reach_gives_all_rows(toy: Toy) -> None:
    keep = frozenset({"model.9.conv"})
    found = search(toy, Path(), toy_accuracy, 0.6, ranked, keep)  # type: ignore[arg-type]
    assert found.kept == set(toy.layers) and found.accuracy == pytest.approx(0.5)
    assert all("model.9.conv" in kept for kept in toy.written)


def test_trial_files_have_the_suffix_of_their_format(
    toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A third quantiser is one new file; the search asks its exporter."""
    toy.name = "ncnn"
    paths: list[Path] = []
    write = toy.write
    monkeypatch.setattr(toy, "write", lambda path, keep: (paths.append(path), write(path, keep)))
    search(toy, Path("trials"), toy_accuracy, 0.38, ranked, frozenset())  # type: ignore[arg-type]
    assert paths == [Path("trials/all_ncnn_model")]


def test_the_error_counts_boxes_by_their_confidence() -> None:
    wanted = torch.tensor([[[50, 50, 20, 10, 0.9, 1.0], [50, 50, 20, 10, 0.1, 1.0]]])
    sure, unsure = wanted.clone(), wanted.clone()
    sure[0, 0, 0] += 2
    unsure[0, 1, 0] += 2

    def runtime(found: torch.Tensor) -> Any:
        return lambda images: type("Found", (), {"decoded": found})

    assert error_of(runtime(sure), torch.empty(0), wanted) == pytest.approx(0.09)
    assert error_of(runtime(unsure), torch.empty(0), wanted) == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model name\t: Xeon\nflags\t\t: sse avx512_vnni", "Xeon: has VNNI (avx512_vnni)"),
        ("model name\t: Core\nflags\t\t: avx2 avx_vnni", "Core: has VNNI (avx_vnni)"),
        ("model name\t: EPYC\nflags\t\t: avx2 fma", "EPYC: has no VNNI: INT8 multiplies by older"),
        ("Features\t: fp asimd asimddp", "has dot products of INT8 (asimddp)"),
        ("", "its flags are unknown"),
    ],
)
def test_the_cpu_is_told(text: str, expected: str, tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    assert expected in int8_note(tmp_path / "cpuinfo")
    assert "unknown" in int8_note(tmp_path / "none")


@pytest.fixture
def options(tmp_path: Path) -> dict[str, Any]:
    """A model with statistics as after training, and ten small photos."""
    model = randomised(build_model("yolov5n", nc=3))
    model.names = ["a", "b", "c"]
    save_model(model.train(), tmp_path / "best.pt", args={"imgsz": 64})
    data = tiny_set(tmp_path)
    return {
        "weights": str(tmp_path / "best.pt"),
        "data": str(data),
        "int8": True,
        "calib_images": 4,
        "simplify": False,
    }


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recipes.export.SECONDS", 0.0)


@pytest.mark.parametrize("name", FORMATS)
def test_int8_files_are_small_and_keep_layers_and_decoding_in_float(
    name: str, options: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    opt = ExportOptions(**options, include=(name,), keep_float=("model.0", "model.2.cv1"))
    full, small = export(opt)
    assert small.size < 0.5 * full.size and small.path.name.startswith("best_int8")
    runtime = load_runtime(small.path)
    assert runtime.precision == "int8" and load_runtime(full.path).precision == "fp32"
    images = torch.rand(1, 3, 64, 64)
    wanted, found = load_runtime(full.path)(images).decoded, runtime(images).decoded
    assert 1e-4 < (found - wanted)[..., 4:].abs().max() < 0.2
    text = capsys.readouterr().out
    assert "55 of 57 layers in INT8" in text and "--keep-float: model.0.conv, model.2.cv1" in text
    if name == "onnx":
        assert quantised_convolutions(small.path).isdisjoint(
            {"/model.0/conv/Conv", "/model.2/cv1/conv/Conv", "/model.24/m.0/Conv"}
        )
        assert len(quantised_convolutions(small.path)) == 55


def quantised_convolutions(path: Path) -> set[str]:
    import onnx

    graph = onnx.load(str(path)).graph
    maker = {output: node.op_type for node in graph.node for output in node.output}
    return {
        node.name
        for node in graph.node
        if node.op_type == "Conv" and maker.get(node.input[1]) == "DequantizeLinear"
    }


@pytest.mark.slow
@pytest.mark.skipif(not installed("onnx"), reason="needs onnx and onnxruntime")
@pytest.mark.parametrize("method", ["entropy", "percentile"])
def test_other_methods_of_calibration(method: str, options: dict[str, Any]) -> None:
    files = export(ExportOptions(**options, include=("onnx",), calib_method=method))
    assert 0 < files[1].difference < 0.5


@pytest.mark.skipif(not installed("onnx"), reason="needs onnx and onnxruntime")
def test_a_drop_that_cannot_be_met_leaves_no_int8_file(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = iter([0.5] + [0.4] * 50)
    monkeypatch.setattr("recipes.int8._accuracy", lambda *_: lambda runtime: next(figures))
    monkeypatch.setattr("recipes.int8.costs_of_rows", lambda *_: ["model.1", "model.3"])
    with pytest.raises(UserError, match="--max-drop 0.01: not met by onnx"):
        export(ExportOptions(**options, include=("onnx",), max_drop=0.01))
    assert not list(tmp_path.glob("best_int8*")) and (tmp_path / "best.onnx").is_file()


def test_batches_of_calibration_have_the_size_of_the_file() -> None:
    images = lambda count: iter([np.ones((1, 3, 4, 4), np.float32)] * count)  # noqa: E731
    found = list(Calibration(images, 3, "minmax", 2).batches())
    assert [batch.shape for batch in found] == [(2, 3, 4, 4)] * 3


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"data": ""}, "--int8: needs --data"),
        ({"half": True}, "--int8: cannot go with --half"),
        ({"int8": False, "max_drop": 0.01}, "--max-drop: has no effect without --int8"),
        ({"max_drop": 2.0}, "max.drop"),
        ({"calib_method": "best"}, "calib.method"),
    ],
)
def test_options_that_do_not_go_together(more: dict[str, Any], message: str) -> None:
    given = {"weights": "best.pt", "int8": True, "data": "demo"} | more
    with pytest.raises(UserError, match=message):
        ExportOptions(**given).check()


def test_formats_and_data_that_int8_cannot_use(options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--int8: not for torchscript; onnx and openvino can"):
        export(ExportOptions(**options, include=("torchscript",)))
    if installed("onnx"):
        wrong = options | {"data": "demo"}
        with pytest.raises(UserError, match="has 5 classes, .* has 3"):
            export(ExportOptions(**wrong, include=("onnx",)))
        with pytest.raises(UserError, match="--int8 --imgsz 64 96: .*squares; give one side"):
            export(ExportOptions(**options, include=("onnx",), imgsz=(64, 96)))
    assert not list(tmp_path.glob("best*.onnx")), "a float file is left"
