"""Read the lists of a large JSON object one element at a time, in little memory."""

import json
import re
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import IO, Any

from utils.errors import UserError
from utils.files import why_not_regular

CHUNK = 2**20  # characters that are read at a time
MOST_VALUE = 64 * 2**20  # characters of one element
BLANKS = " \t\r\n"
OUTLINE = re.compile(
    r'(?<!\\)"segmentation"\s*:\s*\[[\d\s.,eE+\-\[\]]*\](?=\s*(?:\}|,\s*"[^"\\]*"\s*:))', re.ASCII
)
"""The outline of an object, most of the text of COCO's files, which nobody here reads.

An unescaped quotation mark is outside of every string, and what follows must be the next key or the
end of the object, so that an outline that goes on behind the window is left as it is.
"""


class _Stream:
    """The text of a file, of which only a window is in memory."""

    def __init__(self, file: IO[str], progress: Callable[[int], object]):
        self.file, self.progress = file, progress
        self.text, self.place, self.done = "", 0, False
        self.decode = json.JSONDecoder().raw_decode

    def more(self) -> bool:
        """Read more text behind the window; return False at the end of the file."""
        chunk = self.file.read(max(CHUNK, len(self.text) - self.place))
        text = self.text[self.place :] + chunk
        self.text, self.place = OUTLINE.sub('"segmentation":0', text), 0
        self.done = not chunk
        self.progress(len(chunk))
        return not self.done

    def peek(self) -> str:
        """Return the next character that is no blank, without taking it; "" at the end."""
        while True:
            while self.place < len(self.text) and self.text[self.place] in BLANKS:
                self.place += 1
            if self.place < len(self.text):
                return self.text[self.place]
            if not self.more():
                return ""

    def take(self, expected: str) -> None:
        """Take a character.

        Raises:
            ValueError: Another one comes next.
        """
        found = self.peek()
        if found != expected:
            raise ValueError(f"expected {expected!r}, found {found!r}")
        self.place += 1

    def value(self) -> Any:
        """Take a whole value.

        Raises:
            ValueError: The value is broken, or longer than `MOST_VALUE`.
        """
        self.peek()
        while True:
            try:
                value, end = self.decode(self.text, self.place)
                if end < len(self.text) or self.done:
                    self.place = end
                    return value
            except ValueError:
                if self.done:
                    raise
            if len(self.text) - self.place > MOST_VALUE:
                raise ValueError(f"a value of more than {MOST_VALUE // 2**20} million characters")
            self.more()


def read_lists(
    path: Path, keys: Collection[str], progress: Callable[[int], object] = lambda characters: None
) -> Iterator[tuple[str, Any]]:
    """Yield (key, element) for each element of the lists under some keys of a JSON object.

    Args:
        path: File with one JSON object.
        keys: Keys of the lists; other keys are passed over.
        progress: Called with the number of characters that were read since the last call.

    Raises:
        UserError: The file is missing or broken, or has no list under a key; names the file.
    """
    if reason := why_not_regular(path):
        raise UserError(f"{path}: {reason}")
    try:
        with path.open(encoding="utf-8-sig") as file:
            yield from _lists(_Stream(file, progress), keys)
    except (ValueError, RecursionError, OSError) as error:  # UnicodeDecodeError is a ValueError
        deep = isinstance(error, RecursionError)
        what = "nested too deep" if deep else getattr(error, "msg", str(error))[:200]
        raise UserError(f"{path}: broken JSON: {what}") from None


def _lists(stream: _Stream, keys: Collection[str]) -> Iterator[tuple[str, Any]]:
    """Yield the elements; see `read_lists`."""
    missing = set(keys)
    stream.take("{")
    while stream.peek() != "}":
        key = stream.value()
        stream.take(":")
        if key in keys and stream.peek() == "[":
            missing.discard(key)
            for element in _elements(stream):
                yield key, element
        else:
            stream.value()
        if stream.peek() != "}":
            stream.take(",")
    stream.take("}")
    if stream.peek():
        raise ValueError("something follows the object")
    if missing:
        raise ValueError(f"has no list {min(missing)!r}")


def _elements(stream: _Stream) -> Iterator[Any]:
    """Yield the elements of a list."""
    stream.take("[")
    while stream.peek() != "]":
        yield stream.value()
        if stream.peek() != "]":
            stream.take(",")
    stream.take("]")
