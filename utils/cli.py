"""Run a script: parse the options, do the work, print a user's error as one line."""

import sys
from collections.abc import Callable
from typing import TypeVar

from utils.errors import UserError
from utils.options.base import parse_options

T = TypeVar("T")


def run_script(kind: type[T], work: Callable[[T], object], description: str | None) -> None:
    """Parse the options from the command line and call `work` with them.

    A `UserError` is printed as one line with exit code 2. Interrupts exit with 130 (SIGINT) or 143
    (SIGTERM), as shells expect; the interrupted code itself prints how to go on.

    Args:
        kind: Class of the options.
        work: Called with the parsed options.
        description: Text at the head of `--help`.
    """
    try:
        work(parse_options(kind, description=description or ""))
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
