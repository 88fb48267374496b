"""What a model can be named by, and which files of it are fetched. Nothing here does I/O."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from memserve.errors import StartupError

WEIGHTS = ".safetensors"
# Configurations, tokenizers, templates. Never a pickle, and never Python.
SMALL = (".json", ".jinja", ".model", ".txt")
# `additional_chat_templates/` and a sentence embedding model's `1_Pooling/` lie one folder down.
DEPTH_MAX = 2
# What else lies beside a model's directory (`place.py`). No model may be called so.
OWN_NAMES = frozenset(
    {"lock", "partial", "partial.json", "model.json", "manifest.json", "wheel", "wheel.part"}
)
FILES_MAX = 10_000
_HUB_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")
_URL = re.compile(r"[a-z][a-z0-9+.-]*://[^?#\s]+")


@dataclass(frozen=True, slots=True)
class Source:
    """Where a model is fetched from."""

    name: str
    """As the setting has it."""
    is_hub: bool

    @property
    def model(self) -> str:
        """The last step, which the served model is called by."""
        last = re.sub(r"[^A-Za-z0-9._-]", "-", self.name.rstrip("/").rpartition("/")[2]).lstrip(".-")
        return f"{last}-model" if last in OWN_NAMES else last[:100] or "model"

    @property
    def key(self) -> str:
        """A folder's name. Two sources have two."""
        return hashlib.sha256(self.name.rstrip("/").encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of a model in a store."""

    name: str
    """Relative to the model, with `/` between steps."""
    size_bytes: int | None
    """None: the store does not say."""
    identity: str
    """Differs when the content does, as far as the store says."""


def source_of(name: str, setting: str) -> Source:
    """Raises StartupError for a name that is neither a Hugging Face name nor a URL."""
    if _URL.fullmatch(name) and "::" not in name:
        address = urlsplit(name)
        if "@" in address.netloc and (address.scheme.startswith("http") or ":" in address.netloc):
            raise StartupError(
                f"setting {setting}: a URL must have no password; give the store's own variables to memserve"
            )
        return Source(name, is_hub=False)
    if _HUB_NAME.fullmatch(name):
        return Source(name, is_hub=True)
    raise StartupError(
        f"{setting} {name!r}: no such directory; give a model directory, a Hugging Face name like org/model, "
        "or the URL of a directory like s3://bucket/model"
    )


def is_wanted(name: str, *, weights: bool) -> bool:
    """Whether a file is fetched.

    weights: False for a gateway, which needs the tokenizer, the configuration and the templates.
    """
    steps = name.split("/")
    if any(step.startswith(".") for step in steps) or len(steps) > DEPTH_MAX:
        return False
    if name.endswith(WEIGHTS):
        return weights and len(steps) == 1
    return name.endswith(SMALL)


def check_name(name: str) -> None:
    """A file's name becomes part of a path on this machine. Raises StartupError."""
    steps = name.split("/")
    odd = any(step in ("", ".", "..") or len(step) > 255 for step in steps)
    if odd or "\\" in name or not name.isprintable():
        raise StartupError(f"the store has a file {name[:300]!r}, a name that memserve does not write")
