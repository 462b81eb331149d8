"""A resumed run takes its own folder, its own data and its own classes, or says what differs."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from data.config import load_data
from recipes.prune.training import check_data, interrupted_run
from recipes.resuming import found_data, progress, run_folder, warn_if_changed, written
from recipes.train import resume, train
from tests.data_sets import write_set
from utils.config import load_yaml
from utils.engine.hooks import Hook, TrainerState
from utils.errors import UserError
from utils.options.base import recorded
from utils.options.prune import PruneOptions
from utils.options.train import TrainOptions
from utils.rundir import save_options

OPTIONS = {
    "cfg": "yolov5n",
    "hyp": "demo",
    "imgsz": 64,
    "batch_size": 4,
    "workers": 0,
    "device": "cpu",
    "noplots": True,
    "noautoanchor": True,
}


class StopAt(Hook):
    """End the program at the start of an epoch, as an interrupt does."""

    def __init__(self, epoch: int):
        self.epoch = epoch

    def on_epoch_start(self, trainer: TrainerState) -> None:
        if trainer.epoch == self.epoch:
            raise KeyboardInterrupt


def write_data(folder: Path, name: str = "tiny.yaml") -> Path:
    content = write_set(folder, [(64, 64)] * 5, "train") | write_set(folder, [(64, 48)] * 2, "val")
    (folder / name).write_text(yaml.safe_dump(content))
    return folder / name


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory) -> Path:
    """A folder with data and a run that was interrupted in its second epoch of three."""
    folder = tmp_path_factory.mktemp("interrupted")
    write_data(folder / "data")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        opt = TrainOptions(data="data/tiny.yaml", project="runs", epochs=3, **OPTIONS)
        with pytest.raises(KeyboardInterrupt):
            train(opt, lambda run: [StopAt(1)])
    return folder


@pytest.fixture
def place(interrupted, tmp_path, monkeypatch) -> Path:
    """A copy of the folder, with the data in their old place; the working directory."""
    shutil.copytree(interrupted / "runs", tmp_path / "runs")
    shutil.copytree(interrupted / "data", tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def going_on(last: Path | str, **more: str) -> TrainOptions:
    return TrainOptions(resume=str(last), **more)  # type: ignore[arg-type]


def with_names(file: Path, names: list[str]) -> str:
    """Write the data YAML anew with other classes."""
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | {"names": names}))
    return str(file)


LAST = "runs/exp/weights/last.pt"


def refused(opt: TrainOptions) -> str:
    """Return the message of a resume that is refused, which leaves the run as it was."""
    stamps = {file: file.stat().st_mtime_ns for file in Path("runs").rglob("*") if file.is_file()}
    with pytest.raises(UserError) as error:
        resume(opt, lambda run: [StopAt(99)])
    now = {file: file.stat().st_mtime_ns for file in Path("runs").rglob("*") if file.is_file()}
    assert now == stamps
    return str(error.value)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["c1", "c0", "c2"], "class 0 was 'c0', it is 'c1' now"),
        (["c0", "c1"], "3 when the run began, 2 now"),
        (["c0", "c1", "c2", "c3"], "3 when the run began, 4 now"),
    ],
)
def test_other_classes_are_refused(place, names, message):
    data = with_names(place / "data" / "tiny.yaml", names)
    assert message in refused(going_on(LAST, data=data))


def test_other_classes_are_refused_for_checkpoints_that_do_not_hold_their_data(place):
    content = torch.load(LAST, weights_only=True)
    del content["data"]
    torch.save(content, LAST)
    data = with_names(place / "data" / "tiny.yaml", ["c0", "c1", "c3"])
    assert "class 2 was 'c2', it is 'c3' now" in refused(going_on(LAST, data=data))


def test_best_pt_of_an_interrupted_run_names_the_file_that_resumes(place):
    assert f"--resume {Path(LAST)}" in refused(going_on("runs/exp/weights/best.pt"))
    Path(LAST).unlink()
    message = refused(going_on("runs/exp/weights/best.pt"))
    assert "holds a model only" in message and "has finished" not in message


def test_a_copied_checkpoint_does_not_write_where_it_lies(place):
    (place / "backup" / "deep").mkdir(parents=True)
    shutil.copy(LAST, place / "backup" / "deep")
    message = refused(going_on("backup/deep/last.pt"))
    assert "is not in the folder of its run" in message
    assert sorted(path.name for path in (place / "backup").iterdir()) == ["deep"]


def test_a_checkpoint_in_the_folder_of_another_run_is_refused(place):
    other = place / "runs" / "other" / "weights"
    other.mkdir(parents=True)
    shutil.copy(LAST, other)
    options = TrainOptions(data="data/tiny.yaml", project="runs", epochs=7, **OPTIONS)
    save_options(options, other.parent / "opt.yaml")
    message = refused(going_on(other / "last.pt"))
    assert "epochs is 3 in the one, 7 in the other" in message


def test_a_moved_run_and_a_link_to_its_checkpoint_are_its_folder(place):
    args = torch.load(LAST, weights_only=True)["args"]
    (place / "runs" / "exp").rename(place / "moved")
    (place / "link.pt").symlink_to(place / "moved" / "weights" / "last.pt")
    assert run_folder(place / "moved" / "weights" / "last.pt", args) == place / "moved"
    assert run_folder(place / "link.pt", args) == place / "moved"


def test_moved_data_are_named_and_written_down(place, interrupted, monkeypatch):
    monkeypatch.chdir(place)
    content = torch.load(LAST, weights_only=True)
    assert content["args"]["data"] == str(interrupted / "data" / "tiny.yaml")  # not relative
    content["args"]["data"] = "gone/tiny.yaml"
    torch.save(content, LAST)
    assert "name their YAML: --data" in refused(going_on(LAST))
    found = resume(going_on(LAST, data="data/tiny.yaml"), lambda run: [StopAt(99)])
    assert torch.load(found.last, weights_only=True)["epoch"] == 2
    assert load_yaml("runs/exp/opt.yaml")["data"] == str(place / "data" / "tiny.yaml")


def test_the_same_relative_name_in_another_directory_is_another_file(place, interrupted):
    """The run's own data count, though the working directory has a file of that name too."""
    with_names(place / "data" / "tiny.yaml", ["a", "b", "c"])
    found = resume(going_on(LAST), lambda run: [StopAt(99)])
    content = torch.load(found.last, weights_only=True)
    assert content["args"]["data"] == str(interrupted / "data" / "tiny.yaml")
    assert content["names"] == ["c0", "c1", "c2"]


def test_removed_images_and_changed_labels_are_warned_of(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("recipes.resuming.LOGGER.propagate", True)
    file = write_data(tmp_path)
    before = found_data(str(file)).identity
    assert before["images"] == {"train": 5, "val": 2} and before["names"] == ["c0", "c1", "c2"]
    warn_if_changed(before, found_data(str(file)))
    assert not caplog.text
    (tmp_path / "labels" / "train" / "000.txt").write_text("")
    warn_if_changed(before, found_data(str(file)))
    assert "files or labels have other names or sizes" in caplog.text
    caplog.clear()
    (tmp_path / "images" / "train" / "000.png").unlink()
    warn_if_changed(before, found_data(str(file)))
    assert "5 train images before, 4 now" in caplog.text


def test_existing_files_are_recorded_by_their_absolute_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("my.yaml", "m.pt"):
        Path(name).write_text("")
    values = recorded(TrainOptions(data="my.yaml", weights="m.pt", cfg="yolov5n", hyp="gone.yaml"))
    assert (values["data"], values["weights"]) == (
        str(tmp_path / "my.yaml"),
        str(tmp_path / "m.pt"),
    )
    assert (values["cfg"], values["hyp"]) == ("yolov5n", "gone.yaml")


def test_advice_knows_an_earlier_run_and_a_finished_one(place):
    last, opt = Path(LAST).absolute(), TrainOptions(data="tiny.yaml")
    run_dir = last.parent.parent
    assert progress(last, earlier=written(last)) == "nothing"
    hint = opt.resume_hint(run_dir, "nothing")
    assert "nothing is saved" in hint and "earlier run" in hint and "--resume" not in hint
    assert progress(last, earlier=0) == "epoch" == progress(last, earlier=5)
    assert f"--resume {last}" in opt.resume_hint(run_dir, "epoch")
    content = torch.load(last, weights_only=True)
    del content["train_state"]
    torch.save(content, last)
    assert progress(last, earlier=5) == "all"
    hint = opt.resume_hint(run_dir, "all")
    assert "val.py --weights" in hint and "--resume" not in hint
    last.unlink()
    assert progress(last, earlier=0) == "nothing"
    assert "earlier run" not in opt.resume_hint(run_dir, "nothing")


def test_a_place_that_does_not_exist_is_refused(place):
    message = refused(going_on(LAST, data="nowhere.yaml"))
    assert "nowhere.yaml" in message and "--data" in message


def test_a_pruning_run_is_resumed_with_its_own_classes_and_takes_what_moved(tmp_path):
    file = write_data(tmp_path)
    data = load_data(file)
    origin = {"data_hash": data.hash, "class_names": data.names}
    save_options(PruneOptions(data=str(file)), tmp_path / "opt.yaml", **origin)
    check_data(tmp_path, data, str(file))
    with pytest.raises(UserError, match="class 1 was 'c1', it is 'c2' now"):
        check_data(tmp_path, replace(data, names=["c0", "c2", "c1"]), str(file))
    moved = PruneOptions(resume=str(tmp_path), data="elsewhere.yaml", weights="new.pt")
    options, folder = interrupted_run(moved)
    assert (options.data, options.weights, folder) == ("elsewhere.yaml", "new.pt", tmp_path)
