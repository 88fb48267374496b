"""The stored value: which bytes are accepted under which key."""

from __future__ import annotations

import random
import struct
from dataclasses import dataclass

from loadtests.kv.kv_fuzz.faults import WrongValue
from memserve.kv.values.envelope import (
    HEADER_BYTES,
    MAX_KEY_BYTES,
    NAMESPACE_BYTES,
    Verification,
    encode_header,
)


@dataclass(frozen=True, slots=True)
class Stored:
    """value: header and payload."""

    namespace: bytes
    key: bytes
    value: bytes

    @property
    def reply(self) -> bytes:
        return b"$%d\r\n%s\r\n" % (len(self.value), self.value)


def stored(namespace: bytes, key: bytes, payload_bytes: int, rng: random.Random) -> Stored:
    payload = rng.randbytes(payload_bytes)
    return Stored(namespace, key, encode_header(payload, namespace=namespace, key=key) + payload)


def some_stored() -> tuple[Stored, ...]:
    """Two of one length, one larger than the reader's scratch, and two of another namespace or key that must
    not pass for the first.
    """
    rng = random.Random(1)
    own, other = rng.randbytes(NAMESPACE_BYTES), rng.randbytes(NAMESPACE_BYTES)
    shapes = [
        (own, b"a" * 32, 24),
        (own, b"b" * 32, 24),
        (own, b"c" * MAX_KEY_BYTES, 20_000),
        (other, b"a" * 32, 24),
        (own, b"a" * 31, 24),
    ]
    return tuple(stored(*shape, rng) for shape in shapes)


STORED = some_stored()


def accepts(entry: Stored, value: bytes) -> bool:
    """Whether the codec takes `value` for `entry`. Raises WrongValue when it should not, or does not and
    should.
    """
    head, payload = memoryview(value)[:HEADER_BYTES], memoryview(value)[HEADER_BYTES:]
    at_once, coming = (Verification(payload, namespace=entry.namespace, key=entry.key) for _ in range(2))
    for end in (payload.nbytes // 3, payload.nbytes // 3, payload.nbytes - 1):
        coming.came(end)
    refusal = at_once.refusal(head)
    if coming.refusal(head) is not refusal:
        raise WrongValue(f"{len(value)} bytes are {refusal} at once and something else in pieces")
    accepted = refusal is None
    if accepted is not (value == entry.value):
        raise WrongValue(
            f"{len(value)} bytes under the key {entry.key!r} are {'accepted' if accepted else 'refused'}"
        )
    return accepted


# Of an input to the codec: the length of the key, and where and how a value is damaged.
CODEC_CONTROLS = struct.Struct(">BHB")


def check_codec(case: bytes) -> tuple[int, int]:
    """Verify bytes as each of the stored values, then store them, load them, and load them damaged. case:
    CODEC_CONTROLS, then the bytes.

    Returns the values accepted and refused. Raises WrongValue or what crashed.
    """
    length, place, damage = CODEC_CONTROLS.unpack(
        case[: CODEC_CONTROLS.size].ljust(CODEC_CONTROLS.size, b"\0")
    )
    content = case[CODEC_CONTROLS.size :]
    accepted = sum(accepts(entry, content) for entry in STORED)
    namespace, key = (
        content[:NAMESPACE_BYTES].ljust(NAMESPACE_BYTES, b"\0"),
        content[: 1 + length % MAX_KEY_BYTES] or b"\0",
    )
    own = Stored(namespace, key, encode_header(content, namespace=namespace, key=key) + content)
    damaged = bytearray(own.value)
    place %= len(damaged)
    if damage:
        damaged[place] ^= damage
    else:
        del damaged[place:]
    accepted += accepts(own, own.value) + accepts(own, bytes(damaged))
    return accepted, len(STORED) + 2 - accepted
