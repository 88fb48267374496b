"""What is noted beside a model that memserve fetched or converted: where it is from, and what it is."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from memserve.model.files import ModelFiles, json_object

MANIFEST = "manifest.json"
FORMAT = 1
MANIFEST_MAX_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Manifest:
    """The manifest of one model directory."""

    source: str
    """A Hugging Face name, a URL, a wheel or a file."""
    digest: str
    """SHA-256 of the weights and the configuration, as `model_digest` takes it; "" without weights."""
    size_bytes: int
    """Of all files of the model."""
    dtype: str
    context_tokens: int
    """The longest prompt and answer that the model takes."""
    architecture: str
    source_digest: str = ""
    """SHA-256 of the file that was converted; "" for a model that was fetched."""
    made_at: str = ""
    """UTC, ISO 8601."""
    made_by: str = ""
    """The packages that made it, with their versions."""
    format: int = FORMAT

    def to_json(self) -> bytes:
        return json.dumps(asdict(self), indent=1).encode()


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest in a folder. None: there is none, or none of this format."""
    try:
        with (folder / MANIFEST).open("rb") as stream:
            value = json.loads(stream.read(MANIFEST_MAX_BYTES))
        types = {field.name: int if field.type == "int" else str for field in fields(Manifest)}
        if value.get("format") != FORMAT or any(type(value[name]) is not types[name] for name in types):
            return None
        return Manifest(**{name: value[name] for name in types})
    except (OSError, ValueError, KeyError, AttributeError, RecursionError):
        return None


def manifest_of(
    model: Path, source: str, *, weights: bool, source_digest: str = "", packages: Sequence[str] = ()
) -> Manifest:
    """Look at a model directory, and read its weights once for the digest.

    weights: False for a gateway's directory, which has no digest.
    packages: that took part, for `made_by`.
    Raises StartupError for a directory without a configuration.
    """
    files = files_of(model)
    return Manifest(
        source,
        files.model_digest() if weights else "",
        size_bytes_of(model),
        files.dtype,
        files.own_context_tokens,
        files.architecture,
        source_digest,
        datetime.now(UTC).isoformat(timespec="seconds"),
        ", ".join(f"{package} {version(package)}" for package in ("memserve", *packages)),
    )


def files_of(model: Path) -> ModelFiles:
    """The files of a model of any kind, by its configuration alone. Raises StartupError without one."""
    config = json_object(model / "config.json")
    text = config.get("text_config")
    return ModelFiles(model, 0, config, text if isinstance(text, dict) else {})


def size_bytes_of(model: Path) -> int:
    """Of all files in a model directory."""
    return sum(path.stat().st_size for path in model.rglob("*") if path.is_file())
