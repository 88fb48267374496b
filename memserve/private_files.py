"""Files and folders that only their owner can read. A crash or a full disk never leaves half of a file."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import getpass
import os
import secrets
import stat
import tempfile
from collections.abc import MutableMapping
from pathlib import Path
from typing import IO

from memserve.errors import StartupError

SECRET_MIN_BYTES = 32
# The home of a process without one, in the working directory.
NO_HOME = ".memserve"
# The kernel takes paths of at most 107 bytes for a unix socket.
_SOCKET_PATH_MAX = 100


def private_umask() -> None:
    """From now on only the owner can read what this process and its children create."""
    os.umask(0o077)


def find_home(environment: MutableMapping[str, str]) -> None:
    """Give this process and its children a home and a user's name where the machine knows none.

    A container that runs under any user id is such a machine. The home is `.memserve` in the working
    directory. Libraries look for both. Without them they would fail, or create a directory called `~`.
    """
    try:
        Path.home()
    except RuntimeError:
        environment["HOME"] = str(Path.cwd() / NO_HOME)
    try:
        getpass.getuser()
    except (KeyError, OSError):
        environment["LOGNAME"] = f"user-{os.getuid()}"


def open_data_dir(folder: Path) -> None:
    """Create the directory, and mend the rights inside it: 0700 for folders, 0600 for files.

    A mounted volume is root's, and its own rights stay as they are.

    Raises StartupError when it is not a directory, belongs to another user, or cannot be made.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
        if found.st_uid == os.geteuid():
            folder.chmod(0o700)
        elif not _is_volume(found, writable=os.access(folder, os.W_OK | os.X_OK, effective_ids=True)):
            raise StartupError(
                f"data_dir {folder} belongs to user {found.st_uid}, and memserve runs as {os.geteuid()}; "
                "choose another data_dir"
            )
        for place, folders, files in os.walk(folder):
            for name in (*folders, *files):
                _mend(Path(place, name))
    except (FileExistsError, NotADirectoryError):
        raise StartupError(f"data_dir {folder} is a file; give a directory") from None
    except OSError as error:
        raise StartupError(f"data_dir {folder}: {error.strerror}") from None


def lock_data_dir(folder: Path) -> IO[str]:
    """Lock the directory for one `memserve up` or `memserve workers`, until the file is closed or the process
    ends.

    Raises StartupError.
    """
    lock = (folder / "lock").open("w", encoding="utf-8")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        raise StartupError(
            f"another memserve runs on {folder}; stop it, or give this one a directory of its own (data_dir)"
        ) from None
    return lock


def write_private(file: Path, content: bytes) -> None:
    """Replace the file. It has the old content or the new content, whatever happens. Raises OSError."""
    aside = _written_aside(file, content)
    try:
        aside.rename(file)
    except OSError:
        aside.unlink(missing_ok=True)
        raise
    _sync_folder(file.parent)


def keep_private(file: Path, content: bytes) -> None:
    """As `write_private`, but a file that has the content already is left alone.

    On a full disk, a memserve that ran before can start again.
    """
    with contextlib.suppress(OSError):
        if file.read_bytes() == content:
            return
    write_private(file, content)


def kept_secret(file: Path) -> bytes:
    """The secret that the file keeps, at least 32 bytes.

    The first call creates it. Two calls at once get the same.

    Raises StartupError when the file holds less, or cannot be read or written.
    """
    try:
        with contextlib.suppress(FileNotFoundError):
            return _long_enough(file, file.read_bytes())
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        aside = _written_aside(file, secrets.token_hex(SECRET_MIN_BYTES).encode())
        try:
            # Unlike a rename, a link does not replace a file that another process has created meanwhile.
            os.link(aside, file)
        except FileExistsError:
            pass
        finally:
            aside.unlink()
        _sync_folder(file.parent)
        return _long_enough(file, file.read_bytes())
    except OSError as error:
        raise StartupError(f"{file}: {error.strerror}") from None


def _is_volume(found: os.stat_result, *, writable: bool) -> bool:
    """Whether a directory of another user's can be a data directory.

    Container runtimes mount volumes as root's and let the container's user write. A directory with the sticky
    bit, such as /tmp, is for everybody.
    """
    return found.st_uid == 0 and writable and not found.st_mode & stat.S_ISVTX


def new_socket_path(beside: Path, prefix: str) -> Path:
    """A path for a new unix socket, in a new folder that only this user can enter.

    The folder is in `beside`. Where that path is too long, it is in the system's temporary directory.
    Raises OSError.
    """
    for place in (beside, Path(tempfile.gettempdir())):
        with contextlib.suppress(OSError):
            inside = Path(tempfile.mkdtemp(prefix=prefix, dir=place))
            if len(os.fsencode(inside / "socket")) <= _SOCKET_PATH_MAX:
                return inside / "socket"
            inside.rmdir()
    raise OSError(errno.ENAMETOOLONG, "no place for a unix socket")


def signature_of(file: Path) -> tuple[int, ...] | None:
    """A value that differs after the file was replaced or written. None: the file cannot be looked at."""
    try:
        state = file.stat()
    except OSError:
        return None
    return (state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns)


def _long_enough(file: Path, secret: bytes) -> bytes:
    if len(secret.strip()) < SECRET_MIN_BYTES:
        raise StartupError(
            f"{file} holds {len(secret.strip())} bytes, and a secret has at least {SECRET_MIN_BYTES}: "
            "restore it from a backup. If nothing is to be kept that was salted with it, remove the file; a "
            "new one is made"
        )
    return secret


def _written_aside(file: Path, content: bytes) -> Path:
    """Write the content beside the file, under a name of its own, and have it on disk."""
    aside = file.with_name(f".{file.name}.{secrets.token_hex(8)}")
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
    except OSError:
        aside.unlink(missing_ok=True)
        raise
    return aside


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # this file system cannot sync a folder
            raise
    finally:
        os.close(descriptor)


def _mend(path: Path) -> None:
    """Take every right from group and others.

    Links are left alone, and so is what belongs to another user: a volume that is mounted there is root's. A
    file that is gone is passed over.
    """
    with contextlib.suppress(FileNotFoundError):
        found = path.lstat()
        mode = found.st_mode
        if found.st_uid == os.geteuid() and not stat.S_ISLNK(mode) and mode & 0o077:
            path.chmod(stat.S_IMODE(mode) & 0o700)
