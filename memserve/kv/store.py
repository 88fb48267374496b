"""KV chunks in Redis, for the worker's own threads: blocking calls with bounded waits that never raise for
Redis's sake.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

from redis.exceptions import RedisError

from memserve.kv.keys import member, redis_key
from memserve.kv.ledger.ledger import (
    NO_QUOTAS,
    Admission,
    Candidate,
    Entry,
    Ledger,
    Owner,
    Quotas,
    Removal,
    Reservation,
    Settled,
)
from memserve.kv.outcomes import Account, Put, StoreStats
from memserve.kv.transport.breaker import Circuit
from memserve.kv.transport.limits import WORKER_LIMITS, CacheLimits
from memserve.kv.transport.resp import Kind, ProtocolError, Reply
from memserve.kv.transport.server import CacheServer, Question
from memserve.kv.transport.servers import CacheServers
from memserve.kv.transport.wire import Item, Place, Wire, in_flight
from memserve.kv.values.codecs import RAW_CHUNKS, ChunkCodec
from memserve.kv.values.envelope import HEADER_BYTES, Buffer, Codec, Refusal, Verification, encode_header


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
        self._namespace_bytes = bytes.fromhex(namespace)
        if len(self._namespace_bytes) != 32:
            raise ValueError(f"namespace is no sha256 digest: {namespace!r}")
        self._codec = codec
        self._ttl_s = ttl_s

        self._lock = threading.Lock()
        self._stats = StoreStats()
        self._servers = CacheServers(redis_url, limits, failed=self.loop_failed)
        self._limits = limits
        self.ledger = Ledger(self._servers, ttl_s=ttl_s, quotas=quotas, admit_on_use=admit_on_use)

    @property
    def circuit(self) -> Circuit:
        """The worst of the servers' circuits."""
        return self._servers.circuit

    def take_stats(self) -> StoreStats:
        """The stats since the last call, and start anew."""
        with self._lock:
            taken, self._stats = self._stats, StoreStats()
        return taken

    def exists_many(self, keys: Sequence[bytes]) -> list[bool]:
        """Whether Redis has a value under each key, in one round trip to every server that may. keys: [n]
        chunk keys.

        False for those of a server that does not answer.
        """
        names = [redis_key(self._namespace, key) for key in keys]
        commands = [("EXISTS", name) for name in names]
        return [
            found == 1
            for found in self._ask(self._groups(names, self._limits.lookup_s), commands, lookup=True)
        ]

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
        groups = self._groups(names, self._limits.connect_s)
        loaded = [False] * len(keys)
        refused: dict[int, Refusal] = {}
        read_bytes = 0
        for server, numbers in groups.items():
            with self._exchange(server, numbers, deadline_s) as wire:
                if wire is not None:
                    places = self._places(
                        [keys[number] for number in numbers],
                        [names[number] for number in numbers],
                        [destinations[number] for number in numbers],
                    )
                    replies = wire.get(places, ttl_s=self._ttl_s, deadline_s=deadline_s)
                    for number, place, reply in zip(numbers, places, replies, strict=True):
                        refusal = self._accept(reply, keys[number], place, destinations[number])
                        if refusal is not None:
                            refused[number] = refusal
                        elif reply.kind is Kind.VALUE:
                            loaded[number] = True
                            read_bytes += reply.value_bytes - HEADER_BYTES
                            loaded_one(number)
        if refused:
            self._remove([member(self._namespace, keys[number]) for number in refused])
        hits = sum(loaded)
        with self._lock:
            stats = self._stats
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
        groups = self._groups(names, self._limits.connect_s)
        present = self._ask(groups, [("EXPIRE", name, self._ttl_s) for name in names])
        payloads = self._encoded(chunks, present)
        candidates = self._candidates(keys, chunks, payloads, present, account)
        reservation = self._reserve(list(candidates.values()), account) if candidates else None
        admissions = dict(zip(candidates, reservation.admissions, strict=True)) if reservation else {}
        outcomes = [Put.FAILED] * len(keys)
        for number, admission in admissions.items():
            if admission is not Admission.STORE:
                outcomes[number] = Put.ALREADY_PRESENT if admission is Admission.PRESENT else Put.NOT_ADMITTED
        items = {
            number: Item(
                names[number].encode(), self._header(keys[number], payloads[number]), payloads[number]
            )
            for number, admission in admissions.items()
            if admission is Admission.STORE
        }
        kept = self._write(groups, items, deadline_s)
        if reservation is not None:
            entries = reservation.entries
            self._settle(
                [
                    (Settled.STORED if there else Settled.FAILED, entries[candidates[number].member])
                    for number, there in kept.items()
                ]
            )
        written_bytes = 0
        for number, there in kept.items():
            if there:
                outcomes[number] = Put.STORED
                written_bytes += memoryview(payloads[number]).nbytes
        count = Counter(outcomes)
        with self._lock:
            stats = self._stats
            stats.stored += count[Put.STORED]
            stats.already_present += count[Put.ALREADY_PRESENT]
            stats.store_failures += count[Put.FAILED]
            refused = (Admission.BUSY, Admission.NOT_YET, Admission.NO_ROOM)
            stats.not_admitted.update(admission for admission in admissions.values() if admission in refused)
            stats.written_bytes += written_bytes
            stats.write_s += time.perf_counter() - started_s
        return outcomes

    def use(self, keys: Sequence[bytes]) -> None:
        """Chunks were loaded: they are worth more, and what stands before them lives on. keys: [n], a chain's
        beginning first.
        """
        with self._told():
            self.ledger.use([member(self._namespace, key) for key in keys])

    def loop_failed(self, loop: str) -> None:
        """Count a failed step of a background thread, for `memserve.processes.supervised`."""
        with self._lock:
            self._stats.loop_failures[loop] += 1

    def removed(self, reason: Removal, chunks: int) -> None:
        """Count what the cache's upkeep has removed."""
        with self._lock:
            self._stats.removed[reason] += chunks

    def _places(
        self, keys: Sequence[bytes], names: Sequence[str], destinations: Sequence[memoryview]
    ) -> list[Place]:
        """Where the values of one exchange go: raw ones to where they are wanted, others to as much scratch
        memory as is in flight.
        """
        heads = memoryview(bytearray(HEADER_BYTES * len(keys)))
        bodies = list(destinations)
        if self._codec.code is not Codec.RAW:
            lengths = [self._codec.limit_bytes(destination.nbytes) for destination in destinations]
            longest = max(lengths, default=0)
            scratch = [memoryview(bytearray(longest)) for _ in range(min(in_flight(longest), len(keys)))]
            bodies = [scratch[number % len(scratch)][:length] for number, length in enumerate(lengths)]
        fixed = self._codec.fixed_length
        places: list[Place] = []
        for number, (key, name, body) in enumerate(zip(keys, names, bodies, strict=True)):
            head = heads[HEADER_BYTES * number : HEADER_BYTES * (number + 1)]
            check = self._verification(key, body) if fixed else None
            places.append(Place(name.encode(), head, body, at_most=not fixed, check=check))
        return places

    def _accept(self, reply: Reply, key: bytes, place: Place, destination: memoryview) -> Refusal | None:
        """Verify a value and decode it into its destination. Returns why not; None for a good value, and
        where there is none.
        """
        if reply.kind is not Kind.VALUE:
            return Refusal.WRONG_LENGTH if reply.kind is Kind.OTHER_LENGTH else None
        head, payload = (
            place.head[: reply.value_bytes],
            place.body[: max(0, reply.value_bytes - HEADER_BYTES)],
        )
        refusal = (place.check or self._verification(key, payload)).refusal(head)
        if refusal is not None:
            return refusal
        try:
            self._codec.decode(payload, destination)
        except ValueError:
            return Refusal.UNDECODABLE
        return None

    def _verification(self, key: bytes, payload: memoryview) -> Verification:
        return Verification(payload, namespace=self._namespace_bytes, key=key, codec=self._codec.code)

    def _encoded(self, chunks: Sequence[Buffer], present: Sequence[int | None]) -> dict[int, Buffer]:
        """The payloads of the chunks that are absent, by number; without those that have none.

        present: [chunks] 0 where Redis has no value.
        """
        payloads: dict[int, Buffer] = {}
        for number, there in enumerate(present):
            if there == 0:
                with suppress(ValueError):  # such as KV that is not finite, in int8
                    payloads[number] = self._codec.encode(chunks[number])
        return payloads

    def _candidates(
        self,
        keys: Sequence[bytes],
        chunks: Sequence[Buffer],
        payloads: Mapping[int, Buffer],
        present: Sequence[int | None],
        account: Account,
    ) -> dict[int, Candidate]:
        """What the ledger is asked about, by number: chunks with a payload, and those that are there already.

        How long the latter are is not known; should the ledger not count them yet, it counts the most that
        they can be.
        """
        candidates: dict[int, Candidate] = {}
        for number, there in enumerate(present):
            if there == 1:
                payload_bytes = self._codec.limit_bytes(memoryview(chunks[number]).nbytes)
            elif number in payloads:
                payload_bytes = memoryview(payloads[number]).nbytes
            else:
                continue
            parent = account.parents[number]
            candidates[number] = Candidate(
                member=member(self._namespace, keys[number]),
                stored_bytes=HEADER_BYTES + payload_bytes,
                parent=member(self._namespace, parent) if parent else "",
                depth_tokens=account.depths_tokens[number],
                present=there == 1,
            )
        return candidates

    def _header(self, key: bytes, payload: Buffer) -> bytes:
        return encode_header(payload, namespace=self._namespace_bytes, key=key, codec=self._codec.code)

    def _write(
        self, groups: Mapping[CacheServer, Sequence[int]], items: Mapping[int, Item], deadline_s: float
    ) -> dict[int, bool]:
        """Returns by number whether Redis took the item; nothing of those of which that is not known."""
        kept: dict[int, bool] = {}
        for server, numbers in groups.items():
            own = [number for number in numbers if number in items]
            with self._exchange(server, own, deadline_s) as wire:
                if wire is not None:
                    taken = wire.set(
                        [items[number] for number in own], ttl_s=self._ttl_s, deadline_s=deadline_s
                    )
                    kept.update(zip(own, taken, strict=True))
        return kept

    def _reserve(self, candidates: Sequence[Candidate], account: Account) -> Reservation | None:
        """None when the ledger does not answer: then nothing may be written. What goes for the candidates is
        gone when this returns.
        """
        with self._told():
            reservation = self.ledger.reserve(
                candidates, account.owner, worth_per_use=account.worth_per_use, at_once=account.at_once
            )
            for _, reason in reservation.victims:
                self.removed(reason, 1)
            self.ledger.remove_values([entry for entry, _ in reservation.victims])
            return reservation
        return None

    def _settle(self, settled: Sequence[tuple[Settled, Entry]]) -> None:
        """A reservation that is not settled, because the ledger or a server did not answer, falls due."""
        with self._told():
            self.ledger.unlink_values(self.ledger.settle(settled))

    def _remove(self, members: Sequence[str]) -> None:
        """Remove values that did not verify."""
        with self._told():
            condemned, _ = self.ledger.condemn(members)
            self.ledger.unlink_values(members)  # those too that the ledger does not count
            self.ledger.settle((Settled.GONE, entry) for entry in condemned)
            self.removed(Removal.REFUSED, len(members))

    @contextmanager
    def _told(self) -> Iterator[None]:
        """What Redis does to an exchange with the ledger ends the block, and is counted."""
        try:
            yield
        except (RedisError, OSError):
            with self._lock:
                self._stats.unanswered += 1

    def close(self) -> None:
        self._servers.close()

    def _groups(self, names: Sequence[str], wait_s: float) -> dict[CacheServer, list[int]]:
        """The numbers of the names that each server holds; without those that no known server holds, which is
        counted.
        """
        groups = self._servers.groups(names, wait_s)
        if sum(map(len, groups.values())) < len(names):
            with self._lock:
                self._stats.skipped += 1
        return groups

    def _ask(
        self,
        groups: Mapping[CacheServer, Sequence[int]],
        commands: Sequence[tuple[str | int, ...]],
        *,
        lookup: bool = False,
    ) -> list[int | None]:
        """Send every server its commands, and only then read the answers: together they take as long as the
        slowest.

        commands: one for each name that was grouped, with a number for an answer. Returns these; None where
        none came.
        """
        deadline_s = time.monotonic() + (self._limits.lookup_s if lookup else self._limits.io_s)
        asked: list[tuple[CacheServer, Sequence[int], Question]] = []
        for server, numbers in groups.items():
            # Connecting to some may have taken all the time; the others are not to blame.
            if time.monotonic() < deadline_s and self._allowed(server):
                client = server.lookup_client if lookup else server.client
                try:
                    asked.append(
                        (
                            server,
                            numbers,
                            Question(client.connection_pool, [commands[number] for number in numbers]),
                        )
                    )
                except (RedisError, OSError):
                    self._failed(server)
        answers: list[int | None] = [None] * len(commands)
        for server, numbers, question in asked:
            try:
                replies = question.answers(deadline_s)
            except (RedisError, OSError):
                self._failed(server)
                continue
            server.answered(replies)
            for number, reply in zip(numbers, replies, strict=True):
                answers[number] = reply if isinstance(reply, int) else None
            if not all(isinstance(reply, int) for reply in replies):  # Redis lives and says no
                with self._lock:
                    self._stats.unanswered += 1
        return answers

    @contextmanager
    def _exchange(
        self, server: CacheServer, numbers: Sequence[int], deadline_s: float
    ) -> Iterator[Wire | None]:
        """A connection for the large values of one server. What Redis does to it ends the block, and is
        counted.

        None while the circuit is open, or when other servers have taken all the time.
        """
        if not numbers or time.monotonic() >= deadline_s or not self._allowed(server):
            yield None
            return
        try:
            wire = server.take_wire()
        except (RedisError, OSError):
            self._failed(server)
            yield None
            return
        try:
            yield wire
        except (RedisError, OSError, ProtocolError):
            wire.close()
            self._failed(server)
            return
        except BaseException:
            wire.close()
            raise
        server.answered()
        server.give_back(wire)

    def _allowed(self, server: CacheServer) -> bool:
        if server.circuit is Circuit.CLOSED:
            return True
        with self._lock:
            self._stats.skipped += 1
        return False

    def _failed(self, server: CacheServer) -> None:
        opened = server.failed()
        with self._lock:
            self._stats.unanswered += 1
            self._stats.circuit_opened += opened
