"""Image files: 8 or 16 bits, grey, with alpha, turned by EXIF."""

from collections.abc import Iterator
from pathlib import Path

from data.files import IMAGE_SUFFIXES
from data.images import READ_ERRORS, probe_image, read_image
from data.sources.base import SOURCES, Feed, Frame, SourceKind, SourceOptions
from utils.errors import UserError
from utils.files import why_not_regular


class ImageFeed(Feed):
    """One image file."""

    def __init__(self, file: Path):
        super().__init__(str(file), file)

    def frames(self) -> Iterator[Frame]:
        """Yield the image; a file that is cut short counts as unreadable."""
        file = Path(self.place)
        if reason := why_not_regular(file):
            raise UserError(f"{file}: {reason}")
        try:
            white = probe_image(file).white
        except READ_ERRORS as error:
            raise UserError(
                f"{file}: cannot be read as an image, or is cut short ({_brief(error)})"
            ) from None
        yield Frame(read_image(file, white))


def _brief(error: BaseException) -> str:
    """Return the first line of an error's text, without the name of the file."""
    lines = str(error).splitlines() or [""]
    plain = lines[0].partition(": '")[0].partition(" '/")[0].partition(" <")[0]
    return plain[:120] or type(error).__name__


@SOURCES.register("image")
class Image(SourceKind):
    """An image file."""

    @classmethod
    def matches(cls, text: str) -> bool:
        """Return whether the text is the path of a file with a suffix of images."""
        path = Path(text)
        return path.suffix.lower() in IMAGE_SUFFIXES and path.exists() and not path.is_dir()

    @classmethod
    def feeds(cls, text: str, options: SourceOptions) -> list[Feed]:
        """Return the one feed of the image."""
        return [ImageFeed(Path(text))]
