"""Convert a model once for a machine, whichever processes ask for it."""

from __future__ import annotations

import hashlib
import json
import os
import selectors
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

from memserve.errors import StartupError
from memserve.model.chat import check_chat
from memserve.model.convert.gguf import GgufFile, read_gguf
from memserve.model.fetch.fetching import check_digest
from memserve.model.fetch.place import Place
from memserve.model.fetch.progress import LINE_S, Telling, size_text
from memserve.model.files import DTYPE_BYTES, open_model
from memserve.model.known import PACKAGED, check_new_name, converted_place
from memserve.model.manifest import Manifest, manifest_of
from memserve.processes.tether import tethered

PACKAGES = ("torch", "transformers", "gguf")
# Tokenizer, templates and configurations, beside the weights.
SMALL_FILES_BYTES = 64 << 20
# torch and transformers, and the largest tensor in full precision.
PROCESS_BYTES = 3 << 29
# The process of the conversion says nothing within a step, such as while it writes.
SILENCE_S = 900.0
LOOK_S = 0.5
_LINE_MAX = 1 << 16


@dataclass(frozen=True, slots=True)
class Conversion:
    """What is to be converted, and how."""

    name: str
    """Of the model from then on."""
    file: Path
    """A GGUF file."""
    source: str
    """Where the file is from, for people."""
    dtype: str = "bfloat16"
    digest: str = ""
    """The SHA-256 that the model must have, hex. Empty: any."""
    file_digest: str = ""
    """The SHA-256 that the file must have, hex. Empty: any."""
    again: bool = False
    """Whether another model of the name is replaced, and the same one made anew."""
    reserve_bytes: int = 0
    """Room on the disk that must stay free."""
    command: tuple[str, ...] = field(default=(sys.executable, "-m", "memserve.model.convert.by_torch"))


def convert(conversion: Conversion, data: Path, telling: Telling | None = None) -> Path:
    """The directory of the converted model on this machine.

    Two processes never convert to one name at the same time: the second waits for the first. A conversion
    that was ended leaves nothing that has the model's name; the next one begins anew.

    data: the data directory.
    Raises StartupError when the file is damaged or no model that memserve serves, when there is no room, and
    when another model has the name.
    """
    check_conversion(conversion)
    telling = telling or Telling()
    place = converted_place(data, conversion.name)
    with place.held(telling.say) as lock:
        return convert_held(conversion, place, lock, telling)


def check_conversion(conversion: Conversion) -> None:
    """Raises StartupError for a file and a name that need no second look."""
    check_new_name(conversion.name)
    packaged = PACKAGED.get(conversion.name)
    if packaged is not None and conversion.file_digest != packaged.digest:
        raise StartupError(
            f"name {conversion.name!r}: it is that of {packaged.title}; choose another with --name"
        )
    if not conversion.file_digest:
        read_gguf(conversion.file)


def convert_held(conversion: Conversion, place: Place, lock: int, telling: Telling) -> Path:
    """As `convert`, for a process that has the place to itself. lock: as `Place.held` gives it."""
    if place.is_complete and not conversion.again:
        _check_same(conversion, place.manifest)
        check_digest(place.model, conversion.digest, conversion.name)
        return place.model
    file = read_gguf(conversion.file)
    file_digest = digest_of(conversion.file)
    if conversion.file_digest not in ("", file_digest):
        raise StartupError(
            f"{conversion.file} has the digest {file_digest}, and that of {conversion.source} has "
            f"{conversion.file_digest}: it is damaged, or another file"
        )
    _check_tools()
    free_bytes = shutil.disk_usage(place.partial.parent).free
    check_room(conversion, file.elements, free_bytes, _available_bytes())
    began_s = time.monotonic()
    try:
        place.complete(_make(conversion, file, place, telling, lock, file_digest))
    except OSError as error:
        raise StartupError(f"{conversion.name} cannot be converted: {error.strerror or error}") from error
    finally:
        place.drop_partial()
    telling.say(f"converted {conversion.name} in {time.monotonic() - began_s:.1f} s: {place.model}")
    return place.model


def _check_same(conversion: Conversion, manifest: Manifest | None) -> None:
    """Raises StartupError where the model of this name is another one."""
    made = (manifest.source_digest, manifest.dtype) if manifest else None
    if made != (conversion.file_digest or digest_of(conversion.file), conversion.dtype):
        source = f"from {manifest.source} in {manifest.dtype}" if manifest else "and has no manifest"
        raise StartupError(
            f"there is a model {conversion.name} already, {source}; choose another --name, or replace "
            "it with --again"
        )


def _check_tools() -> None:
    """Raises StartupError that names what is not installed."""
    missing = [package for package in PACKAGES if find_spec(package) is None]
    if missing == ["gguf"]:
        raise StartupError("a conversion needs the package gguf: `pip install --no-deps gguf==0.19.0`")
    if missing:
        raise StartupError(
            f"a conversion needs {', '.join(missing)}, which a gateway's installation does not have: convert "
            "the model where workers are installed, and name the directory"
        )


def check_room(conversion: Conversion, elements: int, free_bytes: int, available_bytes: int | None) -> None:
    """Raises StartupError where a conversion does not fit.

    elements: weights of the model. free_bytes: of the disk. available_bytes: of memory; None: not known.
    """
    weights_bytes = elements * DTYPE_BYTES[conversion.dtype]
    needed = weights_bytes + SMALL_FILES_BYTES
    free = max(free_bytes - conversion.reserve_bytes, 0)
    if needed > free:
        raise StartupError(
            f"{conversion.name} needs {size_text(needed)} in {conversion.dtype}, and the disk of data_dir "
            f"has {size_text(free)} to give (disk_reserve_bytes stays free)"
        )
    needed = 2 * weights_bytes + PROCESS_BYTES
    if available_bytes is not None and needed > available_bytes:
        raise StartupError(
            f"the conversion of {conversion.name} needs about {size_text(needed)} of memory, and "
            f"{size_text(available_bytes)} are free; stop something else, or convert it on a larger machine"
        )


def _available_bytes() -> int | None:
    """Memory that can be had without swapping. None: the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError, IndexError):
        return None


def _make(
    conversion: Conversion, file: GgufFile, place: Place, telling: Telling, lock: int, file_digest: str
) -> Manifest:
    """Make the model in the partial folder, and look at it as a start would. Raises StartupError."""
    target = place.fresh_partial()
    weights_bytes = file.elements * DTYPE_BYTES[conversion.dtype]
    telling.say(
        f"converting {conversion.name}: {len(file.tensors)} tensors, {size_text(weights_bytes)} in "
        f"{conversion.dtype}, from {conversion.source}"
    )
    progress = _Progress(conversion.name, place, weights_bytes, telling)
    # The conversion holds the lock too: nobody else begins before it has ended, whatever ends this process.
    command = tethered([*conversion.command, str(file.path.absolute()), str(target), conversion.dtype])
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **_QUIET},
        pass_fds=(lock,),
    )
    try:
        assert process.stdout is not None
        if not _follow(process.stdout, progress):
            status = process.wait(SILENCE_S)
            raise StartupError(
                f"the conversion of {conversion.name} has ended early, with {status}; is there enough memory?"
            )
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
    model = open_model(target)
    if not model.checked_weights():
        raise StartupError(f"the conversion of {conversion.name} has written no weights")
    _synced(target)
    try:
        check_chat(target)
    except StartupError as error:
        telling.say(
            f"note: {str(error).replace(str(target), conversion.name)}; start it with --chat-template"
        )
    manifest = manifest_of(
        target, conversion.source, weights=True, source_digest=file_digest, packages=PACKAGES
    )
    if conversion.digest not in ("", manifest.digest):
        raise StartupError(
            f"the model {conversion.name} has the digest {manifest.digest}, and model_digest is "
            f"{conversion.digest}; nothing of it is kept"
        )
    return manifest


_QUIET = {
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
}


class _Progress:
    """Tensors that are read, and then bytes that are written. A bar takes both, as bytes of all weights."""

    def __init__(self, name: str, place: Place, weights_bytes: int, telling: Telling) -> None:
        self._name = name
        self._place = place
        self._weights_bytes = weights_bytes
        self._telling = telling
        self._step = "starting transformers"
        self._share = 0.0
        self._said_s = time.monotonic()

    def read(self, tensors: int, of: int) -> None:
        self._step = f"{tensors} of {of} tensors read"
        self._share = tensors / of

    def began(self, step: str) -> None:
        self._step = step

    def look(self) -> None:
        written = min(self._place.partial_bytes(), self._weights_bytes)
        if self._telling.moved is not None:
            # Reading and writing are half each.
            self._telling.moved(
                int(self._share * self._weights_bytes / 2) + written // 2, self._weights_bytes
            )
        elif time.monotonic() - self._said_s >= LINE_S:
            self._said_s = time.monotonic()
            self._telling.say(
                f"converting {self._name}: {self._step}, {size_text(written)} of "
                f"{size_text(self._weights_bytes)} written"
            )


def _follow(output: IO[bytes], progress: _Progress) -> bool:
    """Read what the conversion says, and return whether it said that it is done.

    Raises StartupError for an error that it says, and where it says nothing any more.
    """
    waiting = b""
    heard_s = time.monotonic()
    with selectors.DefaultSelector() as selector:
        selector.register(output, selectors.EVENT_READ)
        while True:
            progress.look()
            if not selector.select(LOOK_S):
                if time.monotonic() - heard_s > SILENCE_S:
                    raise StartupError(
                        f"the conversion has said nothing for {SILENCE_S:.0f} s, and was ended"
                    )
                continue
            heard_s = time.monotonic()
            content = os.read(output.fileno(), _LINE_MAX)
            *lines, waiting = (waiting + content).split(b"\n")
            for line in lines:
                if _is_done(_said(line), progress):
                    progress.look()
                    return True
            if not content or len(waiting) > _LINE_MAX:
                return False


def _said(line: bytes) -> dict[str, Any]:
    """A line of the conversion. Libraries may print other lines, which say nothing."""
    try:
        said = json.loads(line)
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}


def _is_done(said: dict[str, Any], progress: _Progress) -> bool:
    """Raises StartupError for an error that was said."""
    if "error" in said:
        raise StartupError(str(said["error"]))
    if "step" in said:
        progress.began(str(said["step"]))
    if "tensors" in said:
        progress.read(int(said["tensors"]), int(said["of"]))
    return "done" in said


def digest_of(file: Path) -> str:
    """SHA-256, hex. Raises StartupError."""
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise StartupError(f"{file}: {error.strerror or error}") from None


def _synced(folder: Path) -> None:
    """Have the files on disk before the model gets its name."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as written:
                os.fsync(written.fileno())
