"""export.py replaces what it wrote itself; whatever else has the name stays and is named."""

import os
from pathlib import Path

import pytest

from deploy.exporters import EXPORTERS
from deploy.metadata import Metadata
from deploy.metadata_file import write_metadata
from deploy.staging import check_place, staged
from recipes.export import export
from tests.flow.runs import run
from utils.errors import UserError
from utils.options.export import ExportOptions

FACTS = Metadata(("a", "b"), (8.0,), 8, (64, 64))


def exported(path: Path) -> Path:
    """Make a folder as export.py leaves one."""
    path.mkdir()
    (path / "best.xml").write_text("graph")
    (path / "best.bin").write_text("weights")
    write_metadata(FACTS, path)
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_folder_of_export_makes_place_though_it_is_damaged(tmp_path: Path) -> None:
    path = exported(tmp_path / "best_openvino_model")
    check_place(path, folder=True)
    (path / "best.bin").write_text("half")
    (path / "best.xml").unlink()
    check_place(path, folder=True)
    check_place(tmp_path / "none", folder=True)
    check_place(tmp_path / "none", folder=False)
    (tmp_path / "empty").mkdir()
    check_place(tmp_path / "empty", folder=True)


@pytest.mark.parametrize("metadata", ["", "a: [", "names: [a]", "sha256: {}", "sha256: [best.xml]"])
def test_a_folder_of_another_tool_stays(metadata: str, tmp_path: Path) -> None:
    path = tmp_path / "best_openvino_model"
    path.mkdir()
    (path / "best.xml").write_text("of another tool")
    (path / "metadata.yaml").write_text(metadata)
    with pytest.raises(UserError, match="best_openvino_model: .*best.xml.*--output-dir"):
        check_place(path, folder=True)


def test_what_a_user_added_to_an_exported_folder_stays(tmp_path: Path) -> None:
    path = exported(tmp_path / "best_ncnn_model")
    (path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="it holds .?notes.txt.?, not written by export.py"):
        check_place(path, folder=True)
    (path / "notes.txt").unlink()
    (path / "best.bin").unlink()
    (path / "best.bin").mkdir()
    with pytest.raises(UserError, match="best.bin"):
        check_place(path, folder=True)


def test_files_and_folders_do_not_replace_each_other(tmp_path: Path) -> None:
    (tmp_path / "best.onnx").mkdir()
    with pytest.raises(UserError, match="best.onnx: is a folder, in the way of the file"):
        check_place(tmp_path / "best.onnx", folder=False)
    (tmp_path / "best_ncnn_model").write_text("mine")
    with pytest.raises(UserError, match="best_ncnn_model: is in the way of a folder"):
        check_place(tmp_path / "best_ncnn_model", folder=True)
    os.mkfifo(tmp_path / "pipe.onnx")
    with pytest.raises(UserError, match="no regular file"):
        check_place(tmp_path / "pipe.onnx", folder=False)
    (tmp_path / "best.onnx_").write_text("an earlier export, or one of another tool")
    check_place(tmp_path / "best.onnx_", folder=False)


def test_what_came_into_the_way_meanwhile_stays(tmp_path: Path) -> None:
    """The exporting takes minutes; the place is looked at again before the name is taken."""
    target = tmp_path / "best_openvino_model"
    with pytest.raises(UserError, match="notes.txt"), staged(target) as path:
        path.mkdir()
        target.mkdir()
        (target / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="in the way"), staged(tmp_path / "best.onnx") as path:
        path.write_text("graph")
        (tmp_path / "best.onnx").mkdir()
        (tmp_path / "best.onnx/thesis.txt").write_text("mine")
    assert sorted(contents(tmp_path).values()) == [b"mine", b"mine"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best.onnx", target.name]


@pytest.mark.parametrize(
    ("name", "kind", "more"),
    [
        ("openvino", "best_openvino_model", {}),
        ("onnx", "best.onnx", {}),
        ("openvino", "best_fp16_openvino_model", {"half": True}),
        ("onnx", "best_int8.onnx", {"int8": True, "data": "demo"}),
        ("openvino", "best_int8_openvino_model", {"int8": True, "data": "demo"}),
    ],
)
def test_export_refuses_before_it_reads_the_weights(
    name: str, kind: str, more: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recipes.export.require", lambda *_: None)
    (tmp_path / kind).mkdir()
    (tmp_path / kind / "thesis.txt").write_text("mine")
    before = contents(tmp_path)
    opt = ExportOptions(weights=str(tmp_path / "best.pt"), include=(name,), **more)
    with pytest.raises(UserError, match=f"{kind}: .*in the way.*--output-dir"):
        export(opt)  # the weights do not exist either
    assert contents(tmp_path) == before


def test_formats_say_whether_they_are_folders() -> None:
    folders = {name for name in EXPORTERS if EXPORTERS[name].makes_folder()}
    assert folders == {"openvino", "ncnn"}


@pytest.mark.flow
def test_a_name_that_is_taken_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    (tmp_path / "best.torchscript").mkdir()
    words = ("--weights", "best.pt", "--include", "torchscript")
    done = run(*words, folder=tmp_path, script="export.py")
    assert done.returncode == 2 and done.stderr.strip().count("\n") == 0
    assert "best.torchscript: is a folder" in done.stderr
