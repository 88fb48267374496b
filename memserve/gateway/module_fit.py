"""Knows what each module of a tenant knows: its description, sources and training questions, embedded.

What is not embedded yet is embedded behind the request, so that no answer waits for it.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from memserve.domain import ModuleFit, ModuleVersion
from memserve.errors import MemserveError
from memserve.memory.modules.memory import ParametricMemory
from memserve.memory.modules.probes import Probes
from memserve.policy.modules.fit import FitPolicy, Nearest, judge_fits
from memserve.policy.modules.gate import ProbeKind
from memserve.processes.supervised import Background

Floats = npt.NDArray[np.float32]
Embed = Callable[[str, Sequence[str]], Awaitable[Floats]]
"""Takes a tenant and passages. Returns [n, dim] rows of unit length."""

_Key = tuple[str, str, int, str]
"""Tenant, module, version and embedder. Tenants may describe equal files differently."""

MODULES_MAX = 200
"""Of a tenant that are looked at, by name."""
TEXTS_MAX = 64
"""Of a module that say what it knows."""
TEXT_MAX_CHARS = 1024
KNOWN_MAX = 512
"""Versions whose texts are kept embedded: 98 KB each with 384 dimensions."""
FRESH_S = 5.0
TENANTS_MAX = 1000
READING_MAX = 8
"""Tenants whose modules are read at once."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class KnowledgeText:
    """What says what a module knows."""

    text: str
    is_question: bool = False
    """Whether it is a question that the module must answer."""


@dataclass(frozen=True, slots=True)
class _Known:
    texts: tuple[KnowledgeText, ...]
    vectors: Floats
    """[texts, dim]"""

    def nearest(self, vector: Floats) -> list[Nearest]:
        """The nearest question and the nearest other text, as far as there are such."""
        best: dict[bool, Nearest] = {}
        for text, cosine in zip(self.texts, (self.vectors @ vector).tolist(), strict=True):
            known = best.get(text.is_question)
            if known is None or cosine > known.cosine:
                best[text.is_question] = Nearest(cosine, text.text, text.is_question)
        return list(best.values())


class ModuleFits:
    """For all tenants. Belongs to one event loop."""

    def __init__(
        self,
        memory: ParametricMemory,
        embed: Embed,
        background: Background,
        policy: FitPolicy | None = None,
        embedder: Callable[[], str] = lambda: "",
    ) -> None:
        """embedder: the identity of the model that `embed` embeds by now."""
        self._memory = memory
        self._embed = embed
        self._background = background
        self._policy = policy or FitPolicy()
        self._embedder = embedder
        # The least recently used first. Vectors of a model that embeds no longer are not asked for any more.
        self._known: OrderedDict[_Key, _Known] = OrderedDict()
        self._live: OrderedDict[str, tuple[float, tuple[ModuleVersion, ...]]] = OrderedDict()
        self._reading: set[str] = set()

    def fits(self, tenant: str, vector: Floats, embedder: str | None = None) -> tuple[ModuleFit, ...]:
        """How the tenant's live modules fit a question, best first. Returns at once.

        What is not known yet, or may have changed, is read behind the request; see `is_known`.
        vector: [dim], the question's. embedder: of the vector. None: the model that embeds now.
        """
        listed = self._live.get(tenant)
        if listed is None or time.monotonic() - listed[0] >= FRESH_S:
            self._refresh(tenant)
        versions = () if listed is None else listed[1]
        nearest: dict[str, list[Nearest]] = {}
        for version in versions:
            key = _key(tenant, version, self._embedder() if embedder is None else embedder)
            if (known := self._known.get(key)) is not None:
                self._known.move_to_end(key)
                if known.texts:
                    nearest[version.digest] = known.nearest(vector)
        return judge_fits(versions, nearest, self._policy)

    def is_known(self, tenant: str) -> bool:
        """Whether all of the tenant's modules have been read since this gateway started."""
        listed = self._live.get(tenant)
        return listed is not None and all(
            _key(tenant, version, self._embedder()) in self._known for version in listed[1]
        )

    def _refresh(self, tenant: str) -> None:
        if tenant in self._reading or len(self._reading) >= READING_MAX or self._background.is_full:
            return
        self._reading.add(tenant)
        task = self._background.begin("reading what modules know", self._read(tenant))
        task.add_done_callback(lambda _: self._reading.discard(tenant))

    async def _read(self, tenant: str) -> None:
        try:
            versions = await self._list(tenant)
        except MemserveError as error:
            log.warning("the modules of a tenant cannot be listed: %s", error)
            return
        embedder = self._embedder()
        await self._learn(tenant, [one for one in versions if _key(tenant, one, embedder) not in self._known])

    async def _learn(self, tenant: str, versions: Sequence[ModuleVersion]) -> None:
        """Embed what these versions know. What fails is tried again later."""
        for version in versions:
            embedder = self._embedder()
            try:
                texts = knowledge_texts(version, await self._memory.probes(tenant, version))
                vectors = np.empty((0, 0), np.float32)
                if texts:
                    vectors = await self._embed(tenant, [each.text for each in texts])
            except MemserveError as error:
                log.warning("what %s knows cannot be read: %s", version.reference, error)
                continue
            if self._embedder() != embedder:
                continue  # another model has taken over meanwhile
            self._known[_key(tenant, version, embedder)] = _Known(texts, vectors)
            if len(self._known) > KNOWN_MAX:
                self._known.popitem(last=False)

    async def _list(self, tenant: str) -> tuple[ModuleVersion, ...]:
        modules, _ = await self._memory.store.modules(tenant, limit=MODULES_MAX)
        versions = []
        for module in modules:
            if not any(alias.name == "live" for alias in module.aliases):
                continue
            try:
                version = await self._memory.heaviest("module", tenant, module.name)
                versions.append(self._memory.served(version))
            except MemserveError as error:
                log.debug("%s is not looked at: %s", module.name, error)
        self._live[tenant] = time.monotonic(), tuple(versions)
        self._live.move_to_end(tenant)
        if len(self._live) > TENANTS_MAX:
            self._live.popitem(last=False)
        return tuple(versions)


def knowledge_texts(version: ModuleVersion, probes: Probes | None) -> tuple[KnowledgeText, ...]:
    """What says what a module knows: its notes, its sources, and the questions that it must answer."""
    texts = [KnowledgeText(text) for text in (version.notes, *version.sources)]
    for each in probes.sets if probes is not None else ():
        if each.kind is ProbeKind.RECALL:
            texts += [KnowledgeText(probe.question, is_question=True) for probe in each.probes]
    kept = dict.fromkeys(
        replace(each, text=" ".join(each.text.split())[:TEXT_MAX_CHARS])
        for each in texts
        if each.text.strip()
    )
    return tuple(kept)[:TEXTS_MAX]


def _key(tenant: str, version: ModuleVersion, embedder: str) -> _Key:
    return tenant, version.module, version.version, embedder
