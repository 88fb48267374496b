"""The files of the local index: SQLite's tables, its connections, and what the folder is checked by."""

from __future__ import annotations

import contextlib
import errno
import sqlite3
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from memserve.domain.open_enum import OpenEnum
from memserve.errors import PicklableError

SCHEMA_VERSION = 1
"""Another version is rebuilt from Milvus and the journal."""
TOKENIZER_VERSION = 2
"""Of `memory_words`. Another version has the words of all rows indexed anew when the index is opened."""
ROWS_FILE = "rows.db"
SEQ_BITS = 40
"""A vector's place is its block's number followed by so many bits of its row's number."""
SEQ_JUMP = 1 << 20
"""Rows' numbers skipped after an unclean end: words that outlived their row must not mean another row."""
PROGRESS_OPERATIONS = 20_000
"""SQLite's operations between two looks at the clock: about a millisecond."""
_PAGE_BYTES = (8192, 16384, 32768, 65536)
_FULL = ("full", "disk i/o error")

_TABLES = (
    "CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
    # One for each namespace of a tenant, with its counts, so that they need no row.
    """CREATE TABLE blocks (
        block INTEGER PRIMARY KEY AUTOINCREMENT, tenant_key TEXT NOT NULL, namespace TEXT NOT NULL,
        records INTEGER NOT NULL, live INTEGER NOT NULL, words INTEGER NOT NULL, bytes INTEGER NOT NULL,
        UNIQUE (tenant_key, namespace))""",
    # A record that is put again gets a new number. Its older versions come last, so that a search does not
    # read their pages.
    """CREATE TABLE records (
        seq INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, block INTEGER NOT NULL, memory_id TEXT NOT NULL,
        state TEXT NOT NULL, kind TEXT NOT NULL, created_s REAL NOT NULL, updated_s REAL NOT NULL,
        within TEXT NOT NULL, position INTEGER NOT NULL, words INTEGER NOT NULL, bytes INTEGER NOT NULL,
        memory TEXT NOT NULL, older TEXT NOT NULL)""",
    "CREATE INDEX records_created ON records (block, created_s, memory_id)",
    "CREATE INDEX records_updated ON records (block, updated_s, memory_id)",
    "CREATE INDEX records_id ON records (block, memory_id)",
    "CREATE INDEX records_place ON records (block, within, position, memory_id)",
    # By place, so that a namespace's vectors lie beside one another and are loaded in one run.
    """CREATE TABLE vectors (
        place INTEGER PRIMARY KEY, live INTEGER NOT NULL, kind TEXT NOT NULL, created_s REAL NOT NULL,
        vector BLOB NOT NULL)""",
    """CREATE TABLE links (
        block INTEGER NOT NULL, target_id TEXT NOT NULL, target_namespace TEXT NOT NULL, kind TEXT NOT NULL,
        seq INTEGER NOT NULL, PRIMARY KEY (block, target_id, target_namespace, kind, seq)) WITHOUT ROWID""",
    "CREATE INDEX links_of ON links (seq)",
    # Records whose change may be missing in the index of words on disk.
    """CREATE TABLE unworded (
        shard TEXT NOT NULL, key TEXT NOT NULL, PRIMARY KEY (shard, key)) WITHOUT ROWID""",
    "CREATE TABLE worded (shard TEXT PRIMARY KEY, tokenizer INTEGER NOT NULL) WITHOUT ROWID",
)


class RebuildReason(OpenEnum):
    """Why an index must be built again."""

    DAMAGED = "damaged"
    SCHEMA = "schema"
    """Another version of memserve wrote it."""
    EMBEDDER = "embedder"
    """Another model embedded its vectors."""
    DIM = "dim"
    UNFINISHED = "unfinished"
    """A rebuild was begun and not finished."""
    UNKNOWN = "unknown"


class IndexNeedsRebuild(PicklableError):
    """The local index cannot be used as it is. It is rebuilt from Milvus and the journal.

    Nothing is lost with it: Milvus and the journal are the durable copies.
    """

    def __init__(self, reason: RebuildReason, detail: str) -> None:
        super().__init__(f"the local index must be built again ({reason}): {detail}")
        self.reason = reason
        self.detail = detail


class RowsDamaged(OSError):
    """The file of rows cannot be read in a place. `LocalIndex.open` with `check` moves it aside."""


@dataclass(frozen=True, slots=True)
class Deadline:
    """Until when a call may take."""

    at_s: float
    """On the monotonic clock."""

    @classmethod
    def after(cls, timeout_s: float) -> Deadline:
        return cls(time.monotonic() + timeout_s)

    @property
    def left_s(self) -> float:
        return self.at_s - time.monotonic()

    def check(self) -> None:
        """Raises TimeoutError when it is past."""
        if self.left_s <= 0:
            raise TimeoutError("the local index did not answer in time")


def connect(folder: Path, *, read_only: bool) -> sqlite3.Connection:
    """A connection to the rows. It may be used by one thread after another.

    Transactions are begun by hand. A commit is in the operating system's hands when it returns; `sync` of
    the index brings it to disk.
    """
    # Waits for locks are bounded by the call's own deadline, in `begin`.
    connection = sqlite3.connect(folder / ROWS_FILE, isolation_level=None, check_same_thread=False, timeout=0)
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("PRAGMA secure_delete = ON")
    connection.execute("PRAGMA temp_store = MEMORY")
    connection.execute("PRAGMA cache_size = -16384")
    connection.execute("PRAGMA mmap_size = 0")
    if read_only:
        connection.execute("PRAGMA query_only = ON")
    return connection


def create(folder: Path, dim: int, meta: dict[str, str]) -> None:
    """Create the tables in an empty folder."""
    with contextlib.closing(connect(folder, read_only=False)) as connection, os_errors():
        # A row of vectors does not spill into further pages, and a page has at least two.
        row_bytes = 4 * dim + 64
        page_bytes = next((size for size in _PAGE_BYTES if size >= 2 * row_bytes), _PAGE_BYTES[-1])
        connection.execute(f"PRAGMA page_size = {page_bytes}")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("BEGIN IMMEDIATE")
        for table in _TABLES:
            connection.execute(table)
        connection.executemany("INSERT INTO meta VALUES (?, ?)", meta.items())
        connection.execute("COMMIT")


@contextlib.contextmanager
def os_errors(deadline: Deadline | None = None) -> Iterator[None]:
    """Turn what SQLite raises into OSError: a full disk into ENOSPC, a late call into TimeoutError."""
    try:
        yield
    except sqlite3.Error as error:
        text = str(error).lower()
        if "interrupted" in text or "locked" in text or "busy" in text:
            raise TimeoutError(f"the local index did not answer in time: {error}") from error
        if is_damage(error):
            raise RowsDamaged(errno.EIO, f"the local index is damaged: {error}") from error
        code = errno.ENOSPC if any(mark in text for mark in _FULL) else errno.EIO
        raise OSError(code, f"the local index: {error}") from error


def is_damage(error: sqlite3.Error) -> bool:
    """Whether the file's content is the reason."""
    name = getattr(error, "sqlite_errorname", "")
    return name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB"))


@contextlib.contextmanager
def bounded(connection: sqlite3.Connection, deadline: Deadline) -> Iterator[None]:
    """Statements of the connection are interrupted at the deadline. Raises OSError, TimeoutError."""
    deadline.check()
    connection.set_progress_handler(_is_late(deadline), PROGRESS_OPERATIONS)
    try:
        with os_errors():
            yield
    finally:
        connection.set_progress_handler(None, 0)


def _is_late(deadline: Deadline) -> Callable[[], int]:
    return lambda: deadline.left_s <= 0
