"""Milvus Lite in a process of its own: `python -m memserve.memory.texts.milvus_lite_process FOLDER`.

1. Milvus Lite is written in Python. In the gateway's process it would hold the interpreter's lock while it
   takes writes, and searches of the local index would wait for it.
2. It keeps copies that nobody waits for, and has a lower priority than the gateway.
3. It says what it has to say in lines of `milvus_lite_wire.py`. Milvus' own calls come to a unix socket.
4. It ends when its standard input is closed, and the kernel kills it with its parent (`tether.py`).
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import sys
import threading
import types
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from memserve.memory.texts import milvus_lite_wire as wire

if TYPE_CHECKING:
    from memserve.memory.texts.milvus_lite_folder import LiteFolder

NICENESS = 5
CALLS_AT_ONCE = 4
ARROW_THREADS = 1


class GatewaysLog(logging.Handler):
    """Brings warnings into the gateway's log, one line each."""

    def __init__(self, say: Callable[[wire.Message], None]) -> None:
        super().__init__(logging.WARNING)
        self._say = say

    def emit(self, record: logging.LogRecord) -> None:
        try:
            error = record.exc_info[1] if record.exc_info else None
            text = f"{record.getMessage()}{f': {type(error).__name__}: {error}' if error else ''}"
            self._say({"log": {"name": record.name, "text": wire.one_line(text)}})
        except Exception:
            self.handleError(record)


class Voice:
    """Writes messages, one at a time."""

    def __init__(self, output: BinaryIO) -> None:
        self._output = output
        self._lock = threading.Lock()

    def say(self, message: wire.Message) -> None:
        line = wire.line_of(message)
        # The gateway may have gone. Then this process ends too.
        with self._lock, contextlib.suppress(OSError):
            self._output.write(line)
            self._output.flush()


def main() -> None:
    os.nice(NICENESS)
    voice = Voice(_own_output())
    logging.getLogger().addHandler(GatewaysLog(voice.say))
    try:
        folder = _opened(Path(sys.argv[1]))
    except Exception as error:
        voice.say({"id": wire.OPENED, "failure": wire.failure_of(error)})
        os._exit(1)
    voice.say({"id": wire.OPENED, "result": _facts(folder)})
    answer_all(folder, sys.stdin.buffer, voice.say)
    # Nothing is taken apart: the threads of libraries would have to end first.
    os._exit(0)


def answer_all(folder: LiteFolder, requests: BinaryIO, say: Callable[[wire.Message], None]) -> None:
    """Answer until the gateway closes the folder or is gone."""
    calls = _calls_of(folder)

    def answer(request: wire.Message) -> None:
        try:
            calls[request["call"]](**request["arguments"])
        except Exception as error:
            say({"id": request["id"], "failure": wire.failure_of(error)})
        else:
            say({"id": request["id"], "result": None})

    threads = ThreadPoolExecutor(CALLS_AT_ONCE, "memserve-milvus-lite-calls")
    while (request := wire.read(requests)) is not None:
        if request["call"] == "close":
            threads.shutdown(wait=True)
            answer(request)
            return
        threads.submit(answer, request)


def _calls_of(folder: LiteFolder) -> dict[str, Callable[..., None]]:
    return {
        "upsert": folder.upsert,
        "sync": folder.sync,
        "copy_to": lambda target: folder.copy_to(Path(target)),
        "compact": folder.compact,
        "begin_drop": folder.begin_drop,
        "end_drop": folder.end_drop,
        "probe": folder.probe,
        "close": folder.close,
    }


def _opened(path: Path) -> LiteFolder:
    _leave_the_client_out()
    import pyarrow

    from memserve.memory.texts.milvus_lite_folder import LiteFolder

    pyarrow.set_cpu_count(ARROW_THREADS)
    pyarrow.set_io_thread_count(ARROW_THREADS)
    return LiteFolder(path)


def _facts(folder: LiteFolder) -> dict[str, Any]:
    from milvus_lite.constants import DEFAULT_NUM_PARTITIONS, PARTITION_KEY_BUCKET_PREFIX

    return {
        "uri": folder.uri,
        "partitions": DEFAULT_NUM_PARTITIONS,
        "partition_prefix": PARTITION_KEY_BUCKET_PREFIX,
    }


def _own_output() -> BinaryIO:
    """Standard output for messages alone. What a library prints goes where errors go."""
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return output


def _leave_the_client_out() -> None:
    """Let `pymilvus.grpc_gen`, the messages, be imported without pymilvus, the client.

    Milvus Lite's server needs the messages only. The client takes 0.8 s and 50 MB more, pandas among them.
    """
    found = importlib.util.find_spec("pymilvus")
    if found is None or found.submodule_search_locations is None:
        raise ModuleNotFoundError("pymilvus")
    package = types.ModuleType("pymilvus")
    package.__path__ = list(found.submodule_search_locations)
    package.__spec__ = found
    sys.modules["pymilvus"] = package


if __name__ == "__main__":
    main()
