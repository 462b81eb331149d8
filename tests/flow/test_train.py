"""train.py as a user runs it: what a run leaves behind, and one clear line for what is wrong."""

import csv
import json
import resource
from pathlib import Path

import pytest
import torch
import yaml

from models import load_model
from tests.flow.runs import TINY, run, same_weights, tiny_set
from utils.engine.run_hooks import COLUMNS

pytestmark = pytest.mark.flow
FILES = """
    opt.yaml hyp.yaml hyp_effective.yaml model.yaml log.txt results.csv results.png labels.jpg
    train_batch0.jpg train_batch2.jpg val_batch0_labels.jpg val_batch0_pred.jpg
    PR_curve.png F1_curve.png P_curve.png R_curve.png confusion_matrix.png
    weights/best.pt weights/last.pt
""".split()  # noqa: SIM905


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder with the data set and one run with all its pictures."""
    folder = tmp_path_factory.mktemp("train")
    tiny_set(folder)
    words = [word for word in TINY if word != "--noplots"]
    done = run(*words, "--data", "tiny.yaml", "--save-period", "2", folder=folder)
    assert done.returncode == 0, done.stderr[-2000:]
    (folder / "stdout.txt").write_text(done.stdout)
    return folder


def test_run_folder_is_complete(trained):
    folder = trained / "runs" / "train" / "exp"
    assert [name for name in FILES if not (folder / name).is_file()] == []
    assert (
        list(folder.glob("events.out.tfevents.*")) and (folder / "weights" / "epoch1.pt").is_file()
    )
    with (folder / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS and [row["epoch"] for row in rows] == ["0", "1", "2"]
    assert all(
        0 < float(row["train/box_loss"]) < 1 and 0 < float(row["val/obj_loss"]) < 1 for row in rows
    )
    opt = yaml.safe_load((folder / "opt.yaml").read_text())
    assert (
        opt["imgsz"] == 64
        and opt["device"] == "cpu"
        and opt["threads"] == 1
        and opt["packages"]["torch"]
    )
    given, used = (
        yaml.safe_load((folder / name).read_text()) for name in ("hyp.yaml", "hyp_effective.yaml")
    )
    assert used["cls"] == pytest.approx(given["cls"] * 3 / 80) and used["obj"] == pytest.approx(
        given["obj"] * 0.01
    )


def test_console_has_the_lines_people_look_for(trained):
    text = (trained / "stdout.txt").read_text()
    for line in (
        "Model summary: 214 layers, ",
        "10 images, 0 backgrounds, 0 corrupt",
        "Results saved to runs/train/exp",
    ):
        assert line in text
    header = next(
        line.split() for line in text.splitlines() if line.split()[:2] == ["Epoch", "GPU_mem"]
    )
    assert header == ["Epoch", "GPU_mem", "box", "obj", "cls", "Instances", "Size"]
    log = (trained / "runs" / "train" / "exp" / "log.txt").read_text()
    assert "Model summary" in log
    header, losses = log.split("      Epoch    GPU_mem")[1].splitlines()[:2]
    assert losses.split()[0].startswith("0/") and len(losses.split()) == len(header.split()) + 2


def test_weights_of_a_run_can_be_trained_on(trained):
    done = run(
        *TINY[2:],
        "--weights",
        "runs/train/exp/weights/best.pt",
        "--data",
        "tiny.yaml",
        "--name",
        "on",
        folder=trained,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    total = len(load_model(trained / "runs/train/exp/weights/best.pt").state_dict())
    assert f"Transferred {total}/{total} items from runs/train/exp/weights/best.pt" in done.stdout
    assert "best possible recall" in done.stdout and "new anchors" not in done.stdout


def test_same_seed_same_weights_whatever_the_workers(trained):
    for name, workers in (("a", "0"), ("b", "2")):
        done = run(
            *TINY,
            "--data",
            "tiny.yaml",
            "--name",
            name,
            "--workers",
            workers,
            "--multi-scale",
            folder=trained,
        )
        assert done.returncode == 0, done.stderr[-2000:]
    a, b = (trained / "runs" / "train" / name for name in "ab")
    assert same_weights(a / "weights" / "last.pt", b / "weights" / "last.pt")
    assert (a / "results.csv").read_text() == (b / "results.csv").read_text()


def test_official_weights_transfer(trained, shared):
    words = [
        "--weights",
        shared / "weights" / "yolov5n.pt",
        "--data",
        "tiny.yaml",
        "--name",
        "official",
        "--epochs",
        "1",
    ]
    done = run(
        "--cfg",
        "yolov5n",
        *TINY[2:],
        *words,
        "--freeze",
        "10",
        "--single-cls",
        "--sync-bn",
        folder=trained,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "--sync-bn has no effect in a single process" in done.stdout
    # 349 entries: all but 3 x (weight, bias) of the head, whose classes differ, and the anchors
    assert "Transferred 342/349 items from" in done.stdout
    model = load_model(trained / "runs" / "train" / "official" / "weights" / "best.pt")
    official = load_model(shared / "weights" / "yolov5n.pt")
    assert model.names == ["object"]
    assert torch.equal(model.model[0].conv.weight, official.model[0].conv.weight)
    assert not torch.equal(model.model[17].cv1.conv.weight, official.model[17].cv1.conv.weight)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "missing: a model (--cfg yolov5n or --weights x.pt) and a data set (--data demo)"),
        (["--cfg", "yolov5n"], "missing: a data set (--data demo)"),
        (["--cfg", "yolov5nn", "--data", "tiny.yaml"], "did you mean 'yolov5n'"),
        (["--cfg", "yolov5n", "--data", "none.yaml"], "data YAML 'none.yaml' not found"),
        (
            ["--cfg", "yolov5n", "--data", "tiny.yaml", "--hyp", "scratch-lo"],
            "did you mean 'scratch-low'",
        ),
        (
            ["--cfg", "yolov5n", "--data", "tiny.yaml", "--device", "7"],
            "there is no GPU that torch can use",
        ),
        (["--weights", "tiny.yaml", "--data", "tiny.yaml"], "tiny.yaml"),
        (["--weights", "none.pt", "--data", "tiny.yaml"], "none.pt: no such file"),
        (["--resume", "none.pt"], "none.pt: no such file"),
        (["--epoch", "3"], "unknown option --epoch; did you mean '--epochs'?"),
        (["--optimizer", "Lion"], "Lion"),
    ],
)
def test_mistakes_cost_one_line_and_exit_code_2(trained, words, message):
    done = run(*words, folder=trained)
    assert done.returncode == 2
    assert (
        message in done.stderr
        and "Traceback" not in done.stderr
        and len(done.stderr.strip().splitlines()) == 1
    )


def test_full_disk_leaves_the_earlier_checkpoint(trained):
    """A limit on the size of files stands for the full disk: best.pt (7 MB) fits, last.pt with its
    training state does not.
    """
    limit = 16_000_000
    done = run(
        *TINY,
        "--data",
        "tiny.yaml",
        "--name",
        "full",
        folder=trained,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    weights = trained / "runs" / "train" / "full" / "weights"
    assert (
        done.returncode == 2
        and "cannot be written" in done.stderr
        and "Traceback" not in done.stderr
    )
    assert sorted(path.name for path in weights.iterdir()) == ["best.pt"]
    load_model(weights / "best.pt")


def test_bare_results_are_finite_json(trained):
    content = torch.load(trained / "runs/train/exp/weights/best.pt", weights_only=True)
    assert json.loads(json.dumps(content["history"], allow_nan=False)) == content["history"]
