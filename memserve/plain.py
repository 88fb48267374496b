"""Text of others on its way to a terminal or a log: what would command either is spelt out.

Foreign text is everything that a caller stored or sent, a model generated, or a server answered.
"""

from __future__ import annotations

import json
import logging
import re
from typing import Any

LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"

# C0 and C1 control characters, DEL, what turns the direction of text, what ends a line, and halves of
# surrogate pairs.
_COMMANDS = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)
_SHORT = {"\n": "\\n", "\t": "\\t", "\r": "\\r"}


def plain(text: object, *, keep: str = "") -> str:
    r"""The text with every command in it spelt as an escape: "\x1b[2J" with a backslash, not a cleared
    screen.

    keep: commands that stay as they are, such as "\n\t" for text of several lines.
    """
    return _COMMANDS.sub(lambda found: found[0] if found[0] in keep else _spelt(found[0]), str(text))


def paragraphs(text: object) -> str:
    """As `plain`, for text that may have several lines."""
    return plain(text, keep="\n\t")


def json_line(value: Any) -> str:
    """JSON on one line, in which commands are JSON's own escapes: whoever parses it gets the value
    unchanged.
    """
    return _COMMANDS.sub(lambda found: f"\\u{ord(found[0]):04x}", json.dumps(value, ensure_ascii=False))


class PlainFormatter(logging.Formatter):
    """A record is one line, whatever is in it; the lines of a traceback begin with a bar, so that none can
    pass for a record.
    """

    def formatMessage(self, record: logging.LogRecord) -> str:  # logging's name
        record.message = plain(record.message)
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:  # logging's name
        return "\n".join(f"| {plain(line)}" for line in super().formatException(ei).splitlines())


def log_to_stderr(level: int = logging.INFO) -> None:
    """Set the root logger up, once for a process."""
    handler = logging.StreamHandler()
    handler.setFormatter(PlainFormatter(LOG_FORMAT))
    logging.basicConfig(level=level, handlers=[handler])


def _spelt(command: str) -> str:
    number = ord(command)
    return _SHORT.get(command) or (f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}")
