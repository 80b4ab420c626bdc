"""The XML that WeCom and an app send each other, as plain dictionaries in both directions.

An element with children is a dictionary, a repeated element a list, anything else a string.
"""

import re
from collections.abc import Mapping
from typing import Any
from xml.parsers import expat

MAX_DEPTH = 8
"""Deeper than any message of the platform."""
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def write(fields: Mapping[str, Any]) -> str:
    """A document with the root `xml`: strings as CDATA, numbers plain, as the platform writes them.

    Characters that XML cannot hold are left out.
    """
    return f"<xml>{_elements(fields)}</xml>"


def _elements(fields: Mapping[str, Any]) -> str:
    return "".join(_element(name, value) for name, value in fields.items())


def _element(name: str, value: Any) -> str:
    if isinstance(value, list):
        return "".join(_element(name, item) for item in value)
    if isinstance(value, Mapping):
        return f"<{name}>{_elements(value)}</{name}>"
    if isinstance(value, str):
        text = _NOT_XML.sub("", value).replace("]]>", "]]]]><![CDATA[>")
        return f"<{name}><![CDATA[{text}]]></{name}>"
    return f"<{name}>{value}</{name}>"


def read(document: bytes) -> dict[str, Any]:
    """The fields below the root. Raises ValueError for anything but a plain document with the root `xml`."""
    reader = _Reader()
    parser = expat.ParserCreate(encoding="utf-8")
    parser.buffer_text = True
    parser.StartDoctypeDeclHandler = _refuse_doctype
    parser.StartElementHandler = reader.start
    parser.EndElementHandler = reader.end
    parser.CharacterDataHandler = reader.text
    try:
        parser.Parse(document, True)
    except expat.ExpatError as error:
        raise ValueError(f"not XML: {error}") from None
    if set(reader.root) != {"xml"} or not isinstance(reader.root["xml"], dict):
        raise ValueError("the XML has no root <xml> with elements in it")
    return reader.root["xml"]


def _refuse_doctype(*_: object) -> None:
    raise ValueError("the XML has a DOCTYPE, which the platform does not read")


class _Reader:
    def __init__(self) -> None:
        self.root: dict[str, Any] = {}
        self._open: list[tuple[str, dict[str, Any], list[str]]] = [("", self.root, [])]

    def start(self, name: str, attributes: dict[str, str]) -> None:
        if len(self._open) > MAX_DEPTH:
            raise ValueError(f"the XML is nested deeper than {MAX_DEPTH} elements")
        self._open.append((name, {}, []))

    def text(self, text: str) -> None:
        self._open[-1][2].append(text)

    def end(self, name: str) -> None:
        _, children, text = self._open.pop()
        value: Any = children or "".join(text)
        siblings = self._open[-1][1]
        if name not in siblings:
            siblings[name] = value
        elif isinstance(siblings[name], list):
            siblings[name].append(value)
        else:
            siblings[name] = [siblings[name], value]
