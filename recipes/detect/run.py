"""`detect.py`: search images, videos, streams and cameras with a model of any format."""

import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from itertools import chain
from pathlib import Path

import torch
from tqdm import tqdm

from data.config import load_names
from data.sources import Feed, Frame, SourceOptions, frames_of, open_sources
from data.sources.stream import Stream, without_password
from deploy import load_runtime
from recipes.detect.detector import Detector, check_classes
from recipes.detect.names import RECORD, feed_names, protect_user_files
from recipes.detect.outputs import Found, Output, make_outputs
from recipes.detect.tally import Tally, log_live
from recipes.detect.window import Closed, Window
from utils.engine.device import device_name, select_device
from utils.engine.run_hooks import GracefulStop
from utils.errors import UserError
from utils.log import LOGGER, logging_to
from utils.options.detect import DetectOptions
from utils.run_lock import run_lock
from utils.rundir import environment, make_run_dir, save_options


def detect(opt: DetectOptions) -> Tally:
    """Search the sources and write what the options ask for into a run folder.

    All that can be wrong is checked before the run folder is made.

    Raises:
        UserError: No model, no source, or nothing in it can be read.
    """
    opt.check()
    device = select_device(opt.device)
    window = Window() if opt.view_img else None
    feeds = open_sources(opt.source, SourceOptions(opt.vid_stride))
    runtime = load_runtime(opt.weights, device=device)
    names = shown_names(runtime.names, opt)
    check_classes(opt.classes, names)
    if opt.save_conf and not opt.save_txt:
        LOGGER.warning("--save-conf has no effect without --save-txt")
    detector = Detector(runtime, opt, device)
    if opt.exist_ok:
        protect_user_files(feeds, Path(opt.project) / opt.name)

    with closing(frames_of(feeds)) as frames:
        first = next(frames, None)
        if first is None:
            raise UserError(nothing_read(feeds))
        folder = make_run_dir(opt.project, opt.name, opt.exist_ok)
        with run_lock(folder), logging_to(folder / "log.txt"):
            record_options(opt, folder, device)
            outputs = make_outputs(opt, names, folder, window)
            tally = Tally(names, feeds)
            search(detector, chain([first], frames), outputs, tally, folder)
            report(detector, tally, folder)
    return tally


def search(
    detector: Detector,
    frames: Iterator[tuple[Feed, Frame]],
    outputs: Sequence[Output],
    tally: Tally,
    folder: Path,
) -> None:
    """Search all frames and write the outputs; Ctrl-C finishes the files that are open.

    Args:
        detector: Finds the boxes of a frame.
        frames: Frames with their feeds.
        outputs: Get the boxes of each frame, and are closed whatever happens.
        tally: Counts the boxes.
        folder: Run folder, for the line of an interrupted run.
    """
    names = feed_names(tally.feeds)
    counts = [feed.count() for feed in tally.feeds]
    total = None if None in counts else sum(count or 0 for count in counts)
    with GracefulStop(lambda: tally.progress(folder)), ExitStack() as closed:
        for output in outputs:
            closed.callback(output.close)
        bar = tqdm(frames, "Detecting", total, unit="image", leave=False, dynamic_ncols=True)
        for feed, frame in bar:
            if not tally.frames:
                detector.warm_up(frame.pixels)
            found = Found(feed, frame, detector(frame.pixels), names[feed])
            try:
                with detector.clock("write"):
                    for output in outputs:
                        output.add(found)
            except Closed:
                LOGGER.info("--view-img: the window was closed: stopping here")
                return
            tally.add(found)


def report(detector: Detector, tally: Tally, folder: Path) -> None:
    """Log counts, times and the place of the results."""
    tally.log()
    log_live(tally.feeds)
    if detector.unreadable:
        LOGGER.warning(
            f"WARNING: in {detector.unreadable} of {tally.frames} images the model's outputs are"
            " not finite numbers and count as nothing found; its weights overflow"
        )
    times = detector.clock.milliseconds(tally.frames)
    stages = ", ".join(f"{ms:.2f} ms {name}" for name, ms in times.items())
    height, width = detector.runtime.imgsz
    LOGGER.info(
        f"Speed: {stages} per image at {max(height, width)} px, {detector.runtime.name},"
        f" {device_name(detector.device)}"
    )
    LOGGER.info(f"Results saved to {folder}")


def shown_names(names: Sequence[str], opt: DetectOptions) -> list[str]:
    """Return the class names by number: those of --data where given, else the model's.

    Raises:
        UserError: The data YAML has another number of names.
    """
    if not opt.data:
        return list(names)
    given = load_names(opt.data)
    if len(given) != len(names):
        raise UserError(
            f"--data {opt.data}: has {len(given)} names, {opt.weights} has {len(names)} classes"
            f" ({', '.join(names[:5])} ...); leave --data out to see the model's own names"
        )
    return given


def nothing_read(feeds: Sequence[Feed]) -> str:
    """Return the message of a run whose sources gave no frame at all."""
    first = next((feed.reason for feed in feeds if feed.reason), "no frame came")
    if len(feeds) == 1:
        return first
    return f"none of the {len(feeds)} images, videos and streams can be read; the first: {first}"


def record_options(opt: DetectOptions, folder: Path, device: torch.device) -> None:
    """Write `opt.yaml`; passwords in addresses of streams are left out."""
    command = shlex.join(["python", *map(_shown, sys.argv)])
    source = tuple(map(_shown, opt.source))
    save_options(
        replace(opt, source=source), folder / RECORD, **environment(device) | {"command": command}
    )


def _shown(word: str) -> str:
    """Return a word of the command without the password of an address, behind `--source=` too."""
    option, equals, value = word.partition("=") if word.startswith("-") else ("", "", word)
    return option + equals + without_password(value) if Stream.matches(value) else word
