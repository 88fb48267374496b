"""Reads the cache's ledger, and its values' lengths, for `integrity`'s rules. Safe beside writers.

Everything is read in pages. A page of entries is read at one moment; entries, values and counters change from
page to page. So whatever looks wrong is read once more after a pause, and only what is still wrong counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar, cast

from redis import Redis
from redis.exceptions import RedisError

from memserve.errors import StartupError
from memserve.kv.keys import VALUE_PREFIX
from memserve.kv.ledger.integrity import (
    FIELDS,
    EntryFields,
    EntrySums,
    MemberView,
    Totals,
    member_contradictions,
    read_fields,
    stray_contradiction,
)
from memserve.kv.ledger.names import (
    DUE,
    ENTRY_PREFIX,
    GENERATION,
    MODULE_PREFIX,
    PREFIX,
    TENANT_WORTH_PREFIX,
    WORTH,
    Counter,
    Field,
    entry_key,
)
from memserve.kv.transport.check import check_cache_servers
from memserve.kv.transport.limits import CacheLimits
from memserve.kv.transport.server import CacheServer
from memserve.kv.transport.servers import CacheServers

T = TypeVar("T")

PAGE = 250
PAUSE_S = 0.5
TOPOLOGY_WAIT_S = 1.0
# For each connection and each answer, when an operator asks.
SERVER_TIMEOUT_S = 5.0
# For each member in `_read_at_once`.
COMMANDS = 6


class LedgerCheck:
    """One check. Raises redis-py's RedisError or OSError where a server does not answer."""

    def __init__(self, servers: CacheServers, *, pause_s: float = PAUSE_S) -> None:
        """pause_s: before what looks wrong is read again."""
        self._servers = servers
        self._pause_s = pause_s

    def contradictions(self) -> list[str]:
        """Each a sentence that begins with the key."""
        of_members, of_counters = self._read_entries()
        of_members |= self._read_members(self._members_without_entry())
        of_sets = self._read_sets()
        if not of_members and not of_counters and not of_sets:
            return []
        time.sleep(self._pause_s)
        still = self._read_members(of_members)
        sentences = {what for member, wrong in still.items() for what in wrong if what in of_members[member]}
        if of_sets:
            sentences |= of_sets & self._read_sets()
        if of_counters:
            sentences |= of_counters & self._read_entries()[1]
        return sorted(sentences)

    def _read_entries(self) -> tuple[dict[str, list[str]], set[str]]:
        """Returns what looks wrong of entries, by member, and of the counters."""
        wrong: dict[str, list[str]] = {}
        seen: set[str] = set()
        sums = EntrySums(self._totals())
        for keys in self._scan_keys(ENTRY_PREFIX):
            page = {key.removeprefix(ENTRY_PREFIX) for key in keys} - seen
            seen |= page
            for view, sentences in self._views(sorted(page)):
                if sentences:
                    wrong[view.member] = sentences
                if view.fields is not None:
                    sums.add(view.fields)
        return wrong, set(sums.contradictions(self._totals()))

    def _members_without_entry(self) -> set[str]:
        """Members of the two orders of all, and of values, that have no entry."""
        missing: set[str] = set()
        for key in (WORTH, DUE):
            for page in self._scan_sorted_set(key):
                missing |= self._without_entry(page)
        for server in self._value_servers():
            for names in self._scan_values(server):
                missing |= self._without_entry([name.removeprefix(VALUE_PREFIX) for name in names])
        return missing

    def _without_entry(self, members: Sequence[str]) -> set[str]:
        exist = self._pipeline(members, lambda pipeline, member: pipeline.exists(entry_key(member)))
        return {member for member, exists in zip(members, exist, strict=True) if not exists}

    def _read_sets(self) -> set[str]:
        """What looks wrong of the orders of tenants and the sets of modules."""
        wrong: set[str] = set()
        for keys in self._scan_keys(TENANT_WORTH_PREFIX):
            for key in keys:
                for members in self._scan_sorted_set(key):
                    wrong |= self._strays_among(key, members, is_sorted=True)
        for keys in self._scan_keys(MODULE_PREFIX):
            for key in keys:
                for members in self._scan_set(key):
                    wrong |= self._strays_among(key, members, is_sorted=False)
        return wrong

    def _strays_among(self, key: str, members: Sequence[str], *, is_sorted: bool) -> set[str]:
        """members: that `key`, a sorted set or a set, had a moment before."""

        def read(client: Redis) -> list[Any]:
            with client.pipeline(transaction=True) as pipeline:
                for member in members:
                    pipeline.zscore(key, member) if is_sorted else pipeline.sismember(key, member)
                    pipeline.hmget(entry_key(member), FIELDS)
                return list(pipeline.execute())

        sentences = set()
        answers = self._ask(read)
        for member, place, texts in zip(members, answers[::2], answers[1::2], strict=True):
            is_in = place is not None if is_sorted else bool(place)
            fields, error = _read(texts)
            sentence = stray_contradiction(key, member, fields)
            if is_in and not error and sentence is not None:
                sentences.add(sentence)
        return sentences

    def _read_members(self, members: Iterable[str]) -> dict[str, list[str]]:
        """What looks wrong of these members."""
        ordered = sorted(members)
        pages = [ordered[start : start + PAGE] for start in range(0, len(ordered), PAGE)]
        views = (view for page in pages for view in self._views(page))
        return {view.member: sentences for view, sentences in views if sentences}

    def _views(self, members: Sequence[str]) -> list[tuple[MemberView, list[str]]]:
        """All that is known of each member, and what is wrong with it."""
        before = [_read(texts)[0] for texts in self._fields(members)]
        values_bytes = self._servers.ask_each(
            [VALUE_PREFIX + member for member in members],
            lambda pipeline, number: pipeline.strlen(VALUE_PREFIX + members[number]),
        )
        at_once = self._ask(lambda client: _read_at_once(client, members, before))
        newest_generation = int(at_once.pop() or 0)
        views = []
        for number, member in enumerate(members):
            answers = at_once[COMMANDS * number : COMMANDS * (number + 1)]
            texts, worth, due_s, tenant_worth, is_in_set, parent_depth = answers
            fields, error = _read(texts)
            view = MemberView(
                member=member,
                fields=fields,
                worth=worth,
                tenant_worth=tenant_worth,
                due_s=due_s,
                is_in_module_set=bool(is_in_set),
                parent_depth_tokens=None if parent_depth is None else int(parent_depth),
                newest_generation=newest_generation,
                value_bytes=values_bytes[number] if _is_same(before[number], fields) else 0,
            )
            sentences = [f"{entry_key(member)}: {error}"] if error else member_contradictions(view)
            views.append((view, sentences))
        return views

    def _fields(self, members: Sequence[str]) -> list[Any]:
        return self._pipeline(members, lambda pipeline, member: pipeline.hmget(entry_key(member), FIELDS))

    def _totals(self) -> Totals:
        def read(client: Redis) -> list[Any]:
            with client.pipeline(transaction=True) as pipeline:
                for counter in Counter:
                    pipeline.hgetall(counter.key)
                pipeline.get(GENERATION)
                return list(pipeline.execute())

        *hashes, newest_generation = self._ask(read)
        amounts = {
            (counter, scope.decode()): int(amount)
            for counter, by_scope in zip(Counter, hashes, strict=True)
            for scope, amount in by_scope.items()
        }
        return Totals(amounts, int(newest_generation or 0))

    def _value_servers(self) -> list[CacheServer]:
        """The servers that hold the ledger or a value that it counts."""
        servers: dict[CacheServer, None] = dict.fromkeys(self._servers.groups([PREFIX], TOPOLOGY_WAIT_S))
        for page in self._scan_sorted_set(WORTH):
            names = [VALUE_PREFIX + member for member in page]
            servers |= dict.fromkeys(self._servers.groups(names, TOPOLOGY_WAIT_S))
        return list(servers)

    def _scan_values(self, server: CacheServer) -> Iterator[list[str]]:
        return _scan(lambda cursor: server.client.scan(cursor, VALUE_PREFIX + "*", PAGE))

    def _scan_keys(self, prefix: str) -> Iterator[list[str]]:
        return self._scan(lambda client, cursor: client.scan(cursor, prefix + "*", PAGE))

    def _scan_sorted_set(self, key: str) -> Iterator[list[str]]:
        def scan(client: Any, cursor: int) -> tuple[int, list[bytes]]:
            cursor, page = client.zscan(key, cursor, count=PAGE)
            return cursor, [member for member, _ in page]

        return self._scan(scan)

    def _scan_set(self, key: str) -> Iterator[list[str]]:
        return self._scan(lambda client, cursor: client.sscan(key, cursor, count=PAGE))

    def _scan(self, scan: Callable[[Any, int], tuple[int, list[bytes]]]) -> Iterator[list[str]]:
        return _scan(lambda cursor: self._ask(lambda client: scan(client, cursor)))

    def _pipeline(self, subjects: Sequence[T], command: Callable[[Any, T], object]) -> list[Any]:
        """One command for each subject, in one round trip to the server of the ledger."""

        def ask(client: Redis) -> list[Any]:
            with client.pipeline(transaction=False) as pipeline:
                for subject in subjects:
                    command(pipeline, subject)
                return list(pipeline.execute())

        return cast(list[Any], self._ask(ask))

    def _ask(self, question: Callable[[Redis], Any]) -> Any:
        return self._servers.ask(PREFIX, question)


def check_ledger(url: str) -> list[str]:
    """The contradictions in the ledger of the cache at `url`. Raises StartupError where a server does not
    answer, or is none that can hold a cache.
    """
    check_cache_servers(url)
    limits = CacheLimits(
        io_s=SERVER_TIMEOUT_S,
        lookup_s=SERVER_TIMEOUT_S,
        connect_s=SERVER_TIMEOUT_S,
        failures_to_open=1,
        pause_s=SERVER_TIMEOUT_S,
    )
    servers = CacheServers(url, limits)
    try:
        return LedgerCheck(servers).contradictions()
    except (RedisError, OSError) as error:
        raise StartupError(f"the cache does not answer: {error}") from None
    finally:
        servers.close()


def _scan(scan: Callable[[int], Any]) -> Iterator[list[str]]:
    cursor = 0
    while True:
        cursor, page = scan(cursor)
        if page:
            yield [name.decode() for name in page]
        if not cursor:
            return


def _read(texts: Sequence[bytes | None]) -> tuple[EntryFields | None, str]:
    """The entry, or why it is none; neither where there is nothing."""
    try:
        return read_fields([None if text is None else text.decode() for text in texts]), ""
    except ValueError as error:
        return None, f"it is no entry: {error}"


def _is_same(before: EntryFields | None, after: EntryFields | None) -> bool:
    """Whether it was neither counted anew nor dropped: a value that was read in between belongs to it."""
    return (before and before.generation) == (after and after.generation)


def _read_at_once(client: Redis, members: Sequence[str], before: Sequence[EntryFields | None]) -> list[Any]:
    """COMMANDS answers for each member, then the newest generation: all of one moment.

    before: what the entries said a moment before, which tells the tenant, the module and the parent to look
    for.
    """
    with client.pipeline(transaction=True) as pipeline:
        for member, fields in zip(members, before, strict=True):
            pipeline.hmget(entry_key(member), FIELDS)
            pipeline.zscore(WORTH, member)
            pipeline.zscore(DUE, member)
            pipeline.zscore(TENANT_WORTH_PREFIX + (fields.tenant if fields else ""), member)
            pipeline.sismember(MODULE_PREFIX + (fields.module if fields else ""), member)
            pipeline.hget(entry_key(fields.parent if fields else ""), Field.DEPTH)
        pipeline.get(GENERATION)
        return list(pipeline.execute())
