"""Foreign text on its way to a terminal or a log. A character that commands either of them is spelt out.

Foreign text is everything that a caller stored or sent, a model generated, or a server answered.
"""

from __future__ import annotations

import json
import logging
import re
from typing import Any

LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"

# C0 and C1 control characters, DEL, marks that turn the direction of text, separators that end a line, and
# halves of surrogate pairs.
_COMMANDS = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)
_SHORT = {"\n": "\\n", "\t": "\\t", "\r": "\\r"}


def plain(text: object, *, keep: str = "") -> str:
    r"""The text with every command in it spelt as an escape: "\x1b[2J" with a backslash, not a cleared
    screen.

    keep: commands that stay as they are, such as "\n\t" for text of several lines.
    """
    return _COMMANDS.sub(lambda match: match[0] if match[0] in keep else _spelt(match[0]), str(text))


def paragraphs(text: object) -> str:
    """As `plain`, for text that may have several lines."""
    return plain(text, keep="\n\t")


def json_line(value: Any) -> str:
    """JSON on one line. Commands in it are JSON's own escapes, so that a parser gets the value unchanged."""
    return json_escaped(json.dumps(value, ensure_ascii=False))


def json_escaped(line: str) -> str:
    """The same for a line that is JSON already."""
    return _COMMANDS.sub(lambda match: f"\\u{ord(match[0]):04x}", line)


class PlainFormatter(logging.Formatter):
    """A record is one line, whatever its text is. The lines of a traceback begin with a bar, so that no line
    looks like a record.
    """

    # Both names are logging's.

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = plain(record.message)
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:
        return "\n".join(f"| {plain(line)}" for line in super().formatException(ei).splitlines())


def _spelt(command: str) -> str:
    number = ord(command)
    return _SHORT.get(command) or (f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}")
