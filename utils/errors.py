"""Errors that are the user's to mend: one clear line, exit code 2."""

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(ValueError):
    """Bad input: the message says what is wrong, where, and what would be right.

    Scripts print it as one line and exit with code 2 (see `utils.cli.run_script`). Our own bugs are
    asserts instead.
    """


def suggest(name: str, known: Iterable[str]) -> str:
    """`"; did you mean 'Conv'?"` for the nearest of `known`, or an empty string where nothing is
    near.
    """
    known = [str(k) for k in known]
    lowered = {k.lower(): k for k in known}
    near = get_close_matches(str(name).lower(), lowered, n=1, cutoff=0.6)
    return f"; did you mean '{lowered[near[0]]}'?" if near else ""
