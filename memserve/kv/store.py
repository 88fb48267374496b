"""KV chunks in Redis, for the worker's own threads: blocking calls with bounded waits that never raise for
Redis's sake.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from redis.exceptions import RedisError

from memserve.kv.chunk_format import ChunkFormat
from memserve.kv.exchange import Exchange, Groups
from memserve.kv.keys import member, redis_key
from memserve.kv.ledger.ledger import Ledger
from memserve.kv.ledger.records import (
    NO_QUOTAS,
    Admission,
    Candidate,
    Entry,
    Owner,
    Quotas,
    Removal,
    Reservation,
    Settled,
)
from memserve.kv.outcomes import Account, LiveStats, Put, StoreStats
from memserve.kv.transport.breaker import Circuit
from memserve.kv.transport.limits import WORKER_LIMITS, CacheLimits
from memserve.kv.transport.resp import Kind
from memserve.kv.transport.servers import CacheServers
from memserve.kv.transport.wire import Item
from memserve.kv.values.codecs import RAW_CHUNKS, ChunkCodec
from memserve.kv.values.envelope import HEADER_BYTES, Buffer, Refusal

# Of the admissions, those that keep a chunk out.
NOT_ADMITTED = (Admission.BUSY, Admission.NOT_YET, Admission.NO_ROOM)


@dataclass(slots=True)
class _StoredChunk:
    """A chunk on its way into Redis."""

    key: bytes
    name: str
    """Of its value in Redis."""
    candidate: Candidate
    payload: Buffer | None
    """None: its value is in Redis already."""
    entry: Entry | None = None
    """Its reservation. None: it is not to be written."""
    outcome: Put = Put.FAILED


class RedisChunkStore:
    """The chunks of one namespace. Thread-safe; each call uses a connection of its own.

    Whatever Redis does (slow, full, wrong, gone) the answer is a miss or a failed put, counted in the stats.
    While a server does not answer, its circuit is open and calls pass it over; a thread of its own tries
    every `pause_s`, so that no request waits for a trial.
    """

    def __init__(
        self,
        redis_url: str,
        namespace: str,
        *,
        codec: ChunkCodec = RAW_CHUNKS,
        ttl_s: int = 24 * 3600,
        quotas: Quotas = NO_QUOTAS,
        admit_on_use: int = 1,
        limits: CacheLimits = WORKER_LIMITS,
    ) -> None:
        """redis_url: as `memserve.kv.transport.url.parse_cache_url` takes it. namespace:
        `CacheNamespace.digest`, hex. codec: the namespace's. ttl_s: from the last use. quotas, admit_on_use:
        as the ledger takes them. limits: of each server.

        Raises ValueError for a namespace that is not a digest, a ttl_s below 1, or a URL that is not Redis's.
        Does not connect.
        """
        if ttl_s < 1:
            raise ValueError(f"ttl_s must be at least 1, not {ttl_s}")
        self._namespace = namespace
        self._format = ChunkFormat(namespace, codec)
        self._ttl_s = ttl_s
        self._stats = LiveStats()
        self._servers = CacheServers(redis_url, limits, failed=self.loop_failed)
        self._limits = limits
        self._exchange = Exchange(self._servers, self._stats)
        self.ledger = Ledger(self._servers, ttl_s=ttl_s, quotas=quotas, admit_on_use=admit_on_use)

    def close(self) -> None:
        self._servers.close()

    @property
    def circuit(self) -> Circuit:
        """The worst of the servers' circuits."""
        return self._servers.circuit

    def take_stats(self) -> StoreStats:
        """The stats since the last call, and start anew."""
        return self._stats.take()

    def exists_many(self, keys: Sequence[bytes]) -> list[bool]:
        """Whether Redis has a value under each key, in one round trip to every server that may. keys: [n]
        chunk keys.

        False for those of a server that does not answer.
        """
        names = [redis_key(self._namespace, key) for key in keys]
        groups = self._exchange.groups(names, self._limits.lookup_s)
        commands = [("EXISTS", name) for name in names]
        counts = self._exchange.ask(groups, commands, timeout_s=self._limits.lookup_s, lookup=True)
        return [count == 1 for count in counts]

    def load(
        self,
        keys: Sequence[bytes],
        destinations: Sequence[memoryview],
        *,
        budget_s: float,
        loaded_one: Callable[[int], None] = lambda number: None,
    ) -> list[bool]:
        """Fetch chunks into the caller's memory and slide their time to live.

        destinations: one for each key, writable and contiguous, exactly as long as the chunk must be.
        budget_s: for all of them. loaded_one: called with a chunk's number once it has come, verified and is
        decoded, while others are still on their way. Returns for each whether it came, verified and was
        decoded; where not, the bytes of the destination are of no meaning. A value that does not verify, or
        cannot be decoded, is counted and deleted.
        """
        started_s = time.perf_counter()
        deadline_s = time.monotonic() + budget_s
        names = [redis_key(self._namespace, key) for key in keys]
        loaded = [False] * len(keys)
        refused: dict[int, Refusal] = {}
        read_bytes = 0
        for server, numbers in self._exchange.groups(names, self._limits.connect_s).items():
            with self._exchange.wire(server, numbers, deadline_s) as wire:
                if wire is None:
                    continue
                places = self._format.places(
                    [keys[number] for number in numbers],
                    [names[number] for number in numbers],
                    [destinations[number] for number in numbers],
                )
                replies = wire.get(places, ttl_s=self._ttl_s, deadline_s=deadline_s)
                for number, place, reply in zip(numbers, places, replies, strict=True):
                    refusal = self._format.accept(reply, keys[number], place, destinations[number])
                    if refusal is not None:
                        refused[number] = refusal
                    elif reply.kind is Kind.VALUE:
                        loaded[number] = True
                        read_bytes += reply.value_bytes - HEADER_BYTES
                        loaded_one(number)
        if refused:
            self._remove([member(self._namespace, keys[number]) for number in refused])
        hits = sum(loaded)
        with self._stats.counting() as stats:
            stats.hits += hits
            stats.misses += len(keys) - hits
            stats.refused.update(refused.values())
            stats.read_bytes += read_bytes
            stats.read_s += time.perf_counter() - started_s
        return loaded

    def store(
        self,
        keys: Sequence[bytes],
        chunks: Sequence[Buffer],
        *,
        budget_s: float,
        account: Account | None = None,
    ) -> list[Put]:
        """Store chunks. One that is there already is not sent again: its time to live is slid. budget_s: for
        all of them.

        keys: [n] chunk keys, a chain's beginning first. chunks: [n] contiguous bytes; those that are absent
        are held encoded, all at once. account: None for chunks that stand alone and belong to the default
        tenant.
        """
        account = account or Account(Owner(), [b""] * len(keys), [0] * len(keys), worth_per_use=1.0)
        started_s = time.perf_counter()
        deadline_s = time.monotonic() + budget_s
        names = [redis_key(self._namespace, key) for key in keys]
        groups = self._exchange.groups(names, self._limits.connect_s)
        present = self._exchange.ask(
            groups, [("EXPIRE", name, self._ttl_s) for name in names], timeout_s=self._limits.io_s
        )
        stored: dict[int, _StoredChunk] = {}
        for number, (key, chunk) in enumerate(zip(keys, chunks, strict=True)):
            if present[number] is not None:
                with suppress(ValueError):  # a chunk that has no payload
                    stored[number] = self._prepared(number, key, chunk, account, present[number] == 1)
        admissions = self._reserve(list(stored.values()), account)
        self._write(groups, stored, deadline_s)
        outcomes = [stored[number].outcome if number in stored else Put.FAILED for number in range(len(keys))]
        count = Counter(outcomes)
        with self._stats.counting() as stats:
            stats.stored += count[Put.STORED]
            stats.already_present += count[Put.ALREADY_PRESENT]
            stats.store_failures += count[Put.FAILED]
            stats.not_admitted.update(admission for admission in admissions if admission in NOT_ADMITTED)
            stats.written_bytes += sum(
                memoryview(chunk.payload).nbytes
                for chunk in stored.values()
                if chunk.outcome is Put.STORED and chunk.payload is not None
            )
            stats.write_s += time.perf_counter() - started_s
        return outcomes

    def use(self, keys: Sequence[bytes]) -> None:
        """Chunks were loaded: they are worth more, and what stands before them lives on. keys: [n], a chain's
        beginning first.
        """
        with self._counting_failures():
            self.ledger.use([member(self._namespace, key) for key in keys])

    def loop_failed(self, loop: str) -> None:
        """Count a failed step of a background thread, for `memserve.processes.supervised`."""
        with self._stats.counting() as stats:
            stats.loop_failures[loop] += 1

    def removed(self, reason: Removal, chunks: int) -> None:
        """Count what the cache's upkeep has removed."""
        with self._stats.counting() as stats:
            stats.removed[reason] += chunks

    def _prepared(
        self, number: int, key: bytes, chunk: Buffer, account: Account, is_present: bool
    ) -> _StoredChunk:
        """A chunk with all that the ledger is asked. Raises ValueError for a chunk that has no payload.

        How long a value is that is present is not known. Should the ledger not count it yet, it counts the
        most that it can be.
        """
        payload = None if is_present else self._format.encode(chunk)
        if payload is None:
            value_bytes = self._format.limit_bytes(chunk)
        else:
            value_bytes = HEADER_BYTES + memoryview(payload).nbytes
        parent = account.parents[number]
        candidate = Candidate(
            member=member(self._namespace, key),
            stored_bytes=value_bytes,
            parent=member(self._namespace, parent) if parent else "",
            depth_tokens=account.depths_tokens[number],
            present=is_present,
        )
        return _StoredChunk(key, redis_key(self._namespace, key), candidate, payload)

    def _reserve(self, chunks: Sequence[_StoredChunk], account: Account) -> tuple[Admission, ...]:
        """Ask the ledger, which decides what is written. None of them when it does not answer."""
        reservation = self._reservation([chunk.candidate for chunk in chunks], account) if chunks else None
        if reservation is None:
            return ()
        for chunk, admission in zip(chunks, reservation.admissions, strict=True):
            match admission:
                case Admission.STORE:
                    chunk.entry = reservation.entries[chunk.candidate.member]
                case Admission.PRESENT:
                    chunk.outcome = Put.ALREADY_PRESENT
                case _:
                    chunk.outcome = Put.NOT_ADMITTED
        return reservation.admissions

    def _reservation(self, candidates: Sequence[Candidate], account: Account) -> Reservation | None:
        """None when the ledger does not answer. What goes for the candidates is gone when this returns."""
        with self._counting_failures():
            reservation = self.ledger.reserve(
                candidates, account.owner, worth_per_use=account.worth_per_use, at_once=account.at_once
            )
            for _, reason in reservation.victims:
                self.removed(reason, 1)
            self.ledger.remove_values([entry for entry, _ in reservation.victims])
            return reservation
        return None

    def _write(self, groups: Groups, stored: Mapping[int, _StoredChunk], deadline_s: float) -> None:
        """Write the chunks that have a reservation, and settle those of which it is known what became of
        them.

        A reservation that is not settled, because the ledger or a server did not answer, falls due.
        """
        settled: list[tuple[Settled, Entry]] = []
        for server, numbers in groups.items():
            chunks = [stored[number] for number in numbers if number in stored]
            reserved = [(chunk, chunk.entry) for chunk in chunks if chunk.entry is not None]
            items = [self._item(chunk) for chunk, _ in reserved]
            with self._exchange.wire(server, items, deadline_s) as wire:
                if wire is None:
                    continue
                taken = wire.set(items, ttl_s=self._ttl_s, deadline_s=deadline_s)
                for (chunk, entry), is_taken in zip(reserved, taken, strict=True):
                    settled.append((Settled.STORED if is_taken else Settled.FAILED, entry))
                    chunk.outcome = Put.STORED if is_taken else Put.FAILED
        with self._counting_failures():
            self.ledger.unlink_values(self.ledger.settle(settled))

    def _item(self, chunk: _StoredChunk) -> Item:
        assert chunk.payload is not None  # the ledger never has a present value written
        return self._format.item(chunk.name, chunk.key, chunk.payload)

    def _remove(self, members: Sequence[str]) -> None:
        """Remove values that did not verify."""
        with self._counting_failures():
            condemned, _ = self.ledger.condemn(members)
            self.ledger.unlink_values(members)  # those too that the ledger does not count
            self.ledger.settle((Settled.GONE, entry) for entry in condemned)
            self.removed(Removal.REFUSED, len(members))

    @contextmanager
    def _counting_failures(self) -> Iterator[None]:
        """What Redis does to an exchange with the ledger ends the block, and is counted."""
        try:
            yield
        except (RedisError, OSError):
            with self._stats.counting() as stats:
                stats.unanswered += 1
