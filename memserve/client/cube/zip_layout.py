"""Whether a zip file is laid out as a cube is, looked at before anything in it is read.

zipfile takes much that is no cube: entries that overlap, that are links, that are encrypted, directories that
are larger than memory, bytes before and between. All of that is refused here.
"""

from __future__ import annotations

import os
import stat
import struct
import zipfile
from typing import IO

from memserve.client.cube.layout import (
    CUBE_MAX_BYTES,
    DIRECTORY_MAX_BYTES,
    END,
    END_BYTES,
    ENTRIES_MAX,
    MANIFEST,
    MANIFEST_MAX_BYTES,
    RATIO_MAX,
    SIGNATURE,
    SMALL_BYTES,
    is_entry_name,
)
from memserve.client.cube.values import CubeRefused

FILE = "the file"
_END_RECORD = struct.Struct("<4s4H2LH")
_LOCATOR_BYTES = 20
_END_64 = struct.Struct("<4sQ2H2L4Q")
_LOCAL = struct.Struct("<4s5H3L2H")
_FULL_16, _FULL_32 = 0xFFFF, 0xFFFFFFFF
_PLAIN_FLAGS = 0
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


def opened_zip(stream: IO[bytes]) -> zipfile.ZipFile:
    """The cube's entries. Raises CubeRefused."""
    size_bytes = stream.seek(0, os.SEEK_END)
    directory_at = _check_end(stream, size_bytes)
    try:
        stream.seek(0)
        archive = zipfile.ZipFile(stream)
    except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error) as error:
        raise CubeRefused(FILE, f"has a damaged directory: {error}") from None
    _check_entries(stream, archive.infolist(), directory_at)
    return archive


def kept_digest(stream: IO[bytes]) -> str:
    """The sha256 at the end of the file, of all before it."""
    stream.seek(-64, os.SEEK_END)
    return stream.read(64).decode("ascii", "replace")


def _check_end(stream: IO[bytes], size_bytes: int) -> int:
    """Returns where the directory begins. Raises CubeRefused."""
    begins = size_bytes - END_BYTES - _END_RECORD.size
    if begins < 0:
        raise CubeRefused(FILE, "is no memserve cube, or is cut off: it is too short")
    stream.seek(begins)
    magic, disk, first_disk, here, count, directory_bytes, directory_at, comment_bytes = _END_RECORD.unpack(
        stream.read(_END_RECORD.size)
    )
    comment = stream.read(END_BYTES)
    if magic != b"PK\x05\x06" or comment_bytes != END_BYTES or not comment.startswith(END):
        raise CubeRefused(FILE, "is no memserve cube, or is cut off: it does not end as one")
    if _FULL_16 in (here, count) or _FULL_32 in (directory_bytes, directory_at):
        here, count, directory_bytes, directory_at = _end_64(stream, begins)
        begins -= _LOCATOR_BYTES + _END_64.size
    if disk or first_disk or here != count or not 0 < count <= ENTRIES_MAX + 2:
        raise CubeRefused(FILE, f"must be one file of 1 to {ENTRIES_MAX} entries, and has {count}")
    if directory_bytes > DIRECTORY_MAX_BYTES or directory_at + directory_bytes != begins:
        raise CubeRefused(FILE, "has a directory that is too large, or not behind its entries")
    return int(directory_at)


def _end_64(stream: IO[bytes], begins: int) -> tuple[int, int, int, int]:
    """Of a file with more than 4 GiB or 65,535 entries."""
    at = begins - _LOCATOR_BYTES - _END_64.size
    if at < 0:
        raise CubeRefused(FILE, "has a damaged end")
    stream.seek(at)
    magic, _, _, _, disk, first_disk, here, count, directory_bytes, directory_at = _END_64.unpack(
        stream.read(_END_64.size)
    )
    if magic != b"PK\x06\x06" or disk or first_disk:
        raise CubeRefused(FILE, "has a damaged end")
    return here, count, directory_bytes, directory_at


def _check_entries(stream: IO[bytes], entries: list[zipfile.ZipInfo], directory_at: int) -> None:
    names = {entry.filename for entry in entries}
    if len(names) != len(entries):
        raise CubeRefused(FILE, "has two entries of one name")
    if MANIFEST not in names:
        raise CubeRefused(MANIFEST, "is missing: this is no memserve cube")
    ends = total_bytes = 0
    for entry in entries:
        _check_entry(entry)
        total_bytes += entry.file_size
        if total_bytes > CUBE_MAX_BYTES:
            raise CubeRefused(entry.filename, f"takes the cube over {CUBE_MAX_BYTES} bytes")
        if entry.header_offset != ends:
            raise CubeRefused(entry.filename, "does not begin where the entry before it ends")
        ends += _local_bytes(stream, entry) + entry.compress_size
    if ends != directory_at:
        raise CubeRefused(entries[-1].filename, "does not end where the directory begins")


def _check_entry(entry: zipfile.ZipInfo) -> None:
    name = entry.filename
    if entry.orig_filename != name or not (name in (MANIFEST, SIGNATURE) or is_entry_name(name)):
        raise CubeRefused(name[:200], "is no entry of a cube")
    if not stat.S_ISREG(entry.external_attr >> 16):
        raise CubeRefused(name, "is no plain file")
    if entry.flag_bits != _PLAIN_FLAGS or entry.compress_type not in _METHODS:
        raise CubeRefused(name, "is encrypted, or packed in a way that cubes are not")
    most = MANIFEST_MAX_BYTES if name in (MANIFEST, SIGNATURE) else CUBE_MAX_BYTES
    if entry.compress_type == zipfile.ZIP_STORED:
        most = min(most, entry.compress_size)
    else:
        most = min(most, max(SMALL_BYTES, entry.compress_size * RATIO_MAX))
    if entry.file_size > most:
        raise CubeRefused(name, f"says that it has {entry.file_size} bytes, and may have {most}")


def _local_bytes(stream: IO[bytes], entry: zipfile.ZipInfo) -> int:
    """Of the entry's own header. Raises CubeRefused where it is another one's."""
    stream.seek(entry.header_offset)
    header = stream.read(_LOCAL.size)
    if len(header) != _LOCAL.size:
        raise CubeRefused(entry.filename, "begins behind the end of the file")
    magic, _, flags, method, *_, name_bytes, extra_bytes = _LOCAL.unpack(header)
    name = stream.read(name_bytes)
    if (magic, flags, method, name) != (
        b"PK\x03\x04", entry.flag_bits, entry.compress_type, entry.filename.encode()
    ):  # fmt: skip
        raise CubeRefused(entry.filename, "has a damaged header")
    return _LOCAL.size + int(name_bytes) + int(extra_bytes)
