"""Reads the module store for `integrity`'s rules. Safe beside writers.

Keys are found with SCAN, in pages, and long ones are read in pages. The keys of one module are read at one
moment; modules, digests and audits are read one after another. So whatever looks wrong is read once more
after a pause, and only what is still wrong counts.
"""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from typing import Any

from memserve.domain import Alias, AliasChange, TrafficShare
from memserve.errors import UnreadableRecord
from memserve.memory.modules.registry.integrity import (
    AuditFact,
    DigestView,
    ModuleView,
    VersionView,
    audit_contradictions,
    audit_fact,
    digest_contradictions,
    module_contradictions,
)
from memserve.memory.modules.registry.records import read_alias_change, read_canary, read_event
from memserve.records import reading
from memserve.registry.client import answering

PREFIX = "memserve:module:"
PAGE = 256
# An event and a change may be long: a report, a reason.
EVENTS_PAGE = 32
HISTORY_PAGE = 32
PAUSE_S = 0.5
# The field of a version's JSON in the hash of its module, before its number.
BODY = "v"
DIGEST_KINDS = ("references", "condemned", "claims")
MODULE_KINDS = ("head", "numbers", "versions", "aliases", "history", "preloaded")
# Answers of PTTL.
ENDLESS = -1
NO_KEY = -2

ModuleName = tuple[str, str]
"""Tenant and name."""


@dataclass(slots=True)
class Names:
    """What the store's keys are about."""

    modules: set[ModuleName] = field(default_factory=set)
    histories: defaultdict[ModuleName, set[str]] = field(default_factory=lambda: defaultdict(set))
    """The aliases of each module that have a history."""
    preloaded: defaultdict[ModuleName, set[int]] = field(default_factory=lambda: defaultdict(set))
    """The versions of each module that have preloads."""
    digests: set[str] = field(default_factory=set)
    tenants: set[str] = field(default_factory=set)
    """Who has an audit."""
    unreadable: set[str] = field(default_factory=set)
    """Keys whose names cannot be told apart."""

    def add(self, key: str) -> None:
        """Raises ValueError for a key that cannot be read."""
        kind, _, text = key.removeprefix(PREFIX).partition(":")
        if kind in DIGEST_KINDS:
            self.digests.add(text)
        elif kind == "events":
            self.tenants.add(decode_names(text, 1)[0])
        elif kind in MODULE_KINDS:
            tenant, module, rest = decode_names(text, 2)
            self.modules.add((tenant, module))
            if kind == "history":
                self.histories[tenant, module].add(decode_names(rest, 1)[0])
            elif kind == "preloaded":
                self.preloaded[tenant, module].add(int(rest))


@dataclass(slots=True)
class Hashes:
    """The two hashes that are of all modules."""

    canaries: defaultdict[ModuleName, dict[str, tuple[int, tuple[int, ...]]]] = field(
        default_factory=lambda: defaultdict(dict)
    )
    """By module and alias: the revision at which these versions are canaries."""
    preloads: defaultdict[ModuleName, dict[tuple[int, str], str]] = field(
        default_factory=lambda: defaultdict(dict)
    )
    """By module, number and worker: the digest."""


class ModuleStoreCheck:
    """One check. Raises RegistryUnavailable where Redis does not answer."""

    def __init__(self, redis: Any, *, pause_s: float = PAUSE_S) -> None:
        """redis: a client of redis.asyncio that answers in text. pause_s: before what looks wrong is read
        again.
        """
        self._redis = redis
        self._pause_s = pause_s

    async def contradictions(self) -> list[str]:
        """Each a sentence that begins with the key."""
        wrong = await self._read_all()
        if wrong:
            await asyncio.sleep(self._pause_s)
            wrong &= await self._read_all()
        return sorted(wrong)

    async def _read_all(self) -> set[str]:
        names = await self._names()
        try:
            hashes = await self._hashes()
        except UnreadableRecord as error:
            return {f"{PREFIX}canaries or {PREFIX}preloads: {error}"}
        facts = {tenant: await self._facts(tenant) for tenant in sorted(names.tenants)}
        wrong = {f"{key}: its names cannot be told apart" for key in names.unreadable}
        for tenant, module in sorted(names.modules | hashes.canaries.keys() | hashes.preloads.keys()):
            key = f"{PREFIX}head:{encode_names(tenant, module)}"
            try:
                view = await self._module((tenant, module), names, hashes)
            except UnreadableRecord as error:
                wrong.add(f"{key}: {error}")
                continue
            of_module = facts.get(tenant, {}).get(module, [])
            sentences = module_contradictions(view)
            sentences += audit_contradictions(of_module, view.numbers, view.histories)
            wrong |= {f"{key}: {sentence}" for sentence in sentences}
        for digest in sorted(names.digests):
            wrong |= await self._digest(digest)
        return wrong

    async def _names(self) -> Names:
        names = Names()
        async for keys in self._scan():
            for key in keys:
                try:
                    names.add(key)
                except ValueError:
                    names.unreadable.add(key)
        return names

    async def _hashes(self) -> Hashes:
        async with answering():
            canaries = await self._redis.hgetall(PREFIX + "canaries")
            preloads = await self._redis.hgetall(PREFIX + "preloads")
        hashes = Hashes()
        for stored in canaries.items():
            canary = read_canary(stored)
            hashes.canaries[canary.tenant, canary.name][canary.alias] = canary.revision, canary.versions
        for owner, text in preloads.items():
            with reading("Preload"):
                tenant, module, rest = decode_names(owner, 2)
                number, _, worker = rest.partition(":")
                hashes.preloads[tenant, module][int(number), worker] = json.loads(text)["digest"]
        return hashes

    async def _facts(self, tenant: str) -> dict[str, list[AuditFact]]:
        """What the tenant's audit says, by module."""
        facts: dict[str, list[AuditFact]] = {}
        after = "-"
        while True:
            async with answering():
                page = await self._redis.xrange(
                    f"{PREFIX}events:{encode_names(tenant)}", after, "+", EVENTS_PAGE
                )
            for event_id, fields in page:
                event = read_event(tenant, event_id, fields)
                fact = audit_fact(event)
                if fact is not None:
                    facts.setdefault(event.module, []).append(fact)
            if len(page) < EVENTS_PAGE:
                return facts
            after = f"({page[-1][0]}"

    async def _module(self, name: ModuleName, names: Names, hashes: Hashes) -> ModuleView:
        """Raises UnreadableRecord."""
        text = encode_names(*name)
        kind, bodies = await self._bodies(text)
        references = [
            (number, digest) for number, body in sorted(bodies.items()) for digest in digests_of(body)
        ]
        preloaded_numbers, histories = sorted(names.preloaded[name]), sorted(names.histories[name])
        async with answering(), self._redis.pipeline(transaction=True) as pipeline:
            pipeline.hgetall(f"{PREFIX}head:{text}")
            pipeline.zrange(f"{PREFIX}numbers:{text}", 0, -1)
            pipeline.hkeys(f"{PREFIX}versions:{text}")
            pipeline.hgetall(f"{PREFIX}aliases:{text}")
            pipeline.zscore(f"{PREFIX}names:{encode_names(name[0])}", name[1])
            pipeline.zscore(f"{PREFIX}names:{encode_names(name[0], kind)}", name[1])
            for number in preloaded_numbers:
                pipeline.smembers(f"{PREFIX}preloaded:{text}{number}")
            for alias in histories:
                pipeline.llen(f"{PREFIX}history:{text}{encode_names(alias)}")
            for number, digest in references:
                pipeline.sismember(f"{PREFIX}references:{digest}", f"{text}{number}")
            head, numbers, fields, alias_texts, listed, listed_by_kind, *answers = await pipeline.execute()
        several = iter(answers)
        preloaded = [(number, worker) for number in preloaded_numbers for worker in next(several)]
        history_lengths = {alias: next(several) for alias in histories}
        referenced = {reference for reference in references if next(several)}
        numbers_of_part: defaultdict[str, set[int]] = defaultdict(set)
        for part_field in fields:
            part, _, number_text = part_field.partition(":")
            numbers_of_part[part].add(int(number_text))
        kept = numbers_of_part.pop(BODY, set())
        aliases = {alias: read_kept_alias(alias, kept_text) for alias, kept_text in alias_texts.items()}
        return ModuleView(
            kind=head.get("kind", ""),
            last_number=int(head.get("last", 0)),
            numbers=frozenset(map(int, numbers)),
            versions={
                number: version_view(body, {digest for of, digest in referenced if of == number})
                for number, body in bodies.items()
                if number in kept
            },
            loose_numbers=frozenset(set().union(*numbers_of_part.values()) - kept),
            is_listed=listed is not None,
            is_listed_by_kind=listed_by_kind is not None,
            aliases=aliases,
            histories={
                alias: await self._history(f"{PREFIX}history:{text}{encode_names(alias)}", length)
                for alias, length in history_lengths.items()
            },
            canaries=hashes.canaries[name],
            preloaded=frozenset(preloaded),
            preloads=hashes.preloads[name],
        )

    async def _bodies(self, text: str) -> tuple[str, dict[int, dict[str, Any]]]:
        """The module's kind, and its versions without their texts, by number."""
        bodies: dict[int, dict[str, Any]] = {}
        async with answering():
            kind = await self._redis.hget(f"{PREFIX}head:{text}", "kind")
            fields = await self._redis.hkeys(f"{PREFIX}versions:{text}")
        body_fields = [name for name in fields if name.startswith(f"{BODY}:")]
        for start in range(0, len(body_fields), PAGE):
            page = body_fields[start : start + PAGE]
            async with answering():
                texts = await self._redis.hmget(f"{PREFIX}versions:{text}", page)
            for body_field, body_text in zip(page, texts, strict=True):
                if body_text is not None:
                    with reading("ModuleVersion"):
                        bodies[int(body_field.partition(":")[2])] = dict(json.loads(body_text))
        return kind or "", bodies

    async def _history(self, key: str, length: int) -> list[AliasChange]:
        """The first `length` changes. A history only ever grows at its end."""
        changes: list[AliasChange] = []
        for start in range(0, length, HISTORY_PAGE):
            end = min(start + HISTORY_PAGE, length) - 1
            async with answering():
                changes += map(read_alias_change, await self._redis.lrange(key, start, end))
        return changes

    async def _digest(self, digest: str) -> set[str]:
        references, condemned, claims = (f"{PREFIX}{kind}:{digest}" for kind in DIGEST_KINDS)
        async with answering(), self._redis.pipeline(transaction=True) as pipeline:
            pipeline.smembers(references)
            pipeline.pttl(condemned)
            pipeline.pttl(claims)
            pipeline.zrange(claims, 0, -1, withscores=True)
            pipeline.time()
            owners, condemned_ms, claims_ms, ends, (now_s, _) = await pipeline.execute()
        view = DigestView(
            is_referenced=bool(owners),
            is_condemned=condemned_ms != NO_KEY,
            live_claims=sum(ends_s > now_s for _, ends_s in ends),
            is_endless=ENDLESS in (condemned_ms, claims_ms),
        )
        wrong = {f"{PREFIX}references:{digest}: {what}" for what in digest_contradictions(view)}
        for owner in owners:
            tenant, module, number = decode_names(owner, 2)
            async with answering():
                body = await self._redis.hget(
                    f"{PREFIX}versions:{encode_names(tenant, module)}", f"{BODY}:{number}"
                )
            if digest not in readable_digests(body):
                wrong.add(f"{references}: version {number} of module {module} of tenant {tenant} has it not")
        return wrong

    async def _scan(self) -> AsyncIterator[list[str]]:
        cursor = 0
        while True:
            async with answering():
                cursor, keys = await self._redis.scan(cursor, PREFIX + "*", PAGE)
            yield keys
            if not cursor:
                return


def encode_names(*names: str) -> str:
    """As `prelude.lua` has them in keys."""
    return "".join(f"{len(name.encode())}:{name}" for name in names)


def decode_names(text: str, count: int) -> list[str]:
    """Returns so many names, and what follows them."""
    names: list[str] = []
    rest = text.encode()
    for _ in range(count):
        length, _, rest = rest.partition(b":")
        names.append(rest[: int(length)].decode())
        rest = rest[int(length) :]
    return [*names, rest.decode()]


def digests_of(body: dict[str, Any]) -> list[str]:
    """What a version consists of."""
    return [digest for digest in (body["digest"], body["probes_digest"]) if digest]


def readable_digests(text: str | None) -> list[str]:
    """Of a version's JSON; none where it is gone or cannot be read."""
    try:
        with reading("ModuleVersion"):
            return digests_of(json.loads(text or "{}"))
    except UnreadableRecord:
        return []


def version_view(body: dict[str, Any], referenced: Iterable[str]) -> VersionView:
    return VersionView(
        int(body["version"]), str(body["kind"]), tuple(digests_of(body)), frozenset(referenced)
    )


def read_kept_alias(name: str, text: str) -> Alias:
    """An alias as its module's hash has it. Raises UnreadableRecord."""
    with reading("Alias"):
        record = json.loads(text)
        targets = tuple(
            TrafficShare(int(share["version"]), float(share["weight"]))
            for share in json.loads(record["targets"])
        )
        return Alias(name, targets, int(record["revision"]), float(record["changed_s"]))
