"""The model is looked at before anything is started."""

from __future__ import annotations

from pathlib import Path

from memserve.config import Settings
from memserve.demo import MODEL_DIR
from memserve.errors import StartupError
from memserve.model.architectures import check_architecture
from memserve.model.chat import check_chat
from memserve.model.convert.choosing import Choices, convert_packaged
from memserve.model.fetch.fetching import Wish, check_digest, fetch
from memserve.model.fetch.progress import Telling
from memserve.model.files import ModelFiles, json_object, open_model
from memserve.model.known import DEMO, PACKAGED, converted_place, is_name, unknown_name
from memserve.model.recall_template import open_recall_template
from memserve.model.weights import GGUF, advice, other_weights_in


def check_model(settings: Settings) -> ModelFiles:
    """The model's files.

    Raises StartupError for a model that memserve does not serve, cannot read, or has no weights.
    """
    return check_directory(
        _directory(settings, settings.model, "model"),
        settings.chat_template,
        settings.recall_template,
        settings.max_context_tokens,
    )


def check_directory(
    model: Path,
    chat_template: Path | None = None,
    recall_template: Path | None = None,
    max_context_tokens: int = 0,
) -> ModelFiles:
    """As `check_model`, of a directory. The defaults are those of the settings."""
    if not (file := model / "config.json").is_file():
        what = advice(other_weights_in(model)) if model.is_dir() else ""
        raise StartupError(f"model directory {model} has no config.json, so it is no model{what}")
    check_architecture(json_object(file), file)
    check_chat(model, chat_template)
    open_recall_template(model, recall_template)
    files = open_model(model, max_context_tokens)
    if not files.checked_weights():
        what = advice(other_weights_in(model))
        raise StartupError(f"model directory {model} has no weights in safetensors files{what}")
    return files


def with_models(settings: Settings, telling: Telling | None = None, *, weights: bool = True) -> Settings:
    """The settings with the directories of the models instead of names and URLs.

    They are the model, the embedding model and the reranker.

    What is not on this machine is fetched, once for all of its processes. A model of a Python package, such
    as smollm2, is converted; its package is not fetched.

    weights: whether the model's weights are needed. A gateway does without.
    Raises StartupError, also for a model with another digest than `model_digest`.
    """
    beside = {
        setting: str(_directory(settings, name, setting, telling)) if name else ""
        for setting, name in (("embedder", settings.embedder), ("reranker", settings.reranker))
    }
    model = _directory(settings, settings.model, "model", telling, weights=weights)
    return settings.model_copy(update={"model": str(model), **beside})


def embedder_directory(settings: Settings, name: str) -> Path:
    """The directory of an embedding model, named as the setting `embedder` is; fetched where it is missing.

    Raises StartupError.
    """
    return _directory(settings, name, "embedder")


def _directory(
    settings: Settings, name: str, setting: str, telling: Telling | None = None, *, weights: bool = True
) -> Path:
    """The directory of a model, of "" the bundled one. Raises StartupError."""
    digest = settings.model_digest if setting == "model" else ""
    path = Path(name).expanduser().absolute() if name else MODEL_DIR
    if path.is_dir():
        # A gateway's directory may have no weights.
        if any(path.glob("*.safetensors")):
            check_digest(path, digest)
        return path
    if setting == "model":
        if path.is_file():
            what = (
                f"`memserve models convert {name}`" if name.lower().endswith(GGUF) else "name its directory"
            )
            raise StartupError(f"{setting} {name!r}: no such directory; it is a file: {what}")
        if is_name(name):
            return _named(settings, name, telling or Telling())
    wish = Wish(
        name,
        setting,
        weights=weights,
        digest=digest,
        reserve_bytes=settings.disk_reserve_bytes,
    )
    return fetch(wish, settings.data, telling)


def _named(settings: Settings, name: str, telling: Telling) -> Path:
    """The directory of a model by a name of one word. Reaches no network. Raises StartupError."""
    if name == DEMO:
        check_digest(MODEL_DIR, settings.model_digest)
        return MODEL_DIR
    place = converted_place(settings.data, name)
    if place.is_complete:
        check_digest(place.model, settings.model_digest, name)
        return place.model
    if name not in PACKAGED:
        raise unknown_name(name, "model", settings.data)
    choices = Choices(digest=settings.model_digest, reserve_bytes=settings.disk_reserve_bytes)
    return convert_packaged(PACKAGED[name], choices, settings.data, telling)
