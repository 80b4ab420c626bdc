"""CommonMark to the few marks that WeCom shows, in parts that fit (90236 发送应用消息, markdown).

Shown are headings, bold, links, inline code and quotes. Lists, tables and blocks of code become plain lines,
pictures become links, and italics are left out.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from markdown_it import MarkdownIt
from markdown_it.tree import SyntaxTreeNode

from plugins.channels.wecom.text import LIMIT_BYTES, sentences, size, split

_RULE = "————"
_PARSER = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"])


@dataclass(frozen=True, slots=True)
class Span:
    """Words within a line, and the marks around them."""

    words: str
    before: str = ""
    after: str = ""

    def __str__(self) -> str:
        return self.before + self.words + self.after

    def fragments(self, limit_bytes: int) -> list[str]:
        """The span in pieces, each complete in its marks. Only words are cut: a link stays whole if it can."""
        room = limit_bytes - size(self.before) - size(self.after)
        if not self.before:
            return [part for sentence in sentences(self.words) for part in split(sentence, limit_bytes)]
        if size(self.words) <= room:
            return [str(self)]
        if room < limit_bytes // 2:  # the address of a link that fills the message
            return split(f"{self.words} {self.after.strip('()]')}", limit_bytes)
        return [str(replace(self, words=part)) for part in split(self.words, room)]


@dataclass(frozen=True, slots=True)
class Line:
    """A line as WeCom shows it."""

    prefix: str = ""
    spans: list[Span] = field(default_factory=list)

    def __str__(self) -> str:
        return self.prefix + "".join(map(str, self.spans))

    @property
    def marked(self) -> bool:
        """Whether it needs markdown to look right."""
        return self.prefix.startswith(("#", ">")) or any(span.before for span in self.spans)

    def pieces(self, limit_bytes: int) -> list[str]:
        """The line, in as many lines as it takes."""
        if size(str(self)) <= limit_bytes:
            return [str(self)]
        room = limit_bytes - size(self.prefix)
        fragments = [fragment for span in self.spans for fragment in span.fragments(room)]
        return [self.prefix + piece for piece in _fill(fragments, "", room)]


def convert(markdown: str) -> list[Line]:
    """Read CommonMark."""
    return _blocks(SyntaxTreeNode(_PARSER.parse(markdown)).children)


def pack(lines: Iterable[Line], limit_bytes: int = LIMIT_BYTES) -> list[str]:
    """Join lines to as few texts as they take, each of at most `limit_bytes`."""
    return _fill((piece for line in lines for piece in line.pieces(limit_bytes)), "\n", limit_bytes)


def _fill(pieces: Iterable[str], separator: str, limit_bytes: int) -> list[str]:
    texts: list[str] = []
    for piece in pieces:
        if texts and size(joined := texts[-1] + separator + piece) <= limit_bytes:
            texts[-1] = joined
        else:
            texts.append(piece)
    return [text.strip("\n") for text in texts if text.strip()]


def _blocks(nodes: Iterable[SyntaxTreeNode], *, apart: bool = True) -> list[Line]:
    lines: list[Line] = []
    for node in nodes:
        if lines and apart:
            lines.append(Line())
        lines += _block(node)
    return lines


def _block(node: SyntaxTreeNode) -> list[Line]:
    match node.type:
        case "heading":
            return _prefixed("#" * int(node.tag[1:]) + " ", _lines(node))
        case "blockquote":
            return _prefixed("> ", _blocks(node.children))
        case "bullet_list":
            return [line for item in node.children for line in _item("- ", item)]
        case "ordered_list":
            first = int(node.attrs.get("start", 1))
            return [line for number, item in enumerate(node.children, first) for line in _item(f"{number}. ", item)]
        case "table":
            return [_row(row) for part in node.children for row in part.children]
        case "fence" | "code_block":
            return [Line("", [Span(line)]) for line in node.content.rstrip("\n").split("\n")]
        case "hr":
            return [Line("", [Span(_RULE)])]
        case _:
            return _lines(node)


def _item(marker: str, item: SyntaxTreeNode) -> list[Line]:
    first, *others = _blocks(item.children, apart=False) or [Line()]
    return _prefixed(marker, [first]) + _prefixed(" " * len(marker), others)


def _row(row: SyntaxTreeNode) -> Line:
    first, *others = ([span for line in _lines(cell) for span in line.spans] for cell in row.children)
    return Line("", first + [span for cell in others for span in (Span(" | "), *cell)])


def _prefixed(prefix: str, lines: Iterable[Line]) -> list[Line]:
    return [replace(line, prefix=prefix + line.prefix) for line in lines]


def _lines(block: SyntaxTreeNode) -> list[Line]:
    """The words of a paragraph, heading or cell. An author's line break stays one, as chats show it."""
    lines = [Line()]
    for span in (span for inline in block.children for span in _spans(inline)):
        if span.words == "\n":
            lines.append(Line())
        else:
            lines[-1].spans.append(span)
    return lines


def _spans(node: SyntaxTreeNode) -> Iterator[Span]:
    match node.type:
        case "text":
            yield Span(node.content)
        case "softbreak" | "hardbreak":
            yield Span("\n")
        case "code_inline":
            yield Span(node.content, "`", "`")
        case "strong":
            for span in _children(node):
                yield from [span] if span.before or not span.words.strip() else _bold(span.words)
        case "link":
            yield _link("".join(span.words for span in _children(node)), str(node.attrs["href"]))
        case "image":
            yield _link(node.content, str(node.attrs["src"]))
        case _:
            yield from _children(node)


def _children(node: SyntaxTreeNode) -> Iterator[Span]:
    for child in node.children:
        yield from _spans(child)


def _bold(words: str) -> Iterator[Span]:
    """The marks stand at the words, not at the blanks around them: otherwise they are shown as they are."""
    core = words.strip()
    start = words.index(core)
    yield from (Span(words[:start]), Span(core, "**", "**"), Span(words[start + len(core) :]))


def _link(label: str, address: str) -> Span:
    address = address.replace("(", "%28").replace(")", "%29")
    return Span(label.replace("\n", " ") or address, "[", f"]({address})")
