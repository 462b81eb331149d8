"""Names of users in pictures: any text, drawn as it is written."""

from collections.abc import Iterable


def one_line(text: str) -> str:
    """Return a text with a space for every line break, and `?` for what no font can draw."""
    return " ".join("".join(c if c.isprintable() else _stand_in(c) for c in text).split())


def axis_text(text: str) -> str:
    """Return a text for matplotlib, which would read `$a_{` as mathematics and hide `_a`."""
    line = one_line(text).replace("$", r"\$")
    return f" {line}" if line.startswith("_") else line


def axis_texts(texts: Iterable[str]) -> list[str]:
    """Return several texts for matplotlib; see `axis_text`."""
    return [axis_text(text) for text in texts]


def _stand_in(letter: str) -> str:
    """Return what is drawn for a character that is not printable."""
    return " " if letter.isspace() else "?"
