"""The room that an engine has for modules of one kind.

This decides which modules stay because they are used or pinned, which wait for room, and which leave.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Protocol, runtime_checkable

from memserve.domain import ModulePlace
from memserve.errors import MemserveError
from memserve.policy.modules.residency import leaves_first, pins_at_most

Places = dict[str, ModulePlace]
"""The modules of one kind that an engine holds: by digest, DEVICE or HOST. Least recently used first."""


class ModuleRefused(MemserveError):
    """This worker cannot do what a call asks of a module now. Another worker may."""

    def __init__(self, digest: str, why: str) -> None:
        super().__init__(f"module {digest}: {why}")


class Holder(Protocol):
    """How an engine holds the modules of one kind."""

    @property
    def capacity(self) -> int:
        """How many modules the engine holds at most."""
        ...

    @property
    def setting(self) -> str:
        """The setting that decides the capacity, as messages name it."""
        ...

    async def places(self) -> Places:
        """Ask the engine which modules it holds."""

    async def load(self, digest: str, folder: Path, leaving: str | None) -> Places:
        """Load the module, and let `leaving` go. Returns the places after that.

        folder: of the module's files.
        Raises InvalidModule when the engine refuses the module, and ModuleRefused when it cannot load it now.
        """

    async def unload(self, digest: str) -> Places:
        """Let the module go. Returns the places after that."""
        ...


@runtime_checkable
class SizedHolder(Holder, Protocol):
    """A holder whose modules also have a bound in bytes together."""

    @property
    def capacity_bytes(self) -> int: ...

    @property
    def bytes_setting(self) -> str:
        """The setting that decides it, as messages name it."""
        ...

    async def size_bytes(self, folder: Path) -> int:
        """What the module takes of it. folder: of the module's files. Raises InvalidModule."""
        ...


class _Abandoned(Exception):
    """All requests that waited for the module ended before it had room."""


class Room:
    """Loads modules into an engine's room, and lets others leave for them.

    Loads wait for room in a line, first come, first served. For the first in line, one module is set to leave
    when its present uses have ended. New requests for that module wait in line. Without this, modules in
    steady use would keep other modules out for ever.
    """

    def __init__(self, holder: Holder) -> None:
        self.holder = holder
        self.held: Places = {}
        """What the engine said when it was last asked, without a module that is being let go."""
        self.pinned: set[str] = set()
        """Digests of the modules that stay until they are unloaded or unpinned."""
        self._uses: Counter[str] = Counter()
        self._sized = holder if isinstance(holder, SizedHolder) else None
        # Bytes of the modules that are held.
        self._sizes: dict[str, int] = {}
        # Requests that wait for the module, by digest.
        self._wanted: Counter[str] = Counter()
        self._loading: dict[str, asyncio.Task[None]] = {}
        # The load that holds this lock is the first in line.
        self._turn = asyncio.Lock()
        self._to_leave: str | None = None
        # Held for one exchange with the engine, because the choice of who leaves depends on what the engine
        # holds. It is never held while a load waits for room.
        self._exchanging = asyncio.Lock()
        self._changed = asyncio.Event()

    @property
    def in_use(self) -> set[str]:
        """Digests of the modules that requests use or wait for."""
        return {*self._uses, *self._wanted}

    @contextlib.asynccontextmanager
    async def using(self, digest: str, fetch: Callable[[], Awaitable[Path]]) -> AsyncIterator[None]:
        """Have the module loaded, and keep it loaded while inside.

        fetch: returns the folder of the module's files.
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
        """Raises ModuleRefused when no further module may be pinned."""
        most = pins_at_most(self.holder.capacity)
        if digest not in self.pinned and len(self.pinned) >= most:
            rule = (
                f"{most} of the {self.holder.capacity} that fit (setting {self.holder.setting}) are "
                "pinned, and no more may be"
            )
            raise ModuleRefused(digest, f"{rule}; it is loaded when it is asked for")

    def pin(self, digest: str) -> None:
        """Keep the module until it is unloaded or unpinned. Raises as `check_pin`."""
        self.check_pin(digest)
        self.pinned.add(digest)
        self._changed.set()

    def unpin(self, digest: str) -> None:
        self.pinned.discard(digest)
        self._changed.set()

    async def unload(self, digest: str) -> None:
        """Unpin the module and let it go. Raises ModuleRefused while a request uses it or waits for it."""
        async with self._exchanging:
            if digest in self.in_use:
                raise ModuleRefused(digest, "requests use it; unload it when they have ended")
            self.unpin(digest)
            if self.held.pop(digest, None) is not None:
                self.held = await self.holder.unload(digest)
        self._changed.set()

    async def refresh(self) -> None:
        """Ask the engine what it holds. Does nothing during an exchange, which asks the engine at its end."""
        if not self._exchanging.locked():
            async with self._exchanging:
                self.held = await self.holder.places()
            self._changed.set()

    async def _ensure(self, digest: str, fetch: Callable[[], Awaitable[Path]]) -> None:
        while digest not in self.held or digest == self._to_leave:
            if digest not in self._loading:
                self._loading[digest] = asyncio.create_task(self._load(digest, fetch))
                self._loading[digest].add_done_callback(lambda task: self._loaded(digest, task))
            # Several requests may wait for one load. The shield keeps a cancelled request from ending it.
            with contextlib.suppress(_Abandoned):
                await asyncio.shield(self._loading[digest])

    def _loaded(self, digest: str, task: asyncio.Task[None]) -> None:
        del self._loading[digest]
        if not task.cancelled():
            task.exception()  # marks it as seen: all requests that waited may have ended

    async def _load(self, digest: str, fetch: Callable[[], Awaitable[Path]]) -> None:
        folder = await fetch()
        size_bytes = 0
        if self._sized is not None:
            size_bytes = await self._sized.size_bytes(folder)
            if size_bytes > (most := self._sized.capacity_bytes):
                rule = f"it takes {size_bytes} bytes of {most} (setting {self._sized.bytes_setting})"
                raise ModuleRefused(digest, f"no room: {rule}")
        async with self._turn:
            try:
                while not await self._exchanged(digest, folder, size_bytes):
                    await self._changed.wait()
            finally:
                self._to_leave = None

    async def _exchanged(self, digest: str, folder: Path, size_bytes: int) -> bool:
        """Whether the module is loaded now. False: try again when something has changed.

        Only the first in line calls this. Raises _Abandoned when no request waits for the module any more.
        """
        async with self._exchanging:
            self._changed.clear()
            if digest not in self._wanted:
                raise _Abandoned
            if digest in self.held:
                return True
            self._check_beside_pinned(digest, size_bytes)
            leaving: str | None = None
            while self._is_full(size_bytes):
                if leaving is not None:  # Bytes are short, and one that leaves is not enough.
                    self.held = await self.holder.unload(leaving)
                # Requests that wait for the module that was set to leave do not keep it: they wait in line.
                kept = {*self._uses, *(self._wanted.keys() - {self._to_leave})}
                leaving = leaves_first(self.held, pinned=self.pinned, in_use=kept)
                if leaving is None:
                    self._set_to_leave(digest)
                    return False
                # New requests must not rely on the module that leaves.
                del self.held[leaving]
            try:
                self.held = await self.holder.load(digest, folder, leaving)
            except Exception:
                self.held = await self.holder.places()
                raise
            self._sizes = {held: self._sizes.get(held, size_bytes) for held in self.held}
            return True

    def _check_beside_pinned(self, digest: str, size_bytes: int) -> None:
        """Raises ModuleRefused where there is no room beside the pinned modules. Nothing leaves then."""
        if self._sized is None or self.held.keys() <= self.pinned:
            return  # without others, `_set_to_leave` says so
        pinned_bytes = sum(self._sizes.get(held, 0) for held in self.held.keys() & self.pinned)
        if pinned_bytes + size_bytes > (most := self._sized.capacity_bytes):
            rule = (
                f"it takes {size_bytes} bytes, and pinned modules {pinned_bytes} of {most} "
                f"(setting {self._sized.bytes_setting})"
            )
            raise ModuleRefused(digest, f"no room: {rule}")

    def _is_full(self, size_bytes: int) -> bool:
        """Whether there is no room for one more module of this size."""
        held_bytes = sum(self._sizes.get(digest, 0) for digest in self.held)
        over = self._sized is not None and held_bytes + size_bytes > self._sized.capacity_bytes
        return over or len(self.held) >= self.holder.capacity

    def _set_to_leave(self, digest: str) -> None:
        """Choose the module that leaves next. Raises ModuleRefused when all held modules are pinned."""
        if self.held.keys() <= self.pinned:
            raise ModuleRefused(
                digest, f"no room: all {len(self.held)} modules are pinned (setting {self._bound})"
            )
        if self._to_leave not in self.held or self._to_leave in self.pinned:
            # A module that was just loaded for a waiting request is used first, and does not leave yet.
            self._to_leave = leaves_first(self.held, pinned=self.pinned, in_use=self._wanted)

    @property
    def _bound(self) -> str:
        """The setting by which there is no room for one more."""
        by_number = len(self.held) >= self.holder.capacity or self._sized is None
        return self.holder.setting if by_number or self._sized is None else self._sized.bytes_setting

    def _released(self, count: Counter[str], digest: str) -> None:
        count[digest] -= 1
        if not count[digest]:
            del count[digest]
        self._changed.set()
