"""Read XML of strangers: no document type, so that there are no entities.

Entities are what lets a short XML grow without a bound or read other files; they can be declared in
a document type only. Annotations have none.
"""

from typing import Any
from xml.etree.ElementTree import Element, ParseError, fromstring
from xml.parsers import expat


class BadXmlError(ValueError):
    """An XML that is broken or that is not read; the message says why."""


def parse_xml(content: bytes) -> Element:
    """Return the root element of an XML document.

    A first pass looks for a document type alone; the same library reads the tree in a second one.

    Raises:
        BadXmlError: It is broken or has a document type.
    """
    parser = expat.ParserCreate()
    parser.StartDoctypeDeclHandler = _refuse
    try:
        parser.Parse(content, True)
        return fromstring(content)
    except (expat.ExpatError, ParseError) as error:
        raise BadXmlError(f"broken XML: {error}") from None
    except (LookupError, UnicodeDecodeError):
        raise BadXmlError("broken XML: of an unknown encoding") from None


def _refuse(*_: Any) -> None:
    """Refuse a document type, before anything that it declares is read."""
    raise BadXmlError("has a document type (DOCTYPE), which is not read")
