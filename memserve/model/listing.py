"""The models of this machine: what each is, where it is from, and whether it can be served."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from memserve.demo import MODEL_DIR
from memserve.errors import StartupError
from memserve.model.checks import check_directory
from memserve.model.fetch.place import MODELS, SMALL
from memserve.model.files import ModelFiles
from memserve.model.known import DEMO, PACKAGED, PackagedModel
from memserve.model.manifest import Manifest, manifest_of, read_manifest

FOLDERS_MAX = 1000


@dataclass(frozen=True, slots=True)
class ListedModel:
    """A model that `memserve up --model` takes, or would take."""

    name: str
    """As `--model` takes it."""
    source: str
    path: str
    """Its directory; "" for a model that is not here."""
    size_bytes: int
    dtype: str
    context_tokens: int
    architecture: str
    digest: str
    """SHA-256 of the weights and the configuration, hex; "" where it is not noted."""
    why_not: str
    """Why it cannot be served now; "" where it can be."""


def listed_models(data: Path, *, verify: bool = False) -> list[ListedModel]:
    """The bundled model, those in the data directory, and those of packages that are not converted yet.

    verify: whether the weights are read and held against the noted digest.
    """
    models = [_here(DEMO, MODEL_DIR, manifest_of(MODEL_DIR, "bundled", weights=True), verify=False)]
    models += _in_data(data, verify=verify)
    names = {model.name for model in models}
    return models + [_of_package(model, data) for name, model in PACKAGED.items() if name not in names]


def _in_data(data: Path, *, verify: bool) -> list[ListedModel]:
    try:
        folders = sorted(path for path in (data / MODELS).iterdir() if path.is_dir())[:FOLDERS_MAX]
    except OSError:
        return []
    models = (_in_folder(folder, verify=verify) for folder in folders if not folder.is_symlink())
    return [model for model in models if model is not None]


def _in_folder(folder: Path, *, verify: bool) -> ListedModel | None:
    """None: no model, and none under way."""
    try:
        directory = next((path for path in sorted(folder.iterdir()) if _is_model(path)), None)
        if directory is not None:
            return _of_folder(folder, directory, verify=verify)
        is_under_way = (folder / "partial").is_dir()
    except OSError as error:
        return _absent(folder.name, str(error.strerror or error))
    why = "it is being made, or was ended: run the command again"
    return _absent(folder.name, why) if is_under_way else None


def _is_model(path: Path) -> bool:
    return path.name != "partial" and (path / "config.json").is_file()


def _of_folder(folder: Path, directory: Path, *, verify: bool) -> ListedModel:
    noted = read_manifest(folder)
    is_converted = folder.name == directory.name
    weights = any(directory.glob("*.safetensors"))
    try:
        # Without a note the digest is not known. To read all weights takes long.
        manifest = noted or manifest_of(directory, "an earlier memserve", weights=False)
    except StartupError as error:
        manifest, weights = Manifest("", "", 0, "", 0, ""), False
        return _here(folder.name, directory, manifest, verify=False, why_not=str(error))
    name = folder.name if is_converted else manifest.source if noted else str(directory)
    why_not = "" if weights else "the tokenizer alone, for a gateway"
    if folder.name.endswith(SMALL) and not is_converted:
        name = f"{name} (no weights)"
    return _here(name, directory, manifest, verify=verify and noted is not None, why_not=why_not)


def _here(name: str, directory: Path, manifest: Manifest, *, verify: bool, why_not: str = "") -> ListedModel:
    why_not = why_not or _why_not_served(directory)
    if verify and not why_not and ModelFiles(directory, 0, {}).model_digest() != manifest.digest:
        why_not = "its weights or its configuration have changed since it was made"
    return ListedModel(
        name,
        manifest.source,
        str(directory),
        manifest.size_bytes,
        manifest.dtype,
        manifest.context_tokens,
        manifest.architecture,
        manifest.digest,
        why_not,
    )


def _why_not_served(directory: Path) -> str:
    try:
        check_directory(directory)
    except StartupError as error:
        return str(error).replace(f"{directory}/", "")
    return ""


def _absent(name: str, why_not: str, source: str = "") -> ListedModel:
    return ListedModel(name, source, "", 0, "", 0, "", "", why_not)


def _of_package(model: PackagedModel, data: Path) -> ListedModel:
    """Of a package, not converted yet. It is converted when it is first served."""
    has_file = model.found(data) is not None
    why_not = "" if has_file else f"{model.requirement} is not installed: {model.remedy}"
    source = f"{model.requirement}{', not converted yet' if has_file else ''}"
    return _absent(model.name, why_not, source)
