"""Errors that a user can mend: one clear line, exit code 2."""

from collections.abc import Iterable
from difflib import get_close_matches
from reprlib import Repr
from typing import Any

LONGEST_NAME = 200  # characters; longer ones resemble no known name


class UserError(ValueError):
    """Bad input: the message says what is wrong, where, and what would be right.

    Scripts print the message as one line and exit with code 2 (see `utils.cli.run_script`). Bugs of
    the program raise AssertionError instead.
    """


def suggest(name: str, known: Iterable[str]) -> str:
    """Return `"; did you mean 'Conv'?"` for the nearest known name, or "" where none is near."""
    if len(str(name)) > LONGEST_NAME:
        return ""
    lowered = {str(word).lower(): str(word) for word in known}
    near = get_close_matches(str(name).lower(), lowered, n=1, cutoff=0.6)
    return f"; did you mean '{lowered[near[0]]}'?" if near else ""


def brief(value: Any) -> str:
    """Return the `repr` of a value for a message, shortened where it is long, deep or large."""
    return _BRIEF.repr(value)


_BRIEF = Repr()
_BRIEF.maxstring = _BRIEF.maxother = _BRIEF.maxlong = 80
_BRIEF.maxlevel = 3
_BRIEF.maxlist = _BRIEF.maxdict = _BRIEF.maxtuple = _BRIEF.maxset = 10
