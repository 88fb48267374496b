"""HTML as blocks. What a reader does not see is left out: scripts, styles, comments, hidden elements.

selectolax (lexbor) reads it by the rules of browsers. It knows no entities but HTML's own, loads nothing, and
neither it nor this file recurses.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum

from selectolax.lexbor import LexborHTMLParser, LexborNode, SelectolaxError

from memserve.errors import InvalidField
from memserve.memory.documents.bounds import DocumentBounds
from memserve.memory.documents.document import BlockKind, Outline

LANGUAGE_MAX_CHARACTERS = 40
LIST_NUMBER_MAX = 1_000_000

_LEFT_OUT_TAGS = (
    "script style template noscript iframe object embed canvas svg audio video head title datalist -comment"
    " !doctype"
)
_LEFT_OUT = frozenset(_LEFT_OUT_TAGS.split())
_HEADINGS = {f"h{level}": level for level in range(1, 7)}
_INLINE_TAGS = (
    "a abbr acronym b bdi bdo big cite code data del dfn em font i ins kbd label mark nobr output q rp rt"
    " ruby s samp small span strike strong sub sup time tt u var wbr img"
)
_INLINE = frozenset(_INLINE_TAGS.split())
_ITEM_INDENT = "  "
# A text that does not exist in a document that has been read: a line break that the document asks for.
_BREAK = "\0"


class HtmlText:
    """What one HTML document says."""

    def __init__(self, html: str, bounds: DocumentBounds) -> None:
        """Raises InvalidField when it is nested too deeply or has too much text, MemoryError."""
        try:
            self._tree = LexborHTMLParser(html)
        except SelectolaxError:
            # lexbor reads any text. Memory alone can fail it.
            raise MemoryError from None
        _check_depth(self._tree.root, bounds.depth)
        self.outline = Outline(bounds)
        titles = self._tree.css("title") if self._tree.root is not None else []
        self.title = " ".join(titles[0].text().split()) if titles else ""
        _Walk(self.outline).through(self._tree.body)


class _Step(Enum):
    ENTER = "enter"
    LEAVE = "leave"
    WHOLE = "whole"
    """The element is taken as one. The steps go on behind it."""


class _Walk:
    """The elements in order. Text is collected until a block ends."""

    def __init__(self, outline: Outline) -> None:
        self._outline = outline
        self._inline: list[str] = []
        # The next number of each list that is open. None: its items have no numbers.
        self._lists: list[int | None] = []
        # The lines of the outermost item that is open. None: no item is.
        self._item: list[str] | None = None
        self._items_open = 0
        self._marker = ""

    def through(self, body: LexborNode | None) -> None:
        for step, node in _steps(body):
            tag = node.tag or ""
            if tag == "-text":
                self._inline.append(node.text_content or "")
            elif tag == "br":
                self._inline.append(_BREAK if step is _Step.ENTER else "")
            elif step is _Step.WHOLE:
                self._whole(node, tag)
            elif tag == "img":
                alternative = node.attributes.get("alt") if step is _Step.ENTER else None
                self._inline.append(f" {alternative} " if alternative else "")
            elif tag not in _INLINE:
                self._end_of_block()
                self._structure(step, node, tag)
        self._end_of_block()

    def _structure(self, step: _Step, node: LexborNode, tag: str) -> None:
        entering = step is _Step.ENTER
        if tag in ("ul", "ol", "menu"):
            if entering:
                self._lists.append(_first_number(node) if tag == "ol" else None)
            elif self._lists:
                self._lists.pop()
        elif tag == "li":
            self._enter_item() if entering else self._leave_item()

    def _enter_item(self) -> None:
        self._items_open += 1
        if self._item is None:
            self._item = []
        self._marker = "- "
        if self._lists and (number := self._lists[-1]) is not None:
            self._marker, self._lists[-1] = f"{number}. ", number + 1

    def _leave_item(self) -> None:
        self._items_open -= 1
        if self._items_open == 0 and self._item is not None:
            self._outline.block(BlockKind.ITEM, "\n".join(self._item))
            self._item = None
        self._marker = ""

    def _end_of_block(self) -> None:
        text = _collapsed("".join(self._inline))
        self._inline.clear()
        if not text:
            return
        if self._item is None:
            self._outline.block(BlockKind.TEXT, text)
        else:
            self._add_to_item(text)

    def _add_to_item(self, text: str) -> None:
        assert self._item is not None
        indent = _ITEM_INDENT * (self._items_open - 1)
        first, *others = text.split("\n")
        begin = self._marker or _ITEM_INDENT
        self._item.append(f"{indent}{begin}{first}")
        self._item += [f"{indent}{_ITEM_INDENT}{line}" for line in others]
        self._marker = ""

    def _whole(self, node: LexborNode, tag: str) -> None:
        self._end_of_block()
        if tag in _HEADINGS:
            self._outline.heading(_HEADINGS[tag], _inline_text(node))
            return
        if tag == "pre":
            code = _plain_text(node).removeprefix("\n").rstrip()
            fence = _fence(code)
            kind, opening, text, closing = BlockKind.CODE, fence + _language(node), code, fence
        else:
            caption, header, rows = _table(node)
            self._inline.append(caption)
            self._end_of_block()
            kind, opening, text, closing = BlockKind.TABLE, header, "\n".join(rows), ""
            if not rows:
                opening, text = "", header
        if self._item is None:
            self._outline.block(kind, text, opening=opening, closing=closing)
        elif text.strip():
            self._add_to_item("\n".join(part for part in (opening, text, closing) if part))


def _steps(root: LexborNode | None) -> Iterator[tuple[_Step, LexborNode]]:
    """The nodes that a reader sees, in document order. Texts are entered only."""
    stack = [(_Step.ENTER, root)] if root is not None else []
    while stack:
        step, node = stack.pop()
        if step is _Step.LEAVE:
            yield step, node
            continue
        tag = node.tag or ""
        if tag in _LEFT_OUT or (tag != "-text" and _is_hidden(node)):
            continue
        if tag == "pre" or (tag == "table" and not _is_layout(node)) or _is_heading(node, tag):
            yield _Step.WHOLE, node
            continue
        yield step, node
        if tag == "-text":
            continue
        stack.append((_Step.LEAVE, node))
        children, child = [], node.child
        while child is not None:
            children.append((_Step.ENTER, child))
            child = child.next
        stack.extend(reversed(children))


def _is_heading(node: LexborNode, tag: str) -> bool:
    """A heading in a list's item or in a quotation is not one of the document's."""
    if tag not in _HEADINGS:
        return False
    parent = node.parent
    while parent is not None and parent.tag not in ("li", "blockquote"):
        parent = parent.parent
    return parent is None


def _is_hidden(node: LexborNode) -> bool:
    attributes = node.attributes
    if not attributes:
        return False
    style = "".join((attributes.get("style") or "").lower().split())
    return (
        "hidden" in attributes
        or (attributes.get("aria-hidden") or "").lower() == "true"
        or "display:none" in style
        or "visibility:hidden" in style
    )


def _is_layout(table: LexborNode) -> bool:
    """Tables in tables, and tables with headings, lists or code in their cells, place a page's parts."""
    node = table.child
    while node is not None:
        if node.tag in ("table", "ul", "ol", "pre") or node.tag in _HEADINGS:
            return True
        node = _next_within(table, node)
    return False


def _next_within(root: LexborNode, node: LexborNode) -> LexborNode | None:
    """The node behind this one in document order. None: it was the last one inside `root`."""
    if node.child is not None:
        return node.child
    at: LexborNode | None = node
    while at is not None and at.mem_id != root.mem_id:
        if at.next is not None:
            return at.next
        at = at.parent
    return None


def _check_depth(root: LexborNode | None, most: int) -> None:
    node, depth = root, 0
    while node is not None:
        if depth > most:
            raise InvalidField("document", f"is nested too deeply: at most {most} elements inside each other")
        if node.child is not None:
            node, depth = node.child, depth + 1
            continue
        while node is not None and node.next is None:
            node, depth = node.parent, depth - 1
        node = node.next if node is not None else None


def _plain_text(root: LexborNode) -> str:
    """The text with its own line ends, of a block of code."""
    return "".join(_texts(root)).replace(_BREAK, "\n")


def _inline_text(root: LexborNode) -> str:
    return _collapsed("".join(_texts(root))).replace("\n", " ")


def _texts(root: LexborNode) -> Iterator[str]:
    """The texts that a reader sees within one element. Blocks inside it are set apart by a space."""
    stack = [root]
    while stack:
        node = stack.pop()
        tag = node.tag or ""
        if tag == "-text":
            yield node.text_content or ""
        elif tag == "br":
            yield _BREAK
        elif tag == "img":
            yield node.attributes.get("alt") or ""
        elif tag == "":
            yield " "
        elif tag not in _LEFT_OUT and not _is_hidden(node):
            if tag not in _INLINE and node.mem_id != root.mem_id:
                yield " "
            children, child = [], node.child
            while child is not None:
                children.append(child)
                child = child.next
            stack.extend(reversed(children))


def _table(table: LexborNode) -> tuple[str, str, list[str]]:
    """The caption, the header row ("" for none) and the other rows. Cells stand between bars."""
    caption, header = "", ""
    rows: list[str] = []
    node = table.child
    while node is not None:
        if node.tag == "caption" and not _is_hidden(node):
            caption = f"{caption} {_inline_text(node)}".strip()
        elif node.tag == "tr" and not _is_hidden(node):
            cells = _cells(node)
            is_header = not header and not rows and _is_header(node, cells)
            texts = [_inline_text(cell).replace("|", "\\|") for cell in cells]
            line = f"| {' | '.join(texts)} |"
            if is_header:
                header = line
            elif line.strip("| "):
                rows.append(line)
        node = _next_within(table, node)
    return caption, header, rows


def _cells(row: LexborNode) -> list[LexborNode]:
    cells, cell = [], row.child
    while cell is not None:
        if cell.tag in ("td", "th") and not _is_hidden(cell):
            cells.append(cell)
        cell = cell.next
    return cells


def _is_header(row: LexborNode, cells: list[LexborNode]) -> bool:
    parent = row.parent
    in_head = parent is not None and parent.tag == "thead"
    return bool(cells) and (in_head or all(cell.tag == "th" for cell in cells))


def _first_number(node: LexborNode) -> int:
    start = node.attributes.get("start") or "1"
    number = int(start) if start.isascii() and start.isdigit() and len(start) < 8 else 1
    return min(number, LIST_NUMBER_MAX)


def _language(pre: LexborNode) -> str:
    """As Markdown and its highlighters name it: `class="language-python"` of the code inside."""
    code = pre.child
    while code is not None and code.tag != "code":
        code = code.next
    classes = ((code if code is not None else pre).attributes.get("class") or "").split()
    languages = [name.removeprefix("language-") for name in classes if name.startswith("language-")]
    return languages[0] if languages and len(languages[0]) <= LANGUAGE_MAX_CHARACTERS else ""


def _fence(code: str) -> str:
    """Longer than any run of backticks in the code."""
    fence = "```"
    while fence in code and len(fence) < len(code):
        fence += "`"
    return fence


def _collapsed(text: str) -> str:
    """White space as a browser shows it: one space, and a line end only where the document breaks a line."""
    lines = (" ".join(line.split()) for line in text.split(_BREAK))
    return "\n".join(lines).strip("\n")
