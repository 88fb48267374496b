"""Documents that are made to hurt. Each is read in its process, and ends within its bounds."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from runpy import run_path

import psutil
import pytest

from memserve.errors import GatewayLeaving, InvalidField, QuotaExceeded
from memserve.memory.documents.bounds import MIB, DocumentBounds, PassageSizes
from memserve.memory.documents.reader import DocumentReader, Upload

_PDFS = run_path(str(Path(__file__).parent / "pdfs.py"))
pdf: Callable[..., bytes] = _PDFS["pdf"]
bomb: Callable[..., bytes] = _PDFS["bomb"]
BOUNDS = DocumentBounds(cpu_s=3, wall_s=20.0)
# markdown-it looks for the end of each of these brackets: minutes of work.
SLOW = Upload(b"[" * 2_000_000, "text/markdown")


@pytest.fixture
async def reader() -> AsyncIterator[DocumentReader]:
    reader = DocumentReader(BOUNDS)
    yield reader
    reader.close()


async def refusal(reader: DocumentReader, upload: Upload) -> InvalidField:
    with pytest.raises(InvalidField) as refused:
        await reader.read("acme", upload)
    return refused.value


async def test_a_document_comes_back_as_it_was_read(reader: DocumentReader) -> None:
    upload = Upload("# Pumpe\n\nÖl im Mai. 油。\n\n```\na\n```".encode(), "text/markdown", title="T")
    read = await reader.read("acme", upload, PassageSizes(max_tokens=100), count_tokens=len)
    assert read.document.title == "T" and read.document.media_type == "text/markdown"
    assert [passage.text for passage in read.passages] == ["T › Pumpe\n\nÖl im Mai. 油。\n\n```\na\n```"]
    paged = await reader.read("acme", Upload(pdf([["One."], ["Two."]])))
    assert [block.page for block in paged.document.blocks] == [1, 2]


@pytest.mark.parametrize(
    ("content", "media_type", "rule"),
    [
        (bomb(200), "", "larger on page 1"),
        (bomb(200, 3), "", "larger on page 1"),
        (pdf([["a"]], encrypted=True), "", "encrypted"),
        (pdf([[]]), "", "without text"),
        (b"%PDF-1.7 nothing else", "", "cannot be read"),
        (pdf([["a"]]).replace(b"/Kids [6 0 R]", b"/Kids [2 0 R]"), "", ""),
        (b"<div>" * 20_000 + b"a", "text/html", "nested too deeply"),
        (b"<b><table><tr><td>" * 5_000 + b"a", "text/html", "nested too deeply"),
        (b">" * 5_000 + b"a", "text/markdown", "nested too deeply"),
        (b"- " * 5_000 + b"a", "text/markdown", "nested too deeply"),
    ],
)
async def test_a_hostile_document_is_refused_by_its_rule(
    reader: DocumentReader, content: bytes, media_type: str, rule: str
) -> None:
    began_s = time.monotonic()
    refused = await refusal(reader, Upload(content, media_type))
    assert refused.field == "document" and rule in refused.rule
    assert time.monotonic() - began_s < BOUNDS.wall_s


async def test_a_document_that_takes_too_much_processor_time_is_ended() -> None:
    reader = DocumentReader(replace(BOUNDS, cpu_s=1))
    assert "takes more than 1 s of processor time" in (await refusal(reader, SLOW)).rule
    assert (await reader.read("acme", Upload(b"still here"))).passages[0].body == "still here"
    reader.close()


async def test_a_document_that_takes_too_long_is_ended() -> None:
    reader = DocumentReader(replace(BOUNDS, wall_s=0.5))
    began_s = time.monotonic()
    assert "takes more than 0.5 s" in (await refusal(reader, SLOW)).rule
    assert time.monotonic() - began_s < 10
    reader.close()


async def test_a_document_that_needs_too_much_memory_is_refused() -> None:
    reader = DocumentReader(replace(BOUNDS, memory_bytes=150 * MIB))
    refused = await refusal(reader, Upload(b"<p>a</p>" * 1_900_000, "text/html"))
    assert "memory" in refused.rule
    reader.close()


async def test_bytes_pages_and_text_are_bounded() -> None:
    reader = DocumentReader(replace(BOUNDS, bytes=10_000, pages=2, text_bytes=100, blocks=20))
    assert "at most 10000 bytes" in (await refusal(reader, Upload(b"a" * 10_001))).rule
    assert "1 to 2 pages, has 3" in (await refusal(reader, Upload(pdf([["a"]] * 3)))).rule
    assert "at most 100 bytes of text" in (await refusal(reader, Upload(b"a" * 101))).rule
    assert "at most 20 paragraphs" in (await refusal(reader, Upload(b"<p>a" * 21, "text/html"))).rule
    reader.close()


async def test_what_waits_is_bounded_for_each_tenant() -> None:
    reader = DocumentReader(BOUNDS, waiting_per_tenant=1)
    reads = [asyncio.create_task(reader.read("acme", SLOW)) for _ in range(3)]
    done, _ = await asyncio.wait(reads, return_when=asyncio.FIRST_COMPLETED)
    assert isinstance(done.pop().exception(), QuotaExceeded)
    reader.close()
    ended = await asyncio.wait_for(asyncio.gather(*reads, return_exceptions=True), 10)
    assert {type(error) for error in ended} <= {QuotaExceeded, GatewayLeaving}
    with pytest.raises(GatewayLeaving):
        await reader.read("acme", Upload(b"a"))


async def test_a_caller_that_goes_away_ends_its_process(reader: DocumentReader) -> None:
    read = asyncio.create_task(reader.read("acme", SLOW))
    while not (children := _children()):
        await asyncio.sleep(0.02)
    read.cancel()
    with pytest.raises(asyncio.CancelledError):
        await read
    assert (await reader.read("acme", Upload(b"next"))).passages[0].body == "next"
    assert not children & _children()


async def test_the_process_has_no_secret_of_the_gateways(
    reader: DocumentReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEMSERVE_SECRET", "x")
    read = asyncio.create_task(reader.read("acme", SLOW))
    while not (children := _children()):
        await asyncio.sleep(0.02)
    while b"memserve.memory.documents.child" not in (command := _file(children, "cmdline")) or (
        b"tether" in command
    ):
        await asyncio.sleep(0.02)
    environment = _file(children, "environ")
    assert b"PYTHONPATH" in environment and b"MEMSERVE_SECRET" not in environment
    read.cancel()
    with pytest.raises(asyncio.CancelledError):
        await read


def _file(pids: set[int], name: str) -> bytes:
    (pid,) = pids
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except (FileNotFoundError, ProcessLookupError):  # it has ended
        return b""


def _children() -> set[int]:
    """Processes that read documents for this one."""
    found = {child.pid for child in psutil.Process().children()}
    return {pid for pid in found if b"documents.child" in _file({pid}, "cmdline")}
