"""The model is looked at before anything is started."""

from __future__ import annotations

from pathlib import Path

from memserve.config import Settings
from memserve.demo import MODEL_DIR
from memserve.errors import StartupError
from memserve.model.architectures import check_architecture
from memserve.model.chat import check_chat
from memserve.model.fetch.fetching import Wish, check_digest, fetch
from memserve.model.fetch.progress import Telling
from memserve.model.files import ModelFiles, json_object, open_model
from memserve.model.recall_template import open_recall_template

OTHER_WEIGHTS = ("*.bin", "*.pth", "*.pt", "*.gguf", "*.msgpack", "*.h5")


def check_model(settings: Settings) -> ModelFiles:
    """The model's files.

    Raises StartupError for a model that memserve does not serve, cannot read, or has no weights.
    """
    model = _directory(settings, settings.model, "model")
    if (file := model / "config.json").is_file():
        check_architecture(json_object(file), file)
    check_chat(model, settings.chat_template)
    open_recall_template(model, settings.recall_template)
    files = open_model(model, settings.max_context_tokens)
    if not files.checked_weights():
        other = next((file.name for pattern in OTHER_WEIGHTS for file in sorted(model.glob(pattern))), "")
        hint = f"; convert {other} with transformers' save_pretrained" if other else ""
        raise StartupError(f"model directory {model} has no weights in safetensors files{hint}")
    return files


def with_models(settings: Settings, telling: Telling | None = None, *, weights: bool = True) -> Settings:
    """The settings with the directories of the models instead of names and URLs.

    They are the model, the embedding model and the reranker.

    What is not on this machine is fetched, once for all of its processes.

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
    wish = Wish(
        name,
        setting,
        weights=weights,
        digest=digest,
        reserve_bytes=settings.disk_reserve_bytes,
    )
    return fetch(wish, settings.data, telling)
