"""The room that an engine has for modules of one kind: what it holds, what is used or pinned, who waits for
room and who leaves.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Protocol

from memserve.domain import ModulePlace
from memserve.errors import MemserveError
from memserve.policy.modules.residency import leaves_first, pins_at_most

Places = dict[str, ModulePlace]
"""Digest to DEVICE or HOST of what the engine holds of one kind, least recently used first."""


class ModuleRefused(MemserveError):
    """This worker does not do what was asked with the module now; another may."""

    def __init__(self, digest: str, why: str) -> None:
        super().__init__(f"module {digest}: {why}")


class Holder(Protocol):
    """How an engine holds the modules of one kind. capacity: how many at most; `setting` names it."""

    @property
    def capacity(self) -> int: ...

    @property
    def setting(self) -> str: ...

    async def places(self) -> Places:
        """Ask the engine."""

    async def load(self, digest: str, folder: Path, leaving: str | None) -> Places:
        """Take the module in, and let `leaving` go for it. Raises InvalidModule when the engine refuses
        it.
        """

    async def unload(self, digest: str) -> Places: ...


class _Abandoned(Exception):
    """All who wanted the module have gone before there was room for it."""


class Room:
    """`held` is the engine's own word, as of when it was last asked.

    Who needs room waits for it, first come, first served. For the first in line one module is set to leave as
    soon as its present uses have ended: without that, modules in steady use would keep others out for ever.
    """

    def __init__(self, holder: Holder) -> None:
        self.holder = holder
        self.held: Places = {}
        self.pinned: set[str] = set()
        self._uses: Counter[str] = Counter()
        # By those whose use has not begun.
        self._wanted: Counter[str] = Counter()
        self._loading: dict[str, asyncio.Task[None]] = {}
        # Whoever has it is the first in line.
        self._turn = asyncio.Lock()
        self._to_leave: str | None = None
        # One exchange at a time: who leaves is decided on what the engine holds. Never held while waiting for
        # room.
        self._exchanging = asyncio.Lock()
        self._changed = asyncio.Event()

    @property
    def in_use(self) -> set[str]:
        """What requests use, or wait for."""
        return {*self._uses, *self._wanted}

    @contextlib.asynccontextmanager
    async def using(self, digest: str, fetch: Callable[[], Awaitable[Path]]) -> AsyncIterator[None]:
        """Have the module loaded, from the folder that `fetch` gives, and keep it loaded while the context is
        open.

        Raises as `fetch` and the holder's `load`, and ModuleRefused when waiting for room is of no use.
        """
        self._wanted[digest] += 1
        try:
            await self._ensure(digest, fetch)
            self._uses[digest] += 1
        finally:
            self._released(self._wanted, digest)
        try:
            yield
        finally:
            self._released(self._uses, digest)
            if digest in self.held:
                self.held[digest] = self.held.pop(digest)  # to the end: the most recently used

    def check_pin(self, digest: str) -> None:
        """Raises ModuleRefused where as many are pinned as may be."""
        most = pins_at_most(self.holder.capacity)
        if digest not in self.pinned and len(self.pinned) >= most:
            rule = (
                f"{most} of the {self.holder.capacity} that fit (setting {self.holder.setting}) are "
                "pinned, and no more may be"
            )
            raise ModuleRefused(digest, f"{rule}; it is loaded when it is asked for")

    def pin(self, digest: str) -> None:
        """Keep it until it is unloaded or unpinned. Raises as `check_pin`."""
        self.check_pin(digest)
        self.pinned.add(digest)
        self._changed.set()

    def unpin(self, digest: str) -> None:
        self.pinned.discard(digest)
        self._changed.set()

    async def unload(self, digest: str) -> None:
        """Raises ModuleRefused while a request uses it."""
        async with self._exchanging:
            if digest in self.in_use:
                raise ModuleRefused(digest, "requests use it; unload it when they have ended")
            self.unpin(digest)
            if self.held.pop(digest, None) is not None:
                self.held = await self.holder.unload(digest)
        self._changed.set()

    async def refresh(self) -> None:
        """Ask the engine. Not during an exchange, which asks it at its end."""
        if not self._exchanging.locked():
            async with self._exchanging:
                self.held = await self.holder.places()
            self._changed.set()

    async def _ensure(self, digest: str, fetch: Callable[[], Awaitable[Path]]) -> None:
        while digest not in self.held or digest == self._to_leave:
            if digest not in self._loading:
                self._loading[digest] = asyncio.create_task(self._load(digest, fetch))
                self._loading[digest].add_done_callback(lambda task: self._loaded(digest, task))
            # Several may wait for it: one that is cancelled leaves it to the others.
            with contextlib.suppress(_Abandoned):
                await asyncio.shield(self._loading[digest])

    def _loaded(self, digest: str, task: asyncio.Task[None]) -> None:
        del self._loading[digest]
        if not task.cancelled():
            task.exception()  # where all who waited have gone, nobody else asks for it

    async def _load(self, digest: str, fetch: Callable[[], Awaitable[Path]]) -> None:
        folder = await fetch()
        async with self._turn:
            try:
                while not await self._exchanged(digest, folder):
                    await self._changed.wait()
            finally:
                self._to_leave = None

    async def _exchanged(self, digest: str, folder: Path) -> bool:
        """Whether the module is in now. False: look again when something has changed.

        Only the first in line comes here.
        """
        async with self._exchanging:
            self._changed.clear()
            if digest not in self._wanted:
                raise _Abandoned
            if digest in self.held:
                return True
            leaving = None
            if len(self.held) >= self.holder.capacity:
                # What was set to leave is not kept by those who want it: they are in line again.
                kept = {*self._uses, *(self._wanted.keys() - {self._to_leave})}
                leaving = leaves_first(self.held, pinned=self.pinned, in_use=kept)
                if leaving is None:
                    self._set_to_leave(digest)
                    return False
                # From now on nobody may count on it.
                del self.held[leaving]
            try:
                self.held = await self.holder.load(digest, folder, leaving)
            except Exception:
                self.held = await self.holder.places()
                raise
            return True

    def _set_to_leave(self, digest: str) -> None:
        """Raises ModuleRefused where all are pinned, so that waiting is of no use."""
        if self.held.keys() <= self.pinned:
            raise ModuleRefused(
                digest, f"no room: all {len(self.held)} modules are pinned (setting {self.holder.setting})"
            )
        if self._to_leave not in self.held or self._to_leave in self.pinned:
            # One that has just come for somebody is used first.
            self._to_leave = leaves_first(self.held, pinned=self.pinned, in_use=self._wanted)

    def _released(self, count: Counter[str], digest: str) -> None:
        count[digest] -= 1
        if not count[digest]:
            del count[digest]
        self._changed.set()
