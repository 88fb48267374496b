"""A gate that many calls pass, and that one may close to be alone."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextvars import ContextVar


class Gate:
    """It belongs to one event loop. A call that is inside passes again."""

    def __init__(self, name: str) -> None:
        self._is_inside: ContextVar[bool] = ContextVar(f"inside {name}", default=False)
        self._inside = 0
        self._open = asyncio.Event()
        self._open.set()
        self._empty = asyncio.Event()
        self._empty.set()

    @contextlib.asynccontextmanager
    async def inside(self) -> AsyncIterator[None]:
        """Wait until the gate is open; it is not closed for good while the caller is inside."""
        if self._is_inside.get():
            yield
            return
        while not self._open.is_set():
            await self._open.wait()
        self._inside += 1
        self._empty.clear()
        before = self._is_inside.set(True)
        try:
            yield
        finally:
            self._is_inside.reset(before)
            self._inside -= 1
            if not self._inside:
                self._empty.set()

    @contextlib.asynccontextmanager
    async def alone(self, timeout_s: float) -> AsyncIterator[None]:
        """Let nobody in, and wait until nobody is inside. For one caller at a time.

        Raises TimeoutError, with the gate open again.
        """
        self._open.clear()
        try:
            async with asyncio.timeout(timeout_s):
                await self._empty.wait()
            yield
        finally:
            self._open.set()
