"""A full disk: every file is written whole or not at all, the message says so, and a training goes
on where it can do without the file.
"""

import ast
import errno
import logging
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import nn

from recipes.train import resume, train
from tests.test_house import our_files
from tests.test_resuming import OPTIONS, write_data
from utils import files
from utils.cli import run_script
from utils.config import save_yaml
from utils.event_file import EventFile
from utils.files import (
    StorageError,
    atomic_open,
    copy_atomic,
    dispensable,
    save_picture,
    write_atomic,
    write_csv,
)
from utils.log import LOGGER, logging_to
from utils.options.train import TrainOptions

FULL = OSError(errno.ENOSPC, "No space left on device")


class Disk:
    """A disk that is full for the files whose names `refuses` accepts."""

    def __init__(self):
        self.refuses: Callable[[str], bool] = lambda name: False
        self.refused: list[str] = []

    def check(self, descriptor: int) -> None:
        """Stand in for `os.fsync`, or for a flush: the data do not reach the disk."""
        name = Path(f"/proc/self/fd/{descriptor}").resolve().name[1:-13]  # .NAME.12345678.tmp
        if self.refuses(name):
            self.refused.append(name)
            raise FULL


@pytest.fixture
def disk(monkeypatch) -> Disk:
    found = Disk()
    monkeypatch.setattr(files.os, "fsync", found.check)
    monkeypatch.setattr(LOGGER, "propagate", True)
    return found


WRITERS = {
    "text": lambda path: write_atomic(path, "new"),
    "yaml": lambda path: save_yaml({"a": 1}, path),
    "csv": lambda path: write_csv(path, ["a"], [[1]]),
    "copy": lambda path: copy_atomic(Path(__file__), path),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_a_file_that_the_disk_refuses_keeps_its_earlier_content(kind, tmp_path, disk):
    path = tmp_path / "file"
    path.write_text("old")
    disk.refuses = lambda name: True
    with pytest.raises(StorageError, match=r"file: cannot be written: disk full; an earlier file"):
        WRITERS[kind](path)
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["file"]
    disk.refuses = lambda name: False
    WRITERS[kind](path)
    assert path.read_text() != "old"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])
def test_what_fails_while_a_file_is_written_is_one_line(number, tmp_path, capsys):
    def work(options: TrainOptions) -> None:
        with atomic_open(tmp_path / "x" / "file"):
            raise OSError(number, "what the system says")

    with pytest.raises(SystemExit) as ended, pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["train.py"])
        run_script(TrainOptions, work, "")
    error = capsys.readouterr().err.strip()
    full = number in (errno.ENOSPC, errno.EDQUOT)
    assert ended.value.code == 2 and error.count("\n") == 0
    assert error.startswith(f"error: {tmp_path}/x/file: cannot be written: ")
    assert ("disk full" if full else "what the system says") in error


def test_a_folder_that_a_full_disk_refuses_is_one_line(tmp_path, capsys, monkeypatch):
    def work(options: TrainOptions) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "weights"))

    monkeypatch.setattr("sys.argv", ["train.py"])
    with pytest.raises(SystemExit):
        run_script(TrainOptions, work, "")
    assert capsys.readouterr().err == f"error: {tmp_path}/weights: disk full\n"


def test_a_picture_that_the_disk_refuses_is_a_warning(tmp_path, disk, caplog):
    def fail(file: object) -> None:
        raise OSError("encoder error -2 when writing image file")  # as Pillow does

    save_picture(tmp_path / "a.png", fail)
    assert "a.png: cannot be written: encoder error" in caplog.text
    disk.refuses = lambda name: True
    save_picture(tmp_path / "b.png", lambda file: Figure().savefig(file, format="png"))
    assert "b.png: cannot be written: disk full" in caplog.text
    assert caplog.text.count("the run goes on without") == 2 and not list(tmp_path.iterdir())


def test_only_what_the_disk_refuses_is_dispensable(tmp_path):
    with pytest.raises(ValueError, match="a bug"), dispensable(tmp_path):
        raise ValueError("a bug")


def test_a_log_that_the_disk_refuses_is_one_warning(tmp_path, capsys, monkeypatch):
    with logging_to(tmp_path / "log.txt"):
        log = LOGGER.handlers[-1]
        assert isinstance(log, logging.FileHandler)
        monkeypatch.setattr(log, "flush", lambda: (_ for _ in ()).throw(FULL))
        LOGGER.info("one")
        LOGGER.info("two")
    printed = capsys.readouterr()
    assert printed.out.count("lines are missing: disk full") == 1 and not printed.err


def test_events_that_the_disk_refuses_are_one_warning(tmp_path, capsys, monkeypatch):
    """TensorBoard writes in a thread, whose error is neither a traceback nor the end of the run."""
    pytest.importorskip("tensorboard")
    from tensorboard.summary.writer.record_writer import RecordWriter

    before = threading.excepthook
    events = EventFile(tmp_path, 0)
    monkeypatch.setattr(RecordWriter, "write", lambda *_: (_ for _ in ()).throw(FULL))
    for epoch in range(3):
        events.add(epoch, {"loss": 1.0}, {"gamma": torch.ones(4)})
    events.close()
    printed = capsys.readouterr()
    assert printed.out.count("no TensorBoard events from now on: disk full") == 1
    assert not printed.err and threading.excepthook == before


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


def options(data: Path, folder: Path, **more: object) -> TrainOptions:
    given = {**OPTIONS, "data": str(data), "project": str(folder), **more}
    return TrainOptions(**given)  # type: ignore[arg-type]


def test_training_goes_on_without_pictures_and_tables(data, tmp_path, disk, caplog):
    disk.refuses = lambda name: name.endswith((".png", ".jpg", ".csv"))
    found = train(options(data, tmp_path, noplots=False, epochs=1))
    assert {"labels.jpg", "results.csv", "results.png", "train_batch0.jpg", "PR_curve.png"} <= set(
        disk.refused
    )
    assert found.result is not None and found.best.is_file() and found.last.is_file()
    names = {path.name for path in (tmp_path / "exp").iterdir()}
    assert not any(name.endswith((".png", ".jpg", ".csv", ".tmp")) for name in names)
    assert caplog.text.count("disk full") == len(disk.refused)


@pytest.mark.parametrize("name", ["opt.yaml", "hyp.yaml", "model.yaml", "best.pt", "last.pt"])
def test_what_a_run_needs_ends_it_in_one_line(name, data, tmp_path, disk):
    disk.refuses = lambda given: given == name
    with pytest.raises(StorageError, match=rf"{name}: cannot be written: disk full"):
        train(options(data, tmp_path, epochs=1))
    assert disk.refused == [name]
    assert not [path.name for path in tmp_path.rglob("*.tmp")]


def test_a_checkpoint_that_does_not_fit_leaves_the_one_before_to_resume(data, tmp_path, disk):
    written: list[str] = []

    def full_from_the_third_file(name: str) -> bool:
        written.append(name)
        return name == "last.pt" and written.count("last.pt") == 2

    disk.refuses = full_from_the_third_file
    with pytest.raises(StorageError, match="disk full; an earlier file is untouched"):
        train(options(data, tmp_path, epochs=3))
    last = tmp_path / "exp" / "weights" / "last.pt"
    assert torch.load(last, weights_only=True)["epoch"] == 0
    disk.refuses = lambda name: False
    found = resume(TrainOptions(resume=str(last)))
    assert torch.load(found.last, weights_only=True)["epoch"] == 2


class Full:
    """A file that takes some bytes, then none; torch's zip writer hides the reason."""

    def __init__(self, file: object, most: int):
        self.file, self.left = file, most

    def write(self, content: bytes) -> int:
        self.left -= len(memoryview(content).cast("B")) if len(content) else 0
        if self.left < 0:
            raise FULL
        return self.file.write(content)  # type: ignore[attr-defined]

    def __getattr__(self, name: str) -> object:
        return getattr(self.file, name)


@pytest.mark.parametrize("most", [0, 100, 20_000, 200_000])
def test_a_disk_that_fills_within_a_checkpoint_says_disk_full(most, tmp_path, monkeypatch):
    from models.checkpoint import write_atomically

    opened = files.os.fdopen
    monkeypatch.setattr(files.os, "fdopen", lambda *a, **k: FullFile(opened(*a, **k), most))
    with pytest.raises(StorageError, match=r"x\.pt: cannot be written: disk full"):
        write_atomically({"w": nn.Linear(300, 300).state_dict()}, tmp_path / "x.pt")
    assert not list(tmp_path.iterdir())


class FullFile(Full):
    """The same as a context."""

    def __enter__(self) -> "FullFile":
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()  # type: ignore[attr-defined]


ATOMIC = {"utils/files.py"}
OTHERS = {
    "utils/run_lock.py",  # the lock, which is no result
    "data/demo.py",  # a folder that takes its name once it is whole
    "data/converters/writer.py",  # the same
    "data/converters/publish.py",
    "utils/log.py",
    "utils/cli.py",
}
WRITING = {
    "write_text",
    "write_bytes",
    "savefig",
    "imwrite",
    "copyfile",
    "copy",
    "copy2",
    "copytree",
}


def writes(call: ast.Call) -> bool:
    """Tell whether a call writes to a path; one that writes into an open file does not."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    module = getattr(getattr(call.func, "value", None), "id", "")
    given = [*call.args, *(keyword.value for keyword in call.keywords)]
    modes = [a.value for a in given if isinstance(a, ast.Constant) and isinstance(a.value, str)]
    if name in ("open", "fdopen") and any(
        set(mode) & set("wax+") for mode in modes if len(mode) < 4
    ):
        return True
    if name in ("copy", "copy2", "copytree"):
        return module == "shutil"
    return name in WRITING


def test_every_file_of_a_run_is_written_by_the_atomic_writer():
    found = {
        f"{name}:{node.lineno}"
        for name, path in our_files().items()
        if name not in ATOMIC | OTHERS and not name.startswith("benchmarks/")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and writes(node)
    }
    assert found == set()


def test_the_search_for_writers_finds_them():
    lines = (
        'p.open("w"); open(p, mode="ab"); p.write_text("x"); figure.savefig(p); shutil.copy(a, b)'
    )
    calls = [node for node in ast.walk(ast.parse(lines)) if isinstance(node, ast.Call)]
    assert len(calls) == 5 and all(writes(call) for call in calls)
    assert not any(
        writes(call)
        for call in ast.walk(ast.parse('p.open("rb"); model.copy()'))
        if isinstance(call, ast.Call)
    )


def test_pictures_have_the_format_of_their_name(data, tmp_path):
    train(options(data, tmp_path, noplots=False, epochs=1))
    for path in (tmp_path / "exp").iterdir():
        if path.suffix in (".png", ".jpg"):
            with Image.open(path) as picture:
                assert picture.format == {".png": "PNG", ".jpg": "JPEG"}[path.suffix], path.name
