"""The modules of one engine: loaded ahead or on demand, kept while they are used or pinned, out when others need the room."""

from __future__ import annotations

import asyncio
import contextlib
import re
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Protocol

from vllm import SamplingParams
from vllm.lora.request import LoRARequest
from vllm.v1.engine.async_llm import AsyncLLM

from memserve.domain import ModuleKind, ModulePlace
from memserve.errors import InvalidModule, MemserveError
from memserve.memory.blobs import BlobStore
from memserve.policy.residency import leaves_first
from memserve.worker.logit_expert import load_expert

READ_BYTES = 1 << 20
Places = dict[str, ModulePlace]
"""Digest to DEVICE or HOST of what the engine holds of one kind, least recently used first."""

_DIGEST = re.compile(r"[0-9a-f]{64}")


class ModuleRefused(MemserveError):
    """This worker does not do what was asked with the module now; another may. Nothing was changed."""

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
        """Take the module in, and let `leaving` go for it. Raises InvalidModule when the engine refuses it."""

    async def unload(self, digest: str) -> Places: ...


class Modules:
    """What an engine holds. Places are the engine's own word, as of when it was last asked."""

    def __init__(self, blobs: BlobStore, holders: Mapping[ModuleKind, Holder]) -> None:
        self._blobs = blobs
        self._holders = holders
        self._held: dict[ModuleKind, Places] = {kind: {} for kind in holders}
        self._uses: Counter[str] = Counter()
        self._pinned: set[str] = set()
        self._loading: dict[tuple[ModuleKind, str], asyncio.Task[None]] = {}
        # One exchange at a time: who leaves is decided on what the engine holds.
        self._exchanging = asyncio.Lock()
        self.stale = False

    @property
    def held(self) -> Places:
        """Digest to DEVICE or HOST, of every kind."""
        return {digest: place for places in self._held.values() for digest, place in places.items()}

    @property
    def used(self) -> list[str]:
        """Digests of the modules that requests under way use, and of those that are being loaded."""
        return sorted(digest for digest, uses in self._uses.items() if uses)

    @contextlib.asynccontextmanager
    async def using(self, digest: str, kind: ModuleKind) -> AsyncIterator[None]:
        """Have the module loaded, and keep it loaded while the context is open. Raises as `load`."""
        self._uses[digest] += 1
        try:
            await self._ensure(digest, kind)
            yield
        finally:
            self._uses[digest] -= 1
            if not self._uses[digest]:
                del self._uses[digest]
            places = self._held.get(kind, {})
            if digest in places:
                places[digest] = places.pop(digest)  # to the end: the most recently used
            # A step puts the adapters that it needs into slots, and others out of theirs.
            self.stale = True

    async def load(self, digest: str, kind: ModuleKind, *, pin: bool = False) -> ModulePlace:
        """Have the module loaded. pin: it stays until it is unloaded.

        Raises ModuleNotFound when the module store does not have it, InvalidModule when the engine refuses it, ModuleRefused when there
        is no room.
        """
        async with self.using(digest, kind):
            if pin:
                self._pinned.add(digest)
            return self._held[kind][digest]

    async def unload(self, digest: str, kind: ModuleKind, *, forget: bool = False) -> ModulePlace:
        """Take the module out of the engine. forget: delete the local copy of its files too, where it is one.

        Raises ModuleRefused while a request uses it.
        """
        self._check(digest, kind)
        async with self._exchanging:
            if digest in self._uses:
                raise ModuleRefused(digest, "requests use it; unload it when they have ended")
            self._pinned.discard(digest)
            if self._held[kind].pop(digest, None) is not None:
                self._held[kind] = await self._holders[kind].unload(digest)
            if forget:
                await asyncio.to_thread(self._blobs.forget_local, digest)
        return ModulePlace.DISK if await asyncio.to_thread(self._blobs.has_local, digest) else ModulePlace.ABSENT

    async def files(self, digest: str) -> Path:
        """The folder with the module's files, fetched where it is not here. Raises ModuleNotFound, and what the module store raises."""
        _check_digest(digest)
        return await asyncio.to_thread(self._blobs.local, digest)

    async def refresh(self) -> None:
        """Ask the engine where its modules are. Every question interrupts it, so ask only when `stale`."""
        async with self._exchanging:
            self.stale = False
            for kind, holder in self._holders.items():
                self._held[kind] = await holder.places()

    async def _ensure(self, digest: str, kind: ModuleKind) -> None:
        self._check(digest, kind)
        if digest in self._held[kind]:
            return
        if (kind, digest) not in self._loading:
            self._loading[kind, digest] = asyncio.create_task(self._load(digest, kind))
            self._loading[kind, digest].add_done_callback(lambda task: self._loaded(digest, kind, task))
        # Several may wait for it: one that is cancelled leaves it to the others.
        await asyncio.shield(self._loading[kind, digest])

    def _loaded(self, digest: str, kind: ModuleKind, task: asyncio.Task[None]) -> None:
        del self._loading[kind, digest]
        if not task.cancelled():
            task.exception()  # where all who waited have gone, nobody else asks for it

    async def _load(self, digest: str, kind: ModuleKind) -> None:
        holder = self._holders[kind]
        folder = await asyncio.to_thread(self._fetch, digest)
        async with self._exchanging:
            held = self._held[kind]
            leaving = None
            if len(held) >= holder.capacity:
                leaving = leaves_first(held, pinned=self._pinned, in_use=self._uses)
                if leaving is None:
                    raise ModuleRefused(digest, f"no room: {len(held)} modules are in use or pinned (setting {holder.setting})")
                # From now on nobody may count on it.
                del held[leaving]
            try:
                self._held[kind] = await holder.load(digest, folder, leaving)
            except Exception:
                self._held[kind] = await holder.places()
                raise

    def _fetch(self, digest: str) -> Path:
        """Have the files here, and in the page cache: the engine reads them between two steps of the streams of others."""
        folder = self._blobs.local(digest)
        for file in folder.iterdir():
            with file.open("rb") as stream:
                while stream.read(READ_BYTES):
                    pass
        return folder

    def _check(self, digest: str, kind: ModuleKind) -> None:
        _check_digest(digest)
        if kind not in self._holders:
            raise ModuleRefused(digest, f"this worker holds no modules of kind {kind.value} (setting max_experts is 0)")


class LoraHolder:
    """LoRA adapters in vLLM, which knows them by a number. A number belongs to one digest for ever."""

    setting = "max_cpu_loras"

    def __init__(self, llm: AsyncLLM, capacity: int) -> None:
        self.capacity = capacity
        self._llm = llm
        self._digests: list[str] = []
        self._ids: dict[str, int] = {}

    def request(self, digest: str) -> LoRARequest:
        """Its name and path, which block keys contain, are made of the digest: KV never crosses versions, and is equal on every machine."""
        if digest not in self._ids:
            self._digests.append(digest)
            self._ids[digest] = len(self._digests)
        return LoRARequest(lora_name=digest, lora_int_id=self._ids[digest], lora_path=f"modules/{digest}")

    async def places(self) -> Places:
        return self._by_digest(await self._llm.collective_rpc("lora_places"))

    async def load(self, digest: str, folder: Path, leaving: str | None) -> Places:
        request = self.request(digest)
        leaving_id = None if leaving is None else self._ids[leaving]
        arguments = (request.lora_name, request.lora_int_id, request.lora_path, leaving_id)
        try:
            return self._by_digest(await self._llm.collective_rpc("exchange_lora", args=arguments))
        except Exception as error:
            raise refusal(self._llm, error) from error

    async def unload(self, digest: str) -> Places:
        await self._llm.remove_lora(self._ids[digest])
        return await self.places()

    def _by_digest(self, answers: list[dict[str, list[int]]]) -> Places:
        places = answers[0]  # of several ranks of one engine all are equal
        slots = set(places["device"])
        return {self._digests[held - 1]: ModulePlace.DEVICE if held in slots else ModulePlace.HOST for held in places["held"]}


class ExpertHolder:
    """Logit experts in the engine's logits processor, on the device."""

    setting = "max_experts"

    def __init__(self, llm: AsyncLLM, capacity: int) -> None:
        self.capacity = capacity
        self._llm = llm

    async def places(self) -> Places:
        loaded: list[list[str]] = await self._llm.collective_rpc("loaded_experts")
        return dict.fromkeys(loaded[0], ModulePlace.DEVICE)

    async def load(self, digest: str, folder: Path, leaving: str | None) -> Places:
        # First: the processor would let go what it has used least recently, and knows nothing of pins.
        if leaving is not None:
            await self._unload(leaving)
        try:
            await load_expert(self._llm, digest, str(folder))
        except Exception as error:
            raise refusal(self._llm, error) from error
        return await self.places()

    async def unload(self, digest: str) -> Places:
        await self._unload(digest)
        return await self.places()

    async def effect(self, digest: str, folder: Path, prompts: list[list[int]]) -> float:
        """As `WorkerExtension.expert_effect`."""
        effects: list[float] = await self._llm.collective_rpc("expert_effect", args=(digest, str(folder), prompts))
        return effects[0]

    async def _unload(self, digest: str) -> None:
        while not all(await self._llm.collective_rpc("unload_expert", args=(digest,))):
            # The last request that used it has ended, and leaves the engine's batch with the next step; so make one.
            step = self._llm.generate({"prompt_token_ids": [0]}, SamplingParams(max_tokens=1), f"step-{uuid.uuid4().hex}")
            async for _ in step:
                pass


def refusal(llm: AsyncLLM, error: Exception) -> Exception:
    """What an engine's error at loading means: InvalidModule, or the error itself where the engine has died."""
    if llm.errored:
        return error
    reason = str(error).rpartition("method failed: ")[2].partition("\n")[0]
    return InvalidModule("module", f"the engine refuses it: {reason or type(error).__name__}")


def _check_digest(digest: str) -> None:
    if not _DIGEST.fullmatch(digest):
        raise InvalidModule("digest", "must be 64 lower-case hex digits")
