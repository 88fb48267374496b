"""KV chunks in Redis, for the worker's own threads: blocking calls with bounded waits that never raise for Redis's sake."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from typing import TypeVar

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError
from redis.retry import Retry

from memserve.kv.breaker import Circuit, CircuitBreaker
from memserve.kv.codec import HEADER_BYTES, Buffer, Refusal, encode_header, verify
from memserve.kv.keys import redis_key
from memserve.kv.resp import Kind, ProtocolError
from memserve.kv.wire import Item, Place, Wire

T = TypeVar("T")


class Put(Enum):
    """What became of a chunk that was to be stored."""

    STORED = "stored"
    ALREADY_PRESENT = "already_present"
    FAILED = "failed"


@dataclass(slots=True)
class StoreStats:
    """What happened since the last reset. Chunks, payload bytes, seconds summed over threads.

    unanswered: calls that Redis failed or did not answer in time; skipped: calls not made because the circuit was open.
    """

    hits: int = 0
    misses: int = 0
    refused: Counter[Refusal] = field(default_factory=Counter)
    stored: int = 0
    already_present: int = 0
    store_failures: int = 0
    unanswered: int = 0
    skipped: int = 0
    circuit_opened: int = 0
    read_bytes: int = 0
    written_bytes: int = 0
    read_s: float = 0.0
    write_s: float = 0.0


class RedisChunkStore:
    """The chunks of one namespace. Thread-safe; each call uses a connection of its own.

    Whatever Redis does (slow, full, wrong, gone) the answer is a miss or a failed put, counted in the stats. While it does not answer, the
    circuit is open and calls return at once; a thread of its own tries every `pause_s`, so that no request waits for a trial.
    """

    def __init__(
        self,
        redis_url: str,
        namespace: str,
        *,
        ttl_s: int = 24 * 3600,
        io_timeout_s: float = 0.5,
        lookup_timeout_s: float = 0.1,
        connect_timeout_s: float = 0.5,
        failures_to_open: int = 2,
        pause_s: float = 1.0,
    ) -> None:
        """namespace: `CacheNamespace.digest`, hex. ttl_s: from the last use. io_timeout_s: for each read or write on the socket of a load
        or store; lookup_timeout_s: the same for a look-up, which every request waits for.

        Raises ValueError for a namespace that is not a digest, a ttl_s below 1, or a URL that is not Redis's. Does not connect.
        """
        if ttl_s < 1:
            raise ValueError(f"ttl_s must be at least 1, not {ttl_s}")
        self._namespace = namespace
        self._namespace_bytes = bytes.fromhex(namespace)
        if len(self._namespace_bytes) != 32:
            raise ValueError(f"namespace is no sha256 digest: {namespace!r}")
        self._ttl_s = ttl_s

        # One retry, only for a connection that turns out to be closed: after a restart of Redis every pooled connection is.
        def client(timeout_s: float) -> Redis:
            return Redis.from_url(
                redis_url,
                protocol=2,
                socket_timeout=timeout_s,
                socket_connect_timeout=min(timeout_s, connect_timeout_s),
                retry=Retry(NoBackoff(), 1, supported_errors=(RedisConnectionError,)),
            )

        self._redis, self._lookup_redis = client(io_timeout_s), client(lookup_timeout_s)
        self._pause_s = pause_s
        self._breaker = CircuitBreaker(failures_to_open=failures_to_open, pause_s=0.0)
        self._closing = threading.Event()
        self._prober: threading.Thread | None = None
        self._lock = threading.Lock()
        self._stats = StoreStats()
        self._io_timeout_s = io_timeout_s
        self._wires: list[Wire] = []  # idle ones

    @property
    def circuit(self) -> Circuit:
        return self._breaker.state

    def take_stats(self) -> StoreStats:
        """The stats since the last call, and start anew."""
        with self._lock:
            taken, self._stats = self._stats, StoreStats()
        return taken

    def exists_many(self, keys: Sequence[bytes]) -> list[bool]:
        """Whether Redis has a value under each key, in one round trip. keys: [n] chunk keys. All False when it does not answer."""

        def ask() -> list[bool]:
            with self._lookup_redis.pipeline(transaction=False) as pipeline:
                for key in keys:
                    pipeline.exists(redis_key(self._namespace, key))
                return [bool(found) for found in pipeline.execute()]

        return (self._call(ask) if keys else None) or [False] * len(keys)

    def load(self, keys: Sequence[bytes], destinations: Sequence[memoryview], *, budget_s: float) -> list[bool]:
        """Fetch chunks into the caller's memory and slide their time to live.

        destinations: one for each key, writable and contiguous, exactly as long as the payload must be. budget_s: for all of them.
        Returns for each whether it came and verified; where not, the bytes of the destination are of no meaning. A value that does not
        verify is counted and deleted.
        """
        started_s = time.perf_counter()
        heads = memoryview(bytearray(HEADER_BYTES * len(keys)))
        places = [
            Place(redis_key(self._namespace, key).encode(), heads[HEADER_BYTES * number : HEADER_BYTES * (number + 1)], destination)
            for number, (key, destination) in enumerate(zip(keys, destinations, strict=True))
        ]
        loaded: list[bool] = []
        refused: Counter[Refusal] = Counter()
        bad: list[bytes] = []
        with self._exchange(len(keys)) as wire:
            if wire is not None:
                kinds = wire.get(places, ttl_s=self._ttl_s, deadline_s=time.monotonic() + budget_s)
                for key, place, kind in zip(keys, places, kinds, strict=True):
                    refusal = self._refusal(kind, key, place)
                    loaded.append(kind is Kind.VALUE and refusal is None)
                    if refusal is not None:
                        refused[refusal] += 1
                        bad.append(place.name)
        if bad:
            self._call(lambda: self._redis.unlink(*bad))
        hits = sum(loaded)
        with self._lock:
            stats = self._stats
            stats.hits += hits
            stats.misses += len(keys) - hits
            stats.refused += refused
            stats.read_bytes += sum(place.body.nbytes for place, good in zip(places, loaded, strict=False) if good)
            stats.read_s += time.perf_counter() - started_s
        return loaded + [False] * (len(keys) - len(loaded))

    def store(self, keys: Sequence[bytes], payloads: Sequence[Buffer], *, budget_s: float) -> list[Put]:
        """Store chunks. One that is there already is not sent again: its time to live is slid. budget_s: for all of them."""
        started_s = time.perf_counter()
        names = [redis_key(self._namespace, key) for key in keys]
        present = self._call(lambda: self._touch(names)) if keys else []
        outcomes = [Put.FAILED] * len(keys)
        written_bytes = 0
        if present is not None:
            outcomes = [Put.ALREADY_PRESENT if there else Put.FAILED for there in present]
            absent = [number for number, there in enumerate(present) if not there]
            items = [
                Item(
                    names[number].encode(),
                    encode_header(payloads[number], namespace=self._namespace_bytes, key=keys[number]),
                    payloads[number],
                )
                for number in absent
            ]
            with self._exchange(len(absent)) as wire:
                if wire is not None:
                    taken = wire.set(items, ttl_s=self._ttl_s, deadline_s=time.monotonic() + budget_s)
                    for number, kept in zip(absent, taken, strict=True):
                        if kept:
                            outcomes[number] = Put.STORED
                            written_bytes += memoryview(payloads[number]).nbytes
        count = Counter(outcomes)
        with self._lock:
            stats = self._stats
            stats.stored += count[Put.STORED]
            stats.already_present += count[Put.ALREADY_PRESENT]
            stats.store_failures += count[Put.FAILED]
            stats.written_bytes += written_bytes
            stats.write_s += time.perf_counter() - started_s
        return outcomes

    def close(self) -> None:
        self._closing.set()
        with self._lock:
            prober = self._prober
        if prober is not None:
            prober.join()
        self._redis.close()
        self._lookup_redis.close()
        with self._lock:
            wires, self._wires = self._wires, []
        for wire in wires:
            wire.close()

    def _refusal(self, kind: Kind, key: bytes, place: Place) -> Refusal | None:
        if kind is Kind.VALUE:
            return verify(place.head, place.body, namespace=self._namespace_bytes, key=key)
        return Refusal.WRONG_LENGTH if kind is Kind.OTHER_LENGTH else None

    def _touch(self, names: Sequence[str]) -> list[bool]:
        """Slide the time to live of what is there. Returns for each name whether it is."""
        with self._redis.pipeline(transaction=False) as pipeline:
            for name in names:
                pipeline.expire(name, self._ttl_s)
            return [bool(found) for found in pipeline.execute()]

    @contextmanager
    def _exchange(self, values: int) -> Iterator[Wire | None]:
        """A connection for large values, or None while the circuit is open. What Redis does to it ends the block, and is counted."""
        if values == 0 or not self._allowed():
            yield None
            return
        try:
            wire = self._idle_wire() or Wire.connect(self._redis.connection_pool, self._io_timeout_s)
        except (RedisError, OSError):
            self._failed()
            yield None
            return
        try:
            yield wire
        except (RedisError, OSError, ProtocolError):
            wire.close()
            self._failed()
            return
        except BaseException:
            wire.close()
            raise
        self._breaker.succeeded()
        with self._lock:
            self._wires.append(wire)

    def _idle_wire(self) -> Wire | None:
        """One that still lives: after a restart of Redis none does."""
        while True:
            with self._lock:
                if not self._wires:
                    return None
                wire = self._wires.pop()
            if wire.is_alive():
                return wire
            wire.close()

    def _allowed(self) -> bool:
        if self._breaker.state is Circuit.CLOSED:
            return True
        with self._lock:
            self._stats.skipped += 1
        return False

    def _failed(self) -> None:
        opened = self._breaker.failed(time.monotonic())
        with self._lock:
            self._stats.unanswered += 1
            self._stats.circuit_opened += opened
            if opened and not self._closing.is_set():
                self._prober = threading.Thread(target=self._probe, name="memserve_kv_probe", daemon=True)
                self._prober.start()

    def _probe(self) -> None:
        """Until Redis answers again."""
        while not self._closing.wait(self._pause_s):
            self._breaker.allows(time.monotonic())
            try:
                self._redis.ping()
            except (RedisError, OSError):
                self._breaker.failed(time.monotonic())
            else:
                self._breaker.succeeded()
                return

    def _call(self, command: Callable[[], T]) -> T | None:
        """Run one small exchange under the circuit breaker; None when there was no good answer."""
        if not self._allowed():
            return None
        try:
            answer = command()
        except ResponseError:  # Redis lives and says no: full, or a key of another type
            self._breaker.succeeded()
            with self._lock:
                self._stats.unanswered += 1
            return None
        except (RedisError, OSError):
            self._failed()
            return None
        self._breaker.succeeded()
        return answer
