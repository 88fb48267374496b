"""The reader of replies: it understands what Redis says in whatever pieces it arrives, and nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memserve.kv.transport.resp import (
    MAX_LINE_BYTES,
    MAX_SKIPPED_BYTES,
    Kind,
    ProtocolError,
    Reply,
    ReplyReader,
)


def read(reader: ReplyReader, stream: bytes, sizes: list[int], *, whole: bool = False) -> list[Reply]:
    """Feed a stream in pieces of at most these sizes, in turn, until it ends or nothing is outstanding.

    What is asked for behind a value is certain to be there, in a stream that is as it must be.
    """
    replies: list[Reply] = []
    turn = 0
    while stream and reader.outstanding:
        buffers = reader.buffers()
        room = sum(buffer.nbytes for buffer in buffers)
        assert room > 0
        assert not (whole and reader.in_value) or room <= len(stream)
        piece = stream[: min(sizes[turn % len(sizes)], room)]
        stream = stream[len(piece) :]
        count = len(piece)
        for buffer in buffers:
            buffer[: len(piece)] = piece[: buffer.nbytes]
            piece = piece[buffer.nbytes :]
        replies += reader.received(count)
        turn += 1
    return replies


SIZES = st.lists(st.integers(1, 400), min_size=1, max_size=8)
# What Redis may say to a GET of a value of known length, or of at most ROOM bytes, and what it then is.
ROOM = 650
SAID = st.one_of(
    st.tuples(st.just("value"), st.binary(min_size=9, max_size=600)),
    st.tuples(st.just("at most"), st.binary(max_size=ROOM)),
    st.tuples(st.just("too long"), st.binary(min_size=ROOM + 1, max_size=ROOM + 50)),
    st.tuples(st.just("other"), st.binary(max_size=ROOM - 1)),
    st.tuples(st.just("nothing"), st.just(b"")),
    st.tuples(st.just("error"), st.binary(max_size=80).filter(lambda text: b"\r\n" not in text + b"\r")),
    st.tuples(st.just("ok"), st.just(b"OK")),
)


@given(st.lists(SAID, min_size=1, max_size=8), SIZES, st.integers(0, 200))
def test_replies_are_understood_in_whatever_pieces_they_arrive(
    said: list[tuple[str, bytes]], sizes: list[int], padding: int
) -> None:
    reader, stream, wanted, places = ReplyReader(), b"", [], []
    for kind, content in said:
        head, body = (
            memoryview(bytearray(8)),
            memoryview(bytearray(len(content) - 8 if kind == "value" else ROOM - 8)),
        )
        at_most = kind in ("at most", "too long")
        reader.expect(head, body, at_most=at_most)
        places.append((head, body))
        match kind:
            case "value" | "at most":
                stream += b"$%d\r\n%s\r\n" % (len(content), content)
                wanted.append(Reply(Kind.VALUE, value_bytes=len(content)))
            case "other" | "too long":
                stream += b"$%d\r\n%s\r\n" % (len(content), content)
                wanted.append(Reply(Kind.OTHER_LENGTH))
            case "nothing":
                stream += b"$-1\r\n"
                wanted.append(Reply(Kind.NOTHING))
            case "error":
                stream += b"-" + content + b"\r\n"
                wanted.append(Reply(Kind.ERROR, content))
            case "ok":
                stream += b"+OK\r\n"
                wanted.append(Reply(Kind.OK, b"OK"))
        if padding:
            reply = b"$%d\r\n%s\r\n" % (padding, bytes(padding))
            reader.expect_exactly(reply)
            stream += reply
    assert read(reader, stream, sizes, whole=True) == wanted
    assert reader.outstanding == 0
    for (kind, content), (head, body) in zip(said, places, strict=True):
        if kind in ("value", "at most"):
            room = bytes(head) + bytes(body)
            assert (room[: len(content)], room[len(content) :].strip(b"\0")) == (content, b"")


@given(st.binary(max_size=3000), SIZES, st.integers(0, 3), st.booleans())
def test_garbage_is_an_error_or_a_reply_and_never_more_than_was_asked_for(
    stream: bytes, sizes: list[int], asked: int, at_most: bool
) -> None:
    reader = ReplyReader()
    backing = bytearray(64)
    for _ in range(asked):
        reader.expect(memoryview(backing)[8:16], memoryview(backing)[16:32], at_most=at_most)
    try:
        replies = read(reader, stream, sizes)
    except ProtocolError:
        replies = []
    assert len(replies) <= asked
    assert backing[:8] == bytes(8)
    assert backing[32:] == bytes(32)


@pytest.mark.parametrize(
    "stream",
    [
        b"$12x\r\n", b"$\r\n", b"$--1\r\n", b"$99999999999\r\n", b"*1\r\n$1\r\na\r\n", b"hello\r\n",
        b"\r\n", b"a" * MAX_LINE_BYTES,
        b"$%d\r\n" % (MAX_SKIPPED_BYTES + 1), b"$24\r\n" + bytes(24) + b"xx",
    ],
    ids=repr,
)  # fmt: skip
def test_what_is_no_reply_is_refused(stream: bytes) -> None:
    reader = ReplyReader()
    reader.expect(memoryview(bytearray(8)), memoryview(bytearray(16)))
    with pytest.raises(ProtocolError):
        read(reader, stream, [1])


def test_what_was_not_asked_for_is_refused() -> None:
    reader = ReplyReader()
    reader.expect()
    reader.buffers()[0][:10] = b"+OK\r\n+OK\r\n"
    with pytest.raises(ProtocolError, match="not asked for"):
        reader.received(10)


def test_the_large_part_of_a_value_is_received_in_its_place() -> None:
    head, body = memoryview(bytearray(120)), memoryview(bytearray(1 << 20))
    reader = ReplyReader()
    for _ in range(2):
        reader.expect(head, body)
    first = b"$%d\r\n" % (120 + (1 << 20))
    assert [buffer.nbytes for buffer in reader.buffers()] == [len(first) + 120]
    reader.buffers()[0][:] = first + bytes(120)
    reader.received(len(first) + 120)
    # The value may be followed by no more than its line end and an error without a text.
    assert [buffer.nbytes for buffer in reader.buffers()] == [1 << 20, 2 + 3]
    assert reader.buffers()[0] is body
    reader.received(1 << 20)
    # The line end, the next line and its head together.
    assert [buffer.nbytes for buffer in reader.buffers()] == [2 + len(first) + 120]


def test_with_padding_a_value_and_the_beginning_of_the_next_reply_are_received_together() -> None:
    head, body, pad = (
        memoryview(bytearray(120)),
        memoryview(bytearray(1 << 20)),
        b"$150\r\n" + bytes(150) + b"\r\n",
    )
    reader = ReplyReader()
    for _ in range(2):
        reader.expect(head, body)
        reader.expect_exactly(pad)
    first = b"$%d\r\n" % (120 + (1 << 20))
    reader.buffers()[0][:] = first + bytes(120)
    reader.received(len(first) + 120)
    together = b"\r\n" + pad + first + bytes(120)
    assert [buffer.nbytes for buffer in reader.buffers()] == [1 << 20, len(together)]
    reader.buffers()[1][:] = together
    assert [reply.kind for reply in reader.received((1 << 20) + len(together))] == [Kind.VALUE]
    assert [buffer.nbytes for buffer in reader.buffers()] == [1 << 20, 2 + len(pad)]
    reader.buffers()[1][:] = b"\r\n" + pad
    assert [reply.kind for reply in reader.received((1 << 20) + 2 + len(pad))] == [Kind.VALUE]
    assert reader.outstanding == 0


@pytest.mark.parametrize("said", [b"-NOPERM no ping\r\n", b"$149\r\n", b"$-1\r\n", b"+PONG\r\n"], ids=repr)
def test_another_reply_than_the_one_that_must_come_is_refused(said: bytes) -> None:
    reader = ReplyReader()
    reader.expect_exactly(b"$150\r\n" + bytes(150) + b"\r\n")
    with pytest.raises(ProtocolError, match="the one reply"):
        read(reader, said, [1])


@pytest.mark.parametrize("length", [0, 7, 8, 9, 120, 5000])
def test_a_shorter_value_leaves_the_rest_of_its_place_as_it_is(length: int) -> None:
    head, body = memoryview(bytearray(b"h" * 8)), memoryview(bytearray(b"b" * 6000))
    reader = ReplyReader()
    reader.expect(head, body, at_most=True)
    reader.expect(head, body)
    value = bytes(length)
    assert read(reader, b"$%d\r\n%s\r\n$-1\r\n" % (length, value), [3000]) == [
        Reply(Kind.VALUE, value_bytes=length),
        Reply(Kind.NOTHING),
    ]
    assert bytes(head) + bytes(body) == value + (b"h" * 8 + b"b" * 6000)[length:]
