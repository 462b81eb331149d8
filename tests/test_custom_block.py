"""docs/custom_block.md as it stands: the block is found, and its model is checked, trained, pruned,
saved and exported.
"""

import re
import sys
from pathlib import Path

import pytest
import torch
import yaml

import models.blocks
import models.blocks.custom
import recipes.check
from models import Model, build_model, load_model, save_model
from models.registry import BLOCKS
from prune_methods import PRUNERS, ChannelIndex, Prunable, Target, run_preflight
from prune_methods.surgery.verify import verify
from recipes.check import check, fates_of_rows, row_reports
from tests.conftest import ROOT
from utils.errors import UserError
from utils.options.base import parse_options
from utils.options.check import CheckOptions
from utils.options.distill import DistillOptions
from utils.options.prune import PruneOptions
from utils.options.train import TrainOptions
from utils.registry import import_files_of

PAGE = (ROOT / "docs/custom_block.md").read_text(encoding="utf-8")
SCRIPTS = {"train.py": TrainOptions, "prune.py": PruneOptions, "distill.py": DistillOptions}


def snippets(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)


@pytest.fixture
def my_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The page's block as a file of `models/blocks/custom`, and its YAML."""
    monkeypatch.setattr(
        models.blocks.custom, "__path__", [*models.blocks.custom.__path__, str(tmp_path / "custom")]
    )
    monkeypatch.setattr(BLOCKS, "_items", dict(BLOCKS._items))
    (tmp_path / "custom").mkdir()
    (tmp_path / "custom" / "two_views.py").write_text(snippets("python")[0], encoding="utf-8")
    import_files_of(models.blocks)
    path = tmp_path / "my.yaml"
    path.write_text(snippets("yaml")[0], encoding="utf-8")
    yield path
    sys.modules.pop("models.blocks.custom.two_views")


def detector(path: Path) -> Model:
    torch.manual_seed(0)
    return build_model(path, nc=2)


def test_a_file_is_found_and_its_model_trains_and_is_pruned(my_yaml: Path, tmp_path: Path):
    assert BLOCKS["TwoViews"].__module__ == "models.blocks.custom.two_views"
    model = detector(my_yaml)
    assert [row.block for row in model.rows].count("TwoViews") == 2
    sum(y.square().mean() for y in model(torch.rand(2, 3, 64, 64))).backward()
    assert all(p.grad is not None for p in model.parameters())
    found, skipped = run_preflight(model)
    assert {s.layer for s in skipped} == {
        "model.3.share",
        "model.5.share",
        "model.6.m.0",
        "model.6.m.1",
    }
    plan = Prunable(model, found).search(PRUNERS["lamp"](), Target(2.0, imgsz=64))
    smaller = Prunable(model, found).cut(plan.masks)
    verify(ChannelIndex(model, found), plan.masks, plan.macs, smaller, 64)
    block = smaller.model[3]
    assert 4 <= block.near.conv.out_channels == block.far.conv.out_channels < 48
    rows = row_reports(model, 64, found, skipped)
    assert (
        rows[3].pruning == "2 of 3 layers (inexact)"
        and rows[0].pruning == "yes"
        and rows[3].shape == "48x8x8"
    )

    save_model(smaller, tmp_path / "best.pt")
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        ours, loaded = smaller.eval()(x)[0], load_model(tmp_path / "best.pt").fuse()(x)[0]
    assert torch.allclose(ours, loaded, atol=1e-3)
    export = snippets("python")[1].replace("640", "64")
    for name, path in (("runs/prune/exp/weights/best.pt", "best.pt"), ("my.onnx", "my.onnx")):
        export = export.replace(name, str(tmp_path / path))
    try:
        exec(compile(export, "docs/custom_block.md", "exec"), {})
    except torch.onnx.errors.OnnxExporterError as error:
        assert "onnx is not installed" in str(error)  # after the whole graph was converted
    else:
        assert (tmp_path / "my.onnx").stat().st_size > 1000


def test_commands_of_the_page_have_options_that_exist():
    lines = [line.split() for block in snippets("bash") for line in block.splitlines()]
    assert [line[1:3] for line in lines if line[1] == "-m"] == [["-m", "models.check"]]
    for _, script, *words in (line for line in lines if line[1] in SCRIPTS):
        parse_options(SCRIPTS[script], words).check()
    assert {line[1] for line in lines} == {*SCRIPTS, "-m"}


def printed(monkeypatch: pytest.MonkeyPatch, **options) -> str:
    lines: list[str] = []
    monkeypatch.setattr(recipes.check.LOGGER, "info", lines.append)
    check(CheckOptions(**options))
    return "\n".join(lines)


def test_check_shows_every_row(my_yaml: Path, monkeypatch: pytest.MonkeyPatch):
    text = printed(monkeypatch, cfg=(str(my_yaml),), nc=2, imgsz=64)
    rows = [re.split(r"\s{2,}", line.strip()) for line in text.splitlines()[1:9]]
    assert rows[0] == [
        "row",
        "from",
        "block",
        "output",
        "parameters",
        "deployed",
        "GFLOPs",
        "prunes",
    ]
    assert rows[1] == [
        "0",
        "image",
        "Conv",
        "16x32x32",
        "464",
        "448",
        "0.001",
        "yes",
    ]  # 3 x 16 x 9 + 32; 1024 cells x 432 x 2
    assert rows[4][:6] == [
        "3",
        "2",
        "TwoViews",
        "48x8x8",
        "41,667",
        "41,571",
    ]  # 2 (48 x 48 x 9 + 96) + 3; the norms of 2 x 48 fold
    assert rows[7][2] == "Detect" and rows[7][7] == "no: makes the output of the model"
    assert (
        "model.3 is cut, but not provably: the share of a place comes from means over all channels"
        in text
    )
    assert (
        "its block (TwoViews) keeps it whole: one gate for both views: model.3.share, model.5.share"
        in text
    )
    short = printed(monkeypatch, cfg=(str(my_yaml),), imgsz=64, prune=False)
    assert "yes" not in short and "GFLOPs deployed" in short


def test_check_sums_up_to_the_model(my_yaml: Path):
    model = detector(my_yaml)
    rows, info = row_reports(model, 64), model.info(64)
    assert sum(r.parameters for r in rows) == info["parameters"]
    assert sum(r.deployed for r in rows) == info["deployed_parameters"]
    assert sum(r.gflops for r in rows) == pytest.approx(info["gflops_fused"], rel=1e-9)
    assert fates_of_rows(model, [], []) == {}


def test_check_says_where_an_error_is(my_yaml: Path):
    content = yaml.safe_load(my_yaml.read_text())
    content["backbone"][3] = [-1, 1, "TwoVeiws", [48]]
    my_yaml.write_text(yaml.safe_dump(content))
    with pytest.raises(
        UserError,
        match=r"my\.yaml: backbone row 3 .*unknown block 'TwoVeiws'; did you mean 'TwoViews'\?",
    ):
        check(CheckOptions(cfg=(str(my_yaml),)))


@pytest.mark.flow
def test_the_module_is_a_command(tmp_path: Path):
    import subprocess  # noqa: PLC0415

    words = [sys.executable, "-m", "models.check", "nowhere.yaml"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert (
        done.returncode == 2 and done.stderr.startswith("error: ") and "nowhere.yaml" in done.stderr
    )
