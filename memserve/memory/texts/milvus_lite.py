"""Milvus Lite for this process: in a child, which holds the folder (`milvus_lite_process.py`)."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import logging
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any, BinaryIO, cast

from memserve.memory.texts import milvus_lite_wire as wire
from memserve.memory.texts.milvus_client import MilvusFailed
from memserve.memory.texts.milvus_rows import VECTOR_COLUMN, Row
from memserve.processes.own_modules import module_command, module_environment

CALL_TIMEOUT_S = 600.0
"""A call that takes longer ends the process. A sync takes seconds on a busy disk."""
CLOSE_TIMEOUT_S = 120.0
END_TIMEOUT_S = 10.0
# Its work is Python's. Libraries that start a thread for each core would take cores from searches.
_FEW_THREADS = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
_SCHEME = "unix:"

log = logging.getLogger(__name__)


class MilvusLiteStore:
    """A folder of Milvus Lite that a child of this process holds and serves. Thread-safe.

    The child ends with this process, however this process ends. When the child ends by itself, every call
    fails, and the folder can be opened anew. Of each call the files are in the state that the call left.

    Raises VectorStoreHeld when another process holds the folder, VectorStoreDamaged when its manifests cannot
    be read, OSError, and MilvusFailed when the child ends before the folder is open. Its calls raise OSError
    and MilvusFailed.
    """

    def __init__(self, path: str) -> None:
        self._child = _Child(Path(path))
        facts = self._child.opened()
        self.uri = str(facts["uri"])
        """The address for pymilvus."""
        self._partitions = int(facts["partitions"])
        self._partition_prefix = str(facts["partition_prefix"])
        self._child.socket = Path(self.uri.removeprefix(_SCHEME))

    @property
    def process_id(self) -> int:
        return self._child.process_id

    @property
    def has_ended(self) -> bool:
        """Whether the child has ended, by whatever cause."""
        return self._child.has_ended

    def when_ended(self, call: Callable[[], object]) -> None:
        """Have `call` called once when the child has ended, on another thread, or now if it has."""
        self._child.when_ended(call)

    def partition_of(self, partition_key: str) -> str:
        """The partition that has the rows of a partition key.

        Milvus Lite does not see from a filter that only one partition can match. Without a partition's name
        it looks at the rows of all partitions, in Python where rows are not flushed.
        """
        bucket = int(hashlib.md5(partition_key.encode()).hexdigest(), 16) % self._partitions
        return f"{self._partition_prefix}{bucket}"

    def upsert(self, name: str, rows: Sequence[Row], *, timeout_s: float) -> None:
        """Put rows of the collection in place of those with the same keys.

        pymilvus takes about a millisecond to pack a row, which searches would wait for.
        """
        packed = [{**row, VECTOR_COLUMN: wire.packed_vector(row[VECTOR_COLUMN])} for row in rows]
        self._child.call("upsert", within_s=timeout_s, ends_late=False, name=name, rows=packed)

    def sync(self) -> None:
        """Sync the files that have changed since the last call, and their folders. Raises OSError.

        Afterwards the whole folder is on disk.
        """
        self._child.call("sync")

    def copy_to(self, target: Path) -> None:
        """Copy the files, except indexes, which are built again. Nothing may be written meanwhile.

        Waits for Milvus Lite's own merging of files.
        """
        self._child.call("copy_to", target=str(target.absolute()))

    def compact(self, name: str, tenant_keys: Sequence[str], *, timeout_s: float) -> None:
        """Write the files that have deleted rows of these tenants anew, without those rows.

        Everything must be flushed. timeout_s: of the waits for Milvus Lite's own merging of files.
        """
        partitions = sorted({self.partition_of(key) for key in tenant_keys})
        self._child.call("compact", name=name, partitions=partitions, timeout_s=timeout_s)

    @contextlib.contextmanager
    def dropping(self, name: str) -> Iterator[None]:
        """Drop a collection inside. What a killed process leaves of it is removed at the next start."""
        self._child.call("begin_drop", name=name)
        yield
        self._child.call("end_drop", name=name)

    def probe(self) -> None:
        """Raises OSError where Milvus Lite could not be opened again. Does nothing after the child's end:
        nothing is lost by another try.
        """
        if not self.has_ended:
            self._child.call("probe")

    def close(self, *, clean: bool) -> None:
        """Release the folder, and wait until the child has ended.

        clean: everything is flushed and in order. The next start then trusts the indexes.
        """
        self._child.close(clean=clean)


class _Child:
    """The process, and the thread that starts it, reads what it says, and waits for its end.

    The thread outlives the process, as `module_command` asks for.
    """

    def __init__(self, path: Path) -> None:
        self.socket: Path | None = None
        self._path = path
        self._lock = threading.Lock()
        self._numbers = itertools.count(wire.OPENED)
        self._answers: dict[int, Future[Any]] = {}
        self._when_ended: list[Callable[[], object]] = []
        self._process: subprocess.Popen[bytes] | None = None
        self._ended: str | None = None
        self._is_closing = False
        _, self._opening = self._expect()
        self._keeper = threading.Thread(target=self._keep, name="memserve-milvus-lite", daemon=True)
        self._keeper.start()

    @property
    def process_id(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def has_ended(self) -> bool:
        return self._ended is not None

    def opened(self) -> wire.Message:
        """What the child says when the folder is open. Not bounded in time: recovery reads all that a killed
        process left.
        """
        try:
            return cast(wire.Message, self._opening.result())
        except BaseException:
            self._kill()
            raise

    def call(
        self, call: str, *, within_s: float = CALL_TIMEOUT_S, ends_late: bool = True, **arguments: object
    ) -> None:
        """Raises what the child raised, and MilvusFailed when it has ended or is late.

        ends_late: whether a child that is late is killed. Otherwise the call goes on there.
        """
        with self._lock:
            number, answer = self._expect()
            self._ask({"id": number, "call": call, "arguments": arguments})
        done, _ = wait([answer], within_s)
        if not done:
            if ends_late:
                self._kill()
            raise MilvusFailed(f"Milvus Lite's process does not answer {call!r} within {within_s:g} s")
        answer.result()

    def when_ended(self, call: Callable[[], object]) -> None:
        with self._lock:
            if self._ended is None:
                self._when_ended.append(call)
                return
        call()

    def close(self, *, clean: bool) -> None:
        self._is_closing = True
        if not self.has_ended:
            try:
                self.call("close", within_s=CLOSE_TIMEOUT_S, clean=clean)
            except (OSError, MilvusFailed) as error:
                log.warning("Milvus Lite: its folder was not closed: %s", error)
        self._keeper.join(END_TIMEOUT_S)
        self._kill()

    def _expect(self) -> tuple[int, Future[Any]]:
        number = next(self._numbers)
        answer = self._answers[number] = Future()
        return number, answer

    def _ask(self, request: wire.Message) -> None:
        """Under the lock. Raises MilvusFailed after the process's end."""
        if self._ended is None and self._process is not None and self._process.stdin is not None:
            try:
                self._process.stdin.write(wire.line_of(request))
                self._process.stdin.flush()
                return
            except OSError:
                pass  # its end is seen in a moment
        del self._answers[request["id"]]
        raise MilvusFailed(self._ended or "Milvus Lite's process has ended")

    def _kill(self) -> None:
        """End the process, unless it has ended, and wait for that."""
        if self._process is not None and self._keeper.is_alive():
            self._process.kill()
            self._keeper.join(END_TIMEOUT_S)

    def _keep(self) -> None:
        """The thread. Whatever happens, nobody waits for an answer after its end."""
        how = "was not started"
        try:
            self._process = process = subprocess.Popen(
                module_command("memserve.memory.texts.milvus_lite_process", str(self._path.absolute())),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**module_environment(), **_FEW_THREADS},
                start_new_session=True,
            )
            try:
                self._hear(cast(BinaryIO, process.stdout))
            finally:
                process.kill()
                how = _how(process.wait())
        except OSError as error:
            how = f"was not started: {error}"
            if not self._opening.done():
                self._opening.set_exception(error)
        except (ValueError, KeyError) as error:
            how = f"said what is no message: {error}"
        finally:
            self._end(f"Milvus Lite's process {how}")

    def _hear(self, output: BinaryIO) -> None:
        """Until the process closes its output. Raises ValueError, OSError."""
        while (message := wire.read(output)) is not None:
            if told := message.get("log"):
                logging.getLogger(str(told["name"])).warning("%s", told["text"])
                continue
            with self._lock:
                answer = self._answers.pop(int(message["id"]), None)
            if answer is None:
                continue
            if failure := message.get("failure"):
                answer.set_exception(wire.error_from(failure, MilvusFailed))
            else:
                answer.set_result(message.get("result"))

    def _end(self, how: str) -> None:
        with self._lock:
            self._ended = how
            answers, self._answers = self._answers, {}
            calls, self._when_ended = self._when_ended, []
            for stream in () if self._process is None else (self._process.stdin, self._process.stdout):
                with contextlib.suppress(OSError):
                    cast(BinaryIO, stream).close()
        for answer in answers.values():
            if not answer.done():
                answer.set_exception(MilvusFailed(how))
        if self.socket is not None:
            shutil.rmtree(self.socket.parent, ignore_errors=True)
            if not self._is_closing:
                log.warning("%s; what it had not written to disk is brought again", how)
        for call in calls:
            with contextlib.suppress(Exception):
                call()


def _how(status: int) -> str:
    if status < 0:
        with contextlib.suppress(ValueError):
            return f"was ended by {signal.Signals(-status).name}"
    return f"has ended with status {status}"
