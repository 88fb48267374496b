"""The cache's ledger in Redis: who holds how many bytes, what each chunk is worth, and what has to go. The
script is in the Lua files beside this one; read `prelude.lua` first.

A chunk is counted from before its value is written until after its value is known to be gone. So what is
counted is never less than what is stored, whoever dies in between: a reservation that is not settled, a
removal that was not confirmed and an entry past its time fall due, and whoever keeps the cache
(`memserve.kv.ledger.upkeep`) ends them.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.resources import files
from typing import Any

from redis import Redis
from redis.exceptions import NoScriptError, RedisError

from memserve.kv.keys import VALUE_PREFIX
from memserve.kv.ledger.check import LedgerCheck
from memserve.kv.ledger.names import (
    DUE,
    MODULE_PREFIX,
    PREFIX,
    TENANT_WORTH_PREFIX,
    WORTH,
    Counter,
    Field,
    State,
    entry_key,
)
from memserve.kv.ledger.records import (
    ALL,
    NO_QUOTAS,
    Admission,
    Candidate,
    Entry,
    Owner,
    Quotas,
    Removal,
    Reservation,
    Settled,
    Usage,
)
from memserve.kv.ledger.values import ChunkValues
from memserve.kv.transport.servers import CacheServers

SCRIPT_FILES = ("prelude", "entries", "worth", "pins", "removals", "reservations", "run")
SCRIPT = "".join(
    files("memserve.kv.ledger").joinpath(f"{name}.lua").read_text(encoding="utf-8") for name in SCRIPT_FILES
)
SCRIPT_DIGEST = hashlib.sha1(SCRIPT.encode()).hexdigest()
# A value is written within the store's budget of a few seconds. A writer that takes this long is taken for
# dead.
RESERVE_S = 60.0
# A first use is remembered for one to two windows.
ADMISSION_WINDOW_S = 3600.0
PAGE = 1000
TOPOLOGY_WAIT_S = 1.0


class Ledger:
    """Every method changes the ledger in one atomic exchange with Redis, and raises redis-py's RedisError or
    OSError.
    """

    def __init__(
        self,
        servers: CacheServers,
        *,
        ttl_s: int,
        quotas: Quotas = NO_QUOTAS,
        admit_on_use: int = 1,
        reserve_s: float = RESERVE_S,
    ) -> None:
        """servers: of the cache. ttl_s: how long an unused chunk lives.

        admit_on_use: 1 stores a chunk when it is first computed, 2 the second time. reserve_s: after it a
        writer, or whoever removes, is taken for dead. Raises ValueError for another admit_on_use.
        """
        if admit_on_use not in (1, 2):
            raise ValueError(f"admit_on_use must be 1 or 2, not {admit_on_use}")
        self._servers = servers
        self._values = ChunkValues(servers)
        self._ttl_s = ttl_s
        self.quotas = quotas
        self._admit_on_use = admit_on_use
        self._reserve_s = reserve_s

    def reserve(
        self, candidates: Sequence[Candidate], owner: Owner, *, worth_per_use: float, at_once: bool = False
    ) -> Reservation:
        """Count chunks before they are written, and choose what goes for them.

        candidates: [n], a chain's beginning first. worth_per_use: from `memserve.policy.kv.eviction`.
        at_once: admit them on their first use. What is to be stored must be settled. The victims must be
        removed first, and settled as GONE.
        """
        arguments: list[Any] = [self._reserve_s, self._ttl_s]
        arguments += [self.quotas.cache_bytes, self.quotas.tenant_bytes, owner.tenant, owner.module]
        arguments += [worth_per_use, 1 if at_once else self._admit_on_use, ADMISSION_WINDOW_S]
        for candidate in candidates:
            arguments += [candidate.member, candidate.stored_bytes, candidate.parent]
            arguments += [candidate.depth_tokens, int(candidate.present)]
        outcomes, generations, victims, refresh, pinned = self._run("reserve", arguments)
        self._prolong(refresh, pinned)
        admissions = tuple(Admission(outcome.decode()) for outcome in outcomes)
        return Reservation(
            admissions=admissions,
            entries={
                candidate.member: Entry(candidate.member, generation)
                for candidate, admission, generation in zip(candidates, admissions, generations, strict=True)
                if admission is Admission.STORE
            },
            victims=tuple(_removals(victims)),
        )

    def settle(self, outcomes: Iterable[tuple[Settled, Entry]]) -> list[str]:
        """Say what became of values. Returns members whose reservation had been given up: their values must
        be removed.
        """
        arguments: list[Any] = [self._ttl_s]
        for settled, entry in outcomes:
            arguments += [settled.value, entry.member, entry.generation]
        if len(arguments) == 1:
            return []
        lost, refresh = self._run("settle", arguments)
        self._prolong(refresh)
        return _texts(lost)

    def use(self, members: Sequence[str]) -> None:
        """Chunks were loaded: they are worth more, and they and what stands before them live on.

        members: a chain's beginning first. Members that the ledger does not know are passed over.
        """
        if members:
            self._prolong(*self._run("use", [self._ttl_s, *members]))

    def condemn(
        self, members: Sequence[str], *, tenant: str = ALL, module: str = ALL
    ) -> tuple[list[Entry], int]:
        """Mark chunks that are to be removed, of this tenant and module only. Then their values are unlinked,
        and they are settled as GONE.

        Returns the marked ones, and how many stay because they are pinned.
        """
        if not members:
            return [], 0
        condemned, kept = self._run("condemn", [self._reserve_s, tenant, module, *members])
        return [
            Entry(member.decode(), int(generation))
            for member, generation in zip(condemned[::2], condemned[1::2], strict=True)
        ], kept

    def due(self, limit: int = PAGE) -> list[tuple[Entry, Removal]]:
        """What must be removed now: expired, abandoned by a writer, or condemned and not confirmed. Ends pins
        that have run out.
        """
        remove, refresh = self._run("due", [self._ttl_s, self._reserve_s, limit])
        self._prolong(refresh)
        return list(_removals(remove))

    def vanished(self, cursor: int) -> tuple[int, list[Entry]]:
        """Look at some of the entries. Returns where to go on (0: all were seen), and those whose value Redis
        has evicted itself.

        A load slides the time to live of a pinned value back to an ordinary one's. Here it is set right
        again.
        """
        cursor, page = self._ask(functools.partial(Redis.zscan, name=DUE, cursor=cursor, count=PAGE))
        members = [member.decode() for member, _ in page]
        entries = self._servers.ask_each(
            [entry_key(member) for member in members],
            lambda pipeline, number: pipeline.hmget(
                entry_key(members[number]), Field.STATE, Field.GENERATION, Field.PINNED_UNTIL
            ),
        )
        values_exist = self._values.exist(members)
        now_s = self._ask(lambda client: client.time()[0])
        pinned_for_s = [
            (member, int(float(pinned_until)) - now_s)
            for member, (state, _, pinned_until) in zip(members, entries, strict=True)
            if state == State.COMMITTED.encode()
        ]
        self._values.prolong(
            [(member, left_s + 1 + self._ttl_s) for member, left_s in pinned_for_s if left_s > 0]
        )
        return cursor, [
            Entry(member, int(generation))
            for member, (state, generation, _), exists in zip(members, entries, values_exist, strict=True)
            if state == State.COMMITTED.encode() and not exists
        ]

    def present(self, members: Sequence[str]) -> int:
        """How many of the leading members have a value."""
        exist = self._values.exist(members)
        return next((number for number, exists in enumerate(exist) if not exists), len(exist))

    def remove_values(self, entries: Sequence[Entry]) -> None:
        """Unlink condemned values and settle them, server by server: a server that does not answer keeps no
        other's from being settled.
        """
        failure: Exception | None = None
        for numbers in self._servers.groups(
            [VALUE_PREFIX + entry.member for entry in entries], TOPOLOGY_WAIT_S
        ).values():
            part = [entries[number] for number in numbers]
            try:
                self.unlink_values([entry.member for entry in part])
            except (RedisError, OSError) as error:
                failure = error
                continue
            self.settle((Settled.GONE, entry) for entry in part)
        if failure is not None:
            raise failure

    def unlink_values(self, members: Sequence[str]) -> None:
        """Remove values that the ledger does not count."""
        self._values.unlink(members)

    def pin(
        self,
        members: Sequence[str],
        tenant: str,
        *,
        seconds: float,
        limit_bytes: int = 0,
        limit_all_bytes: int = 0,
    ) -> tuple[bool, int, int]:
        """Keep chunks from eviction for so long. All or nothing. A chunk that is pinned for longer stays so.

        limit_bytes: of all pins of the tenant; limit_all_bytes: of all tenants; 0 for none.
        Returns whether it was done, the tenant's pinned bytes, and how many of the members have a value.
        """
        present = sum(self._values.exist(members))
        if present < len(members):
            return False, self.usage(tenant).pinned_bytes, present
        is_done, pinned_bytes, present, lives_s = self._run(
            "pin", [seconds, limit_bytes, limit_all_bytes, tenant, *members]
        )
        if is_done:
            # They outlive their pin: when it ends they are ordinary chunks.
            self._values.prolong(
                [(member, life_s + self._ttl_s) for member, life_s in zip(members, lives_s, strict=True)]
            )
        return bool(is_done), pinned_bytes, present

    def unpin(self, members: Sequence[str], tenant: str) -> int:
        """Returns how many were pinned. What a longer pin shares with these is unpinned too."""
        freed, refresh = self._run("unpin", [self._ttl_s, tenant, *members])
        self._prolong(refresh)
        return int(freed)

    def members(self, *, tenant: str = ALL, module: str = ALL) -> Iterator[list[str]]:
        """The members of a tenant, of a module, or all, in pages. Which of them are both is for `condemn` to
        tell.
        """
        if module not in (ALL, ""):
            cursor = 0
            while True:
                cursor, page = self._ask(
                    functools.partial(Redis.sscan, name=MODULE_PREFIX + module, cursor=cursor, count=PAGE)
                )
                yield _texts(page)
                if not cursor:
                    return
        ranking = WORTH if tenant == ALL else TENANT_WORTH_PREFIX + tenant
        members = _texts(self._ask(lambda client: client.zrange(ranking, 0, -1)))
        for start in range(0, len(members), PAGE):
            yield members[start : start + PAGE]

    def count_of(self, members: Sequence[str], tenant: str) -> int:
        """How many of these members are the tenant's."""
        if not members:
            return 0
        worths = self._ask(lambda client: client.zmscore(TENANT_WORTH_PREFIX + tenant, list(members)))
        return sum(worth is not None for worth in worths)

    def usage(self, tenant: str = ALL) -> Usage:
        """What is counted for a tenant, or for all."""
        counters = [counter.key for counter in Counter]
        counted = self._servers.ask_each(
            counters, lambda pipeline, number: pipeline.hget(counters[number], tenant)
        )
        stored_bytes, chunks, pinned_bytes = (int(count or 0) for count in counted)
        return Usage(stored_bytes, chunks, pinned_bytes)

    def check_integrity(self) -> list[str]:
        """What in the ledger contradicts the rest of it, or the values: sentences that name the key. Empty:
        it is sound.

        Reads every entry and every value's length, in pages. The cache may be in use meanwhile: what is said
        here was so each time that it was read.
        """
        return LedgerCheck(self._servers).contradictions()

    def take_turn(self, interval_s: float) -> bool:
        """Whether nobody else has taken this turn of the upkeep."""
        return bool(
            self._ask(lambda client: client.set(PREFIX + "upkeep", "1", nx=True, px=int(interval_s * 1000)))
        )

    def _run(self, script: str, arguments: Sequence[Any]) -> Any:
        named = [Counter.BYTES.key, script, *arguments]

        def evaluate(client: Redis) -> Any:
            try:
                return client.evalsha(SCRIPT_DIGEST, 1, *named)
            except NoScriptError:
                return client.eval(SCRIPT, 1, *named)

        return self._ask(evaluate)

    def _ask(self, question: Callable[[Redis], Any]) -> Any:
        return self._servers.ask(PREFIX, question)

    def _prolong(self, refresh: Sequence[bytes], pinned: Sequence[Any] = ()) -> None:
        """refresh: members that live on as if used now. pinned: members and their seconds, in turn."""
        lives_s = [(member, self._ttl_s) for member in _texts(refresh)]
        self._values.prolong(lives_s + list(zip(_texts(pinned[::2]), pinned[1::2], strict=True)))


def _texts(members: Iterable[bytes]) -> list[str]:
    return [member.decode() for member in members]


def _removals(flat: Sequence[Any]) -> Iterator[tuple[Entry, Removal]]:
    for member, generation, reason in zip(flat[::3], flat[1::3], flat[2::3], strict=True):
        yield Entry(member.decode(), int(generation)), Removal(reason.decode())
