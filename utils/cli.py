"""Run a script: parse the options, do the work, print an error that a user can mend as one line."""

import io
import os
import sys
from collections.abc import Callable
from typing import TypeVar

from utils.errors import UserError
from utils.files import refusal
from utils.interrupts import SIGINT_CODE, quiet_interrupts, say_interrupted
from utils.options.base import parse_options
from utils.worker_errors import worker_reason

T = TypeVar("T")

LONGEST_MESSAGE = 2000  # characters
PIPE_CLOSED = 141  # what a shell reports for a program that SIGPIPE ended
LOST_PEER = ("Connection closed by peer", "Connection reset by peer", "NCCL", "[c10d]", "gloo")
"""Words of a collective operation that fails because another process of the run has ended."""


def run_script(kind: type[T], work: Callable[[T], object], description: str | None) -> None:
    """Parse the options from the command line and call `work` with them.

    What a user can mend is printed as one line with exit code 2: a `UserError`, what the operating
    system refuses, and too little memory. Interrupts exit with 130 (SIGINT) or 143 (SIGTERM), as
    shells expect; the interrupted code itself prints how to go on. A reader of the output that has
    gone, as in `| head`, ends the program silently.

    Args:
        kind: Class of the options.
        work: Called with the parsed options.
        description: Text at the head of `--help`.
    """
    _prepare_output()
    try:
        with quiet_interrupts():
            _flushed(lambda: work(parse_options(kind, description=description or "")))
    except UserError as error:
        _fail(str(error))
    except KeyboardInterrupt:
        say_interrupted("")
        raise SystemExit(SIGINT_CODE) from None
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is still buffered goes nowhere
        raise SystemExit(PIPE_CLOSED) from None
    except OSError as error:
        where = error.filename or "the operating system refuses"
        _fail(f"{os.fsdecode(where)}: {refusal(error)}")
    except MemoryError:
        _fail(
            "out of memory: a smaller --imgsz, --batch-size or model, or fewer --workers would fit"
        )
    except RuntimeError as error:
        reason = _plain_reason(error)
        if not reason:
            raise
        _fail(reason)


def _prepare_output() -> None:
    """Let standard output take every text, such as a file name that is not UTF-8, or be closed."""
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115  for the run
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _flushed(work: Callable[[], object]) -> None:
    """Do the work, then flush standard output: a closed pipe is an error here, not at the exit."""
    try:
        work()
    finally:
        sys.stdout.flush()


def _fail(message: str) -> None:
    """Print an error as one line of bounded length and exit with code 2."""
    text = " ".join(message[: 10 * LONGEST_MESSAGE].split())
    if len(text) > LONGEST_MESSAGE:
        text = text[: LONGEST_MESSAGE - 3] + "..."
    rank = os.environ.get("RANK", "0")
    print(f"error: {text}" if rank == "0" else f"error on rank {rank}: {text}", file=sys.stderr)
    raise SystemExit(2) from None


def _plain_reason(error: RuntimeError) -> str:
    """Return what to say of an error of torch that is no bug; "" for a bug."""
    text = str(error)
    if reason := worker_reason(error):
        return reason
    if "can't allocate memory" in text or type(error).__name__ == "OutOfMemoryError":
        return f"out of memory: {text.splitlines()[0]}; a smaller --imgsz or --batch-size would fit"
    distributed = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if distributed and any(words in text for words in LOST_PEER):
        return "another process of this run has ended; its own line says why"
    return ""
