"""What a gateway and its process of Milvus Lite say to each other: one JSON object a line.

1. The gateway asks `{"id", "call", …}` on the process's standard input. An id is greater than the one before.
2. The process answers `{"id", "result"}` or `{"id", "failure"}` on its standard output, in any order. The
   first answer has OPENED as its id: the folder is open and served, or why not.
3. Between the answers stand warnings for the gateway's log: `{"log": {"name", "text"}}`.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO

import numpy as np

from memserve.errors import VectorStoreDamaged, VectorStoreHeld

Message = dict[str, Any]

OPENED = 0
LINE_MAX_BYTES = 256 << 20
"""Of rows that are put at once, as a call of Milvus may have. JSON spells some characters with six bytes."""
TEXT_MAX = 2000
"""Characters of an error or a warning."""


def line_of(message: Message) -> bytes:
    """Paths that are no UTF-8 are told too."""
    return json.dumps(message).encode() + b"\n"


def read(stream: BinaryIO) -> Message | None:
    """The next message. None: the other end is closed, or was killed in the middle of a line.

    Raises ValueError for what is no message.
    """
    line = stream.readline(LINE_MAX_BYTES)
    if not line.endswith(b"\n"):
        if len(line) >= LINE_MAX_BYTES:
            raise ValueError(f"a line has more than {LINE_MAX_BYTES} bytes")
        return None
    message = json.loads(line)
    if not isinstance(message, dict):
        raise ValueError("a line is no object")
    return message


def packed_vector(vector: Sequence[float]) -> str:
    return base64.b64encode(np.asarray(vector, "<f4").tobytes()).decode()


def unpacked_vector(packed: str) -> list[float]:
    numbers: list[float] = np.frombuffer(base64.b64decode(packed), "<f4").tolist()
    return numbers


def failure_of(error: BaseException) -> Message:
    """For `error_from`."""
    match error:
        case VectorStoreHeld():
            return {"held": True}
        case VectorStoreDamaged():
            return {"damaged": error.detail}
        case OSError() if error.errno is not None:
            return {"errno": error.errno, "text": one_line(error.strerror), "file": str(error.filename or "")}
        case _:
            return {"text": one_line(f"{type(error).__name__}: {error}")}


def error_from(failure: Message, other: Callable[[str], Exception]) -> Exception:
    """The error with its type. other: makes one for what has no type here."""
    if failure.get("held"):
        return VectorStoreHeld()
    if "damaged" in failure:
        return VectorStoreDamaged(str(failure["damaged"]))
    if "errno" in failure:
        return OSError(int(failure["errno"]), str(failure["text"]), *filter(None, [failure.get("file")]))
    return other(str(failure.get("text", "it failed")))


def one_line(text: object) -> str:
    return " ".join(str(text).split())[:TEXT_MAX]
