"""KV chunks in Redis, for the worker's own threads: blocking calls with short timeouts that never raise for Redis's sake."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TypeVar, cast

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError
from redis.retry import Retry

from memserve.kv.breaker import Circuit, CircuitBreaker
from memserve.kv.codec import HEADER_BYTES, Buffer, Refusal, encode_header, verify
from memserve.kv.keys import redis_key

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
    """The chunks of one namespace. Thread-safe; each thread in a call uses a connection of its own.

    Whatever Redis does (slow, full, wrong, gone) the answer is a miss or a failed put, counted in the stats. While it does not answer, the
    circuit is open and calls return at once; after `pause_s` one call tries again.
    """

    def __init__(
        self,
        redis_url: str,
        namespace: str,
        *,
        ttl_s: int = 24 * 3600,
        io_timeout_s: float = 0.5,
        connect_timeout_s: float = 0.5,
        failures_to_open: int = 2,
        pause_s: float = 1.0,
    ) -> None:
        """namespace: `CacheNamespace.digest`, hex. ttl_s: from the last use. io_timeout_s: for each read or write on the socket.

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
        self._redis = Redis.from_url(
            redis_url,
            socket_timeout=io_timeout_s,
            socket_connect_timeout=connect_timeout_s,
            retry=Retry(NoBackoff(), 1, supported_errors=(RedisConnectionError,)),
        )
        self._breaker = CircuitBreaker(failures_to_open=failures_to_open, pause_s=pause_s)
        self._lock = threading.Lock()
        self._stats = StoreStats()

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
            with self._redis.pipeline(transaction=False) as pipeline:
                for key in keys:
                    pipeline.exists(redis_key(self._namespace, key))
                return [bool(found) for found in pipeline.execute()]

        return (self._call(ask) if keys else None) or [False] * len(keys)

    def get(self, key: bytes, *, expected_bytes: int | None = None) -> memoryview | None:
        """The verified payload, its time to live slid; None for a miss.

        A value that does not verify, or whose payload is not of `expected_bytes`, is counted, deleted, and a miss.
        """
        started_s = time.perf_counter()
        answer = self._call(lambda: (self._redis.getex(redis_key(self._namespace, key), ex=self._ttl_s),))
        value = answer[0] if answer else None
        if value is None:
            with self._lock:
                self._stats.misses += 1
            return None
        view = memoryview(cast(bytes, value))
        header, payload = view[:HEADER_BYTES], view[HEADER_BYTES:]
        refusal = verify(header, payload, namespace=self._namespace_bytes, key=key)
        if refusal is None and expected_bytes not in (None, payload.nbytes):
            refusal = Refusal.WRONG_LENGTH
        if refusal is not None:
            with self._lock:
                self._stats.misses += 1
                self._stats.refused[refusal] += 1
            self._call(lambda: self._redis.unlink(redis_key(self._namespace, key)))
            return None
        with self._lock:
            self._stats.hits += 1
            self._stats.read_bytes += payload.nbytes
            self._stats.read_s += time.perf_counter() - started_s
        return payload

    def get_into(self, key: bytes, destination: memoryview) -> bool:
        """Like `get`, into the caller's memory. destination: writable, contiguous bytes, exactly as long as the payload must be.

        Returns False for a miss; the destination's bytes are then of no meaning.
        """
        payload = self.get(key, expected_bytes=destination.nbytes)
        if payload is None:
            return False
        destination[:] = payload
        return True

    def put(self, key: bytes, payload: Buffer) -> Put:
        """Store a chunk. One that is there already is not sent again: its time to live is slid."""
        started_s = time.perf_counter()
        name = redis_key(self._namespace, key)
        outcome = self._call(lambda: self._put_if_absent(name, key, payload)) or Put.FAILED
        with self._lock:
            stats = self._stats
            stats.write_s += time.perf_counter() - started_s
            match outcome:
                case Put.STORED:
                    stats.stored += 1
                    stats.written_bytes += memoryview(payload).nbytes
                case Put.ALREADY_PRESENT:
                    stats.already_present += 1
                case Put.FAILED:
                    stats.store_failures += 1
        return outcome

    def close(self) -> None:
        self._redis.close()

    def _put_if_absent(self, name: str, key: bytes, payload: Buffer) -> Put:
        if self._redis.expire(name, self._ttl_s):
            return Put.ALREADY_PRESENT
        header = encode_header(payload, namespace=self._namespace_bytes, key=key)
        self._redis.set(name, b"".join((header, payload)), ex=self._ttl_s)
        return Put.STORED

    def _call(self, command: Callable[[], T]) -> T | None:
        """Run one exchange with Redis under the circuit breaker; None when there was no good answer."""
        if not self._breaker.allows(time.monotonic()):
            with self._lock:
                self._stats.skipped += 1
            return None
        try:
            answer = command()
        except ResponseError:  # Redis lives and says no: full, or a key of another type
            self._breaker.succeeded()
            with self._lock:
                self._stats.unanswered += 1
            return None
        except (RedisError, OSError):
            opened = self._breaker.failed(time.monotonic())
            with self._lock:
                self._stats.unanswered += 1
                self._stats.circuit_opened += opened
            return None
        self._breaker.succeeded()
        return answer
