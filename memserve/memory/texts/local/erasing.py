"""Erasing rows so that their bytes leave the files of the local index."""

from __future__ import annotations

import mmap
import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path

from memserve.memory.texts.local.schema import ROWS_FILE, Deadline, bounded

NEEDLES_MAX = 64
"""Pieces of erased content that the file is searched for. With more it is written anew at once."""
_PIECE_BYTES = 48
_STRIDE_BYTES = 1024
_BUSY_PAUSE_S = 0.01


def pieces_of(connection: sqlite3.Connection, key: str) -> list[bytes]:
    """Pieces of a record's content that stand in the file of rows only while the record does."""
    row = connection.execute("SELECT memory, older FROM records WHERE key = ?", (key,)).fetchone()
    if row is None:
        return []
    pieces = [key.encode()]
    for text in row:
        content = text.encode()
        pieces += [content[at : at + _PIECE_BYTES] for at in range(0, len(content), _STRIDE_BYTES)]
    # The beginning of the JSON is the same in every record.
    return [piece for piece in pieces if len(piece) == _PIECE_BYTES or piece == pieces[0]]


def clean_rows(
    connection: sqlite3.Connection, folder: Path, pieces: Sequence[bytes], deadline: Deadline
) -> bool:
    """Take deleted content out of the write-ahead log, and out of the file of rows.

    SQLite overwrites what it deletes. When it has moved a row between pages before, a copy may be left in a
    page's free space. So the file is searched, and written anew when it has one.
    Returns whether the file was written anew. Raises OSError, TimeoutError.
    """
    empty_log(connection, deadline)
    stale = len(pieces) > NEEDLES_MAX or _stands_in(folder / ROWS_FILE, pieces)
    if stale:
        with bounded(connection, deadline):
            connection.execute("VACUUM")
        empty_log(connection, deadline)
    return stale


def empty_log(connection: sqlite3.Connection, deadline: Deadline) -> None:
    """Bring the write-ahead log into the file and cut it to nothing. Waits for readers of older states."""
    while True:
        with bounded(connection, deadline):
            busy, *_ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if not busy:
            return
        time.sleep(min(_BUSY_PAUSE_S, max(0.0, deadline.left_s)))
        deadline.check()


def _stands_in(file: Path, pieces: Sequence[bytes]) -> bool:
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return any(content.find(piece) >= 0 for piece in pieces)
