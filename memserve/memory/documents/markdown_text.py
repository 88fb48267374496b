"""Markdown as blocks: rendered as HTML, which is read as HTML from elsewhere is. So hidden parts and comments
in it are left out by the same rules.

markdown-it-py follows CommonMark; tables and ~~strikethrough~~ are added, as GitHub has them.
"""

from __future__ import annotations

from markdown_it import MarkdownIt

from memserve.memory.documents.bounds import DocumentBounds
from memserve.memory.documents.html_text import HtmlText

FRONT_MATTER_MAX_LINES = 200
# At its own bound, markdown-it leaves text out without a word. It is more than what HTML may have, so that
# such a document is refused there.
_MORE_LEVELS = 10


def markdown_text(text: str, bounds: DocumentBounds) -> tuple[HtmlText, str, bool]:
    """What it says, the title of its front matter, and whether it has front matter. Raises InvalidField."""
    front, body = _front_matter(text)
    parser = MarkdownIt("commonmark", {"html": True, "maxNesting": bounds.depth + _MORE_LEVELS})
    html: str = parser.enable(["table", "strikethrough"]).render(body)
    titles = [line.partition(":")[2].strip(" \"'") for line in front if line.startswith("title:")]
    return HtmlText(html, bounds), titles[0] if titles else "", bool(front)


def _front_matter(text: str) -> tuple[list[str], str]:
    """The lines between `---` at the begin, and what follows them."""
    if not text.startswith("---\n"):
        return [], text
    lines = text.split("\n", FRONT_MATTER_MAX_LINES)
    for place, line in enumerate(lines[1:FRONT_MATTER_MAX_LINES], 1):
        if line.rstrip() in ("---", "..."):
            return lines[1:place], "\n".join(lines[place + 1 :])
        if not line.strip() or (":" not in line and not line.startswith((" ", "-", "#"))):
            break
    return [], text
