"""How the chunks of one namespace become values in Redis, and chunks again: encoded, in an envelope that
proves what they are.
"""

from __future__ import annotations

from collections.abc import Sequence

from memserve.kv.transport.resp import Kind, Reply
from memserve.kv.transport.wire import Item, Place, in_flight
from memserve.kv.values.codecs import ChunkCodec
from memserve.kv.values.envelope import HEADER_BYTES, Buffer, Codec, Refusal, Verification, encode_header


class ChunkFormat:
    """Stateless, so thread-safe."""

    def __init__(self, namespace: str, codec: ChunkCodec) -> None:
        """namespace: `CacheNamespace.digest`, hex. codec: the namespace's. Raises ValueError for a namespace
        that is no digest.
        """
        self._namespace = bytes.fromhex(namespace)
        if len(self._namespace) != 32:
            raise ValueError(f"namespace is no sha256 digest: {namespace!r}")
        self._codec = codec

    def encode(self, chunk: Buffer) -> Buffer:
        """The payload of a chunk. Raises ValueError for a chunk that has none, such as KV that is not finite
        in int8.
        """
        return self._codec.encode(chunk)

    def limit_bytes(self, chunk: Buffer) -> int:
        """The most that a value of this chunk can have, header included."""
        return HEADER_BYTES + self._codec.limit_bytes(memoryview(chunk).nbytes)

    def item(self, name: str, key: bytes, payload: Buffer) -> Item:
        """A payload as it is sent."""
        header = encode_header(payload, namespace=self._namespace, key=key, codec=self._codec.code)
        return Item(name.encode(), header, payload)

    def places(
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
        has_fixed_length = self._codec.fixed_length
        places: list[Place] = []
        for number, (key, name, body) in enumerate(zip(keys, names, bodies, strict=True)):
            head = heads[HEADER_BYTES * number : HEADER_BYTES * (number + 1)]
            check = self._verification(key, body) if has_fixed_length else None
            places.append(Place(name.encode(), head, body, at_most=not has_fixed_length, check=check))
        return places

    def accept(self, reply: Reply, key: bytes, place: Place, destination: memoryview) -> Refusal | None:
        """Verify a value and decode it into its destination. Returns why not; None for a good value, and
        where there is none.
        """
        if reply.kind is not Kind.VALUE:
            return Refusal.WRONG_LENGTH if reply.kind is Kind.OTHER_LENGTH else None
        head = place.head[: reply.value_bytes]
        payload = place.body[: max(0, reply.value_bytes - HEADER_BYTES)]
        refusal = (place.check or self._verification(key, payload)).refusal(head)
        if refusal is not None:
            return refusal
        try:
            self._codec.decode(payload, destination)
        except ValueError:
            return Refusal.UNDECODABLE
        return None

    def _verification(self, key: bytes, payload: memoryview) -> Verification:
        return Verification(payload, namespace=self._namespace, key=key, codec=self._codec.code)
