"""Every script that writes into a run folder leaves it alone while another process writes there."""

from pathlib import Path

import pytest

from models import build_model, save_model
from tests.flow.runs import TINY, run, tiny_set
from tests.test_run_lock import held

pytestmark = pytest.mark.flow
SMALL = ["--imgsz", "64", "--batch-size", "4", "--workers", "0", "--device", "cpu", "--noplots"]
MODEL = ["--weights", "model.pt", "--data", "tiny.yaml", *SMALL]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with the data set, a model, and a run folder of another process."""
    folder = tmp_path_factory.mktemp("locked")
    tiny_set(folder)
    model = build_model("yolov5n", nc=3)
    model.names = ["c0", "c1", "c2"]
    save_model(model, folder / "model.pt")
    (folder / "runs" / "busy").mkdir(parents=True)
    (folder / "runs" / "busy" / "results.csv").write_text("of the other run")
    return folder


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("train.py", [*TINY, "--data", "tiny.yaml"]),
        ("val.py", MODEL),
        ("prune.py", [*MODEL, "--method", "l1", "--speed-up", "1.3", "--no-finetune"]),
    ],
)
def test_a_run_does_not_start_in_the_folder_of_another(folder, script, words):
    place = ["--project", "runs", "--name", "busy", "--exist-ok"]
    with held(folder / "runs" / "busy") as other:
        done = run(*words, *place, folder=folder, script=script)
    assert done.returncode == 2, done.stderr[-2000:]
    error = done.stderr.strip().splitlines()[-1]
    assert error.startswith("error: runs/busy: another run is writing there (process")
    assert f"process {other.pid} " in error and "Traceback" not in done.stderr
    names = sorted(path.name for path in (folder / "runs" / "busy").iterdir())
    assert names == [".run.lock", "results.csv"]
