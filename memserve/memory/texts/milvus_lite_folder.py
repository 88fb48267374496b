"""A folder of Milvus Lite, as the process has it that serves it: `milvus_lite_process.py`.

Its server listens on a unix socket, its files are synced to disk, and its warnings come into the log.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import shutil
import socket
import time
from collections.abc import Iterator, Sequence
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pyarrow.parquet as parquet
from milvus_lite.adapter.grpc.servicer import MilvusServicer
from milvus_lite.db import MilvusLite
from milvus_lite.exceptions import DataDirLockedError, ManifestCorruptedError
from milvus_lite.storage import data_file, delta_file
from pymilvus.grpc_gen import milvus_pb2_grpc

from memserve.errors import VectorStoreDamaged, VectorStoreHeld
from memserve.memory.texts.milvus_lite_wire import unpacked_vector
from memserve.private_files import new_socket_path

SERVER_THREADS = 10
STOP_GRACE_S = 2.0
COPY_TIMEOUT_S = 120.0
MARK_OF_A_CLEAN_END = "memserve-closed"
MARK_OF_A_DROP = "memserve-dropping-"
ASIDE = "memserve-damaged"
HELD_WAIT_S = 2.0
_HELD_LOOK_S = 0.05
_PROBE_BYTES = 64 << 10
_SERVER_OPTIONS = [
    ("grpc.max_receive_message_length", 256 << 20),
    ("grpc.max_send_message_length", 256 << 20),
    # pymilvus pings every ten seconds, also while it asks for nothing. gRPC's default server would disconnect
    # such a client.
    ("grpc.http2.min_ping_interval_without_data_ms", 1_000),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.keepalive_permit_without_calls", 1),
]

log = logging.getLogger(__name__)


class LiteFolder:
    """A folder of Milvus Lite that this process holds, served on a socket that only this user reaches.

    Opening moves data files that cannot be read into a folder `memserve-damaged`, and warns. The other files
    stay usable.

    Raises VectorStoreHeld when another process holds the folder and goes on holding it for HELD_WAIT_S,
    VectorStoreDamaged when its manifests cannot be read, OSError.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        _sync_what_is_written()
        _let_warnings_through()
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.path.chmod(0o700)
        self._synced: dict[Path, tuple[int, int]] = {}
        self._prepare_files()
        _remove_stale_sockets(self.path.parent)
        try:
            self._lite = self._open_collections()
        except VectorStoreDamaged:
            self._move_unreadable_aside(every_byte=True)
            self._lite = self._open_collections()
        self._socket = new_socket_path(self.path.parent, ".milvus-")
        self._server = grpc.server(
            futures.ThreadPoolExecutor(SERVER_THREADS, "memserve-milvus-lite"), options=_SERVER_OPTIONS
        )
        milvus_pb2_grpc.add_MilvusServiceServicer_to_server(MilvusServicer(self._lite), self._server)
        self._server.add_insecure_port(self.uri)
        self._server.start()

    @property
    def uri(self) -> str:
        """The address for pymilvus."""
        return f"unix:{self._socket}"

    def upsert(self, name: str, rows: list[dict[str, Any]]) -> None:
        """Put rows in place of those with the same keys. Their vectors are packed (`milvus_lite_wire.py`)."""
        collection = self._lite.get_collection(name)
        collection.upsert([{**row, "dense": unpacked_vector(row["dense"])} for row in rows])

    def sync(self) -> None:
        """Sync the files that have changed since the last call, and their folders. Raises OSError.

        Afterwards the whole folder is on disk.
        """
        # Also the folders of logs: a log that a flush has removed must not come back. Its memories may have
        # been forgotten since.
        folders = set(self.path.glob("collections/*/wal"))
        seen: dict[Path, tuple[int, int]] = {}
        for file in _files(self.path):
            try:
                stat = file.stat()
            except FileNotFoundError:
                continue  # compaction removed it
            seen[file] = (stat.st_size, stat.st_mtime_ns)
            if self._synced.get(file) != seen[file]:
                _sync(file)
                folders.update(_parents(file, self.path))
        for folder in folders:
            _sync(folder)
        self._synced = seen

    def copy_to(self, target: Path) -> None:
        """Copy the files, except indexes, which are built again. Nothing may be written meanwhile.

        Waits for Milvus Lite's own merging of files.
        """
        for name in self._lite.list_collections():
            self._lite.get_collection(name)._wait_for_bg(COPY_TIMEOUT_S)
        for file in _files(self.path):
            inside = file.relative_to(self.path)
            if "indexes" in inside.parts or inside.parts[0] in ("LOCK", ASIDE, MARK_OF_A_CLEAN_END):
                continue
            copied = target / inside
            copied.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if file.suffix == ".parquet":  # never changed after it is written
                with contextlib.suppress(OSError):
                    os.link(file, copied)
            if not copied.exists():
                shutil.copyfile(file, copied)

    def compact(self, name: str, partitions: Sequence[str], timeout_s: float) -> None:
        """Write the files of these partitions that have deleted rows anew, without those rows.

        Everything must be flushed. Waits for Milvus Lite's own merging of files. Milvus Lite itself merges
        files when there are many, and has no call for it.
        """
        collection = self._lite.get_collection(name)
        collection._wait_for_bg(timeout_s)
        manager, deleted = collection._compaction_mgr, collection._delta_index
        with collection._maintenance_lock:
            for partition in sorted(partitions):
                folder = self.path / "collections" / name / "partitions" / partition
                for file in list(collection._manifest.get_data_files(partition)):
                    rows = parquet.read_table(folder / file, columns=["pk", "_seq"]).to_pydict()
                    if any(map(deleted.is_deleted, rows["pk"], rows["_seq"])):
                        manager._compact_files(partition, str(folder), [file], collection._manifest, deleted)
            manager._gc_tombstones(collection._manifest, deleted)
            collection._refresh_segment_cache()
            collection._cleanup_orphan_index_files()
        collection._schedule_bg_maintenance()
        collection._wait_for_bg(timeout_s)

    def begin_drop(self, name: str) -> None:
        """A collection is dropped next. What a killed process leaves of it is removed at the next start."""
        (self.path / f"{MARK_OF_A_DROP}{name}").touch()
        _sync(self.path)

    def end_drop(self, name: str) -> None:
        """The collection is dropped."""
        _sync(self.path / "collections")
        (self.path / f"{MARK_OF_A_DROP}{name}").unlink()

    def probe(self) -> None:
        """Write and sync a small file in every folder that Milvus Lite writes to when it is opened.

        Raises OSError where Milvus Lite could not be opened again.
        """
        for folder in (self.path, *self.path.glob("collections/*"), *self.path.glob("collections/*/wal")):
            file = folder / "memserve-probe"
            try:
                file.write_bytes(bytes(_PROBE_BYTES))
                _sync(file)
            finally:
                with contextlib.suppress(OSError):
                    file.unlink()

    def close(self, *, clean: bool) -> None:
        """Release the folder.

        clean: everything is flushed and in order. The next start then trusts the indexes.
        """
        self._server.stop(STOP_GRACE_S).wait()
        self._lite.close()
        shutil.rmtree(self._socket.parent, ignore_errors=True)
        if clean:
            with contextlib.suppress(OSError):
                self.sync()
                (self.path / MARK_OF_A_CLEAN_END).touch()
                _sync(self.path)

    def _open_collections(self) -> MilvusLite:
        try:
            lite = MilvusLite(str(self.path))
        except DataDirLockedError:
            raise VectorStoreHeld from None
        try:
            for name in lite.list_collections():
                lite.get_collection(name)
        except BaseException as error:
            lite.close()
            # pyarrow and JSON raise ValueErrors. For a file that is no parquet file pyarrow raises an OSError
            # without a number.
            if isinstance(error, ManifestCorruptedError | ValueError | KeyError) or (
                isinstance(error, OSError) and error.errno is None
            ):
                raise VectorStoreDamaged(type(error).__name__) from error
            raise
        return lite

    def _prepare_files(self) -> None:
        """Put the files in order before Milvus Lite reads them. Its own lock keeps other processes away."""
        lock = _held(self.path / "LOCK")
        try:
            mark = self.path / MARK_OF_A_CLEAN_END
            if mark.exists():
                mark.unlink()
            else:
                # A killed process, a full disk or a power cut may have left half of an index. Indexes are
                # built again from the rows.
                for index in self.path.glob("collections/*/partitions/*/indexes/*"):
                    index.unlink(missing_ok=True)
            for mark in self.path.glob(f"{MARK_OF_A_DROP}*"):
                dropped = self.path / "collections" / mark.name.removeprefix(MARK_OF_A_DROP)
                shutil.rmtree(dropped, ignore_errors=True)
                if not dropped.exists():
                    mark.unlink()
            self._move_unreadable_aside()
        finally:
            os.close(lock)

    def _move_unreadable_aside(self, every_byte: bool = False) -> None:
        """Move files aside that a manifest names and that cannot be read.

        A killed flush leaves files that no manifest names. Milvus Lite removes those itself.

        every_byte: whether to read all of each file, and not only its end.
        """
        for collection in self.path.glob("collections/*"):
            manifest = "".join(
                file.read_text(errors="replace", encoding="utf-8")
                for file in collection.glob("manifest.json*")
            )
            for file in collection.glob("partitions/*/*/*.parquet"):
                if file.name not in manifest:
                    continue
                try:
                    if every_byte:
                        parquet.read_table(file)
                    else:
                        parquet.ParquetFile(file).close()
                except (ValueError, OSError) as error:
                    if isinstance(error, OSError) and error.errno is not None:
                        raise
                    aside = self.path / ASIDE / file.relative_to(self.path)
                    aside.parent.mkdir(parents=True, exist_ok=True)
                    file.rename(aside)
                    log.warning(
                        "Milvus Lite's file %s cannot be read and is moved to %s: its memories are lost",
                        file.name,
                        aside,
                    )


class _SyncedParquet:
    """Takes the place of pyarrow.parquet in Milvus Lite's writers, and syncs what they write.

    The writers leave new files to the kernel. A power cut would lose rows that a manifest names and whose log
    is gone.
    """

    read_table = staticmethod(parquet.read_table)

    @staticmethod
    def write_table(table: Any, path: str) -> None:
        parquet.write_table(table, path)
        _sync(Path(path))
        for folder in list(Path(path).parents)[:3]:
            _sync(folder)


def _sync_what_is_written() -> None:
    data_file.pq = delta_file.pq = _SyncedParquet


class _OneLine(logging.Filter):
    """Makes a warning one line. Drops errors that come back as exceptions too."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno >= logging.ERROR and not record.getMessage().startswith("background"):
            return False
        error = record.exc_info[1] if record.exc_info else None
        record.msg = " ".join(f"Milvus Lite: {record.getMessage()}{f': {error}' if error else ''}".split())
        record.args, record.exc_info, record.exc_text, record.levelno, record.levelname = (
            (),
            None,
            None,
            logging.WARNING,
            "WARNING",
        )
        return True


def _let_warnings_through() -> None:
    lite = logging.getLogger("milvus_lite")
    lite.setLevel(logging.WARNING)
    for name in (
        "engine.collection",
        "engine.compaction",
        "engine.recovery",
        "storage.manifest",
        "storage.wal",
        "adapter.grpc.servicer",
    ):
        source = logging.getLogger(f"milvus_lite.{name}")
        if not any(isinstance(present, _OneLine) for present in source.filters):
            source.addFilter(_OneLine())


def _files(folder: Path) -> Iterator[Path]:
    for parent, _, names in os.walk(folder):
        for name in names:
            yield Path(parent) / name


def _parents(file: Path, root: Path) -> list[Path]:
    """The folders from the file's up to `root`."""
    return [folder for folder in file.parents if folder == root or root in folder.parents]


def _held(file: Path) -> int:
    """Lock the file. Returns the descriptor, which is closed to let go.

    A gateway that was killed takes its process with it, which lets go a moment later.
    Raises VectorStoreHeld, OSError.
    """
    lock = os.open(file, os.O_CREAT | os.O_RDWR, 0o600)
    give_up_s = time.monotonic() + HELD_WAIT_S
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lock
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                os.close(lock)
                raise
        if time.monotonic() >= give_up_s:
            os.close(lock)
            raise VectorStoreHeld
        time.sleep(_HELD_LOOK_S)


def _sync(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _remove_stale_sockets(folder: Path) -> None:
    """Remove sockets that a killed process left beside its store. To be called while the store is held."""
    for inside in folder.glob(".milvus-*"):
        with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(OSError):
            if probe.connect_ex(str(inside / "socket")) != 0:
                shutil.rmtree(inside, ignore_errors=True)
