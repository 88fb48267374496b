"""Reads documents that come from elsewhere: each in its own process, one at a time, in tenants' turns."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import threading
from dataclasses import dataclass
from typing import BinaryIO

from memserve.errors import GatewayLeaving, InvalidField
from memserve.memory.documents import wire
from memserve.memory.documents.bounds import DocumentBounds, PassageSizes
from memserve.memory.documents.document import Document
from memserve.memory.documents.passages import ControlToken, CountTokens, DocumentPassage, passages_of
from memserve.memory.documents.wire import Upload
from memserve.processes.own_modules import module_command, module_environment
from memserve.turns import FairThreads

# Each that waits holds its bytes.
WAITING_PER_TENANT = 4


@dataclass(frozen=True, slots=True)
class ReadDocument:
    """What was read, and its passages in reading order."""

    document: Document
    passages: tuple[DocumentPassage, ...]


class DocumentReader:
    """It belongs to one event loop. `close` ends what it has begun."""

    def __init__(
        self, bounds: DocumentBounds | None = None, *, waiting_per_tenant: int = WAITING_PER_TENANT
    ) -> None:
        self._bounds = bounds or DocumentBounds()
        self._threads = FairThreads("documents", 1, waiting_per_tenant=waiting_per_tenant)
        self._readings: set[_Reading] = set()
        self._closed = False

    async def read(
        self,
        tenant: str,
        upload: Upload,
        sizes: PassageSizes | None = None,
        *,
        count_tokens: CountTokens | None = None,
        control_token: ControlToken | None = None,
    ) -> ReadDocument:
        """The document and its passages. The two functions are called on the reader's thread.

        Raises InvalidField for what `upload` breaks, QuotaExceeded when too many of the tenant's documents
        wait, GatewayLeaving after `close`.
        """
        if len(upload.content) > self._bounds.bytes:
            raise InvalidField(
                "document", f"must be at most {self._bounds.bytes} bytes, is {len(upload.content)}"
            )
        if self._closed:
            raise GatewayLeaving
        reading = _Reading(upload, self._bounds)

        def work() -> ReadDocument:
            document = reading.document()
            passages = passages_of(
                document, sizes or PassageSizes(), count_tokens=count_tokens, control_token=control_token
            )
            return ReadDocument(document, passages)

        self._readings.add(reading)
        try:
            return await self._threads.run(tenant, work)
        except (asyncio.CancelledError, RuntimeError):
            # Threads that are closed take no work, and drop what waits for them.
            if self._closed:
                raise GatewayLeaving from None
            raise
        finally:
            # A caller that has gone needs no answer.
            reading.stop()
            self._readings.discard(reading)

    def close(self) -> None:
        """End the process that reads. Documents that wait are not read."""
        self._closed = True
        for reading in self._readings:
            reading.stop()
        self._threads.close()


class _Reading:
    """One document in its process."""

    def __init__(self, upload: Upload, bounds: DocumentBounds) -> None:
        self._upload = upload
        self._bounds = bounds
        self._process: subprocess.Popen[bytes] | None = None
        self._stopped = False
        self._lock = threading.Lock()

    def document(self) -> Document:
        """Raises InvalidField, GatewayLeaving."""
        with _memory_file("document") as given, _memory_file("passages") as written:
            given.write(wire.question(self._upload, self._bounds))
            given.seek(0)
            status = self._run(given, written)
            written.seek(0)
            document = wire.document_from(written) if status == 0 else None
        if document is None:
            raise InvalidField("document", _why(status, self._bounds))
        return document

    def stop(self) -> None:
        """Kill the process, or never start it. A process that has ended stays as it is."""
        with self._lock:
            self._stopped = True
            if self._process is not None and self._process.poll() is None:
                self._process.kill()

    def _run(self, given: BinaryIO, written: BinaryIO) -> int | None:
        """The process's exit status. None: it took too long, and was killed."""
        with self._lock:
            if self._stopped:
                raise GatewayLeaving
            self._process = subprocess.Popen(
                # The thread waits until the child has ended, as `module_command` asks for.
                module_command("memserve.memory.documents.child"),
                stdin=given,
                stdout=written,
                stderr=subprocess.DEVNULL,
                env=module_environment(),
                start_new_session=True,
            )
        try:
            status = self._process.wait(self._bounds.wall_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            return None
        if self._stopped:
            raise GatewayLeaving
        return status


def _memory_file(name: str) -> BinaryIO:
    """A file without a place on a disk: a tenant's document is left nowhere."""
    return os.fdopen(os.memfd_create(f"memserve-{name}"), "r+b")


def _why(status: int | None, bounds: DocumentBounds) -> str:
    if status is None:
        return f"takes more than {bounds.wall_s:g} s to be read"
    if status == -signal.SIGXCPU or status == -signal.SIGKILL:
        return f"takes more than {bounds.cpu_s} s of processor time to be read"
    return f"cannot be read within {bounds.memory_bytes} bytes of memory, {bounds.text_bytes} of text"
