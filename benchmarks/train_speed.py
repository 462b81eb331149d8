"""Compare the images/s of train.py's loop with those of the bare network.

    python benchmarks/train_speed.py [seconds a model]

The loop has loader, augmentation, loss, optimizer, EMA and bookkeeping. The bare network is forward
and backward of the same model on one fixed tensor: in torch's default layout, and in the loop's own
(channels last). All are timed in turns, so that whatever else the machine does hits both. Turns are
long, because the data worker prepares four batches ahead while the bare network runs.
"""

import contextlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from data.config import load_data  # noqa: E402
from models import Model, build_model  # noqa: E402
from recipes.session import Session, TrainingRun, build_trainer  # noqa: E402
from utils.config import load_hyp  # noqa: E402
from utils.engine.dist import World  # noqa: E402
from utils.engine.hooks import Hook, TrainerState  # noqa: E402
from utils.engine.tasks import DetectionTask  # noqa: E402
from utils.options.train import TrainOptions  # noqa: E402

IMGSZ, BATCH, THREADS, TURN = 160, 16, 2, 20


class BareTurns(Hook):
    """Hook that interrupts the loop every few batches and runs each bare network for as many.

    The loop's clock stands still meanwhile. The run ends by StopIteration after `seconds`.
    """

    def __init__(self, bare: dict[str, Callable[[], None]], seconds: float):
        self.bare, self.seconds = bare, seconds
        self.loop: list[float] = []
        self.alone: dict[str, list[float]] = {name: [] for name in bare}

    def on_fit_start(self, trainer: TrainerState) -> None:
        """Run each bare network once, uncounted, and start the clocks."""
        for step in self.bare.values():
            step()
        self.end, self.count, self.start = time.perf_counter() + self.seconds, -1, 0.0

    def on_batch_end(self, trainer: TrainerState) -> None:
        """End a turn every `TURN` batches.

        The first turn, in which loader and caches start, is left out.
        """
        self.count += 1
        if self.count % TURN:
            return
        now = time.perf_counter()
        if self.count:
            self.loop.append((now - self.start) / TURN)
            for name, step in self.bare.items():
                begin = time.perf_counter()
                for _ in range(TURN):
                    step()
                self.alone[name].append((time.perf_counter() - begin) / TURN)
        self.start = time.perf_counter()
        if self.start > self.end:
            raise StopIteration


def bare_step(model: Model, layout: torch.memory_format) -> Callable[[], None]:
    """Return a function that runs forward and backward on a fixed tensor in a memory layout."""
    model.train().to(memory_format=layout)  # type: ignore[call-overload]
    images = torch.rand(BATCH, 3, IMGSZ, IMGSZ).contiguous(memory_format=layout)

    def step() -> None:
        torch.stack([level.float().mean() for level in model(images)]).sum().backward()
        model.zero_grad(set_to_none=True)

    return step


def measure(cfg: str, seconds: float) -> None:
    """Print the images/s of the loop and of the bare networks, and their ratios, for one model."""
    data = load_data("demo")
    model = build_model(cfg, nc=data.nc)
    layouts = {"default layout": torch.contiguous_format, "channels last": torch.channels_last}
    bare = {
        name: bare_step(build_model(cfg, nc=data.nc), layout) for name, layout in layouts.items()
    }
    model.names = data.names
    opt = TrainOptions(imgsz=IMGSZ, noplots=True, workers=1, cache="ram", epochs=1000)
    turns = BareTurns(bare, seconds)
    with tempfile.TemporaryDirectory() as folder:
        run = TrainingRun(model, data, load_hyp("scratch-low"), opt, Path(folder))
        session = Session(run, World(), torch.device("cpu"))
        trainer = build_trainer(session, DetectionTask, [turns])
        trainer.evaluate = None
        with contextlib.suppress(StopIteration):
            trainer.fit()
    loop = statistics.median(turns.loop)
    print(
        f"{cfg}: train.py {BATCH / loop:.1f} images/s (medians of {len(turns.loop)} turns of {TURN}"
        " batches)"
    )
    for name, times in turns.alone.items():
        alone = statistics.median(times)
        print(f"  bare network, {name}: {BATCH / alone:.1f} images/s, ratio {alone / loop:.3f}")


def main() -> None:
    """Measure YOLOv5n and YOLOv7-tiny."""
    torch.set_num_threads(THREADS)
    print(
        f"{IMGSZ} px, batch {BATCH}, {THREADS} threads, demo set cached in memory, hyp scratch-low,"
        " one data worker"
    )
    for cfg in ("yolov5n", "yolov7-tiny"):
        measure(cfg, float(sys.argv[1]) if len(sys.argv) > 1 else 90.0)


if __name__ == "__main__":
    main()
