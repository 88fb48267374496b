"""Milvus Lite's folder in the tests' own process: the same code, without half a second for each child.

Tests of the child itself set REAL_CHILD in their module. The store's contract is tried with the child.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from memserve.memory.texts import milvus_lite_wire as wire
from memserve.memory.texts.milvus_client import MilvusFailed
from memserve.memory.texts.milvus_lite_folder import LiteFolder
from memserve.memory.texts.milvus_lite_process import calls_of, facts_of

REAL_CHILD = "REAL_CHILD"


class ChildInside:
    """What `MilvusLiteStore` knows of its child."""

    process_id = os.getpid()
    has_ended = False

    def __init__(self, path: Path) -> None:
        self.socket: Path | None = None
        try:
            self._folder = LiteFolder(path.absolute())
        except Exception as error:
            raise wire.error_from(_sent(wire.failure_of(error)), MilvusFailed) from error
        self._calls = calls_of(self._folder)

    def opened(self) -> wire.Message:
        return facts_of(self._folder)

    def call(self, call: str, *, within_s: float = 0.0, ends_late: bool = True, **arguments: object) -> None:
        try:
            self._calls[call](**_sent(arguments))
        except Exception as error:
            raise wire.error_from(_sent(wire.failure_of(error)), MilvusFailed) from error

    def when_ended(self, call: Callable[[], object]) -> None:
        """It does not end."""

    def close(self, *, clean: bool) -> None:
        self.call("close", clean=clean)


def _sent(message: dict[str, Any]) -> dict[str, Any]:
    """As it comes out at the other end of a pipe."""
    came = wire.read(io.BytesIO(wire.line_of(message)))
    assert came is not None
    return came
