"""The model is looked at before anything is started."""

from __future__ import annotations

from pathlib import Path

from memserve.config import Settings
from memserve.demo import MODEL_DIR
from memserve.errors import StartupError
from memserve.model.architectures import check_architecture
from memserve.model.chat import check_chat
from memserve.model.files import ModelFiles, json_object, open_model
from memserve.model.recall_template import open_recall_template

OTHER_WEIGHTS = ("*.bin", "*.pth", "*.pt", "*.gguf", "*.msgpack", "*.h5")


def check_model(settings: Settings) -> ModelFiles:
    """The model's files.

    Raises StartupError for a model that memserve does not serve, cannot read, or has no weights.
    """
    model = resolve_model(settings.model)
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


def with_models(settings: Settings) -> Settings:
    """The settings with the directories of the model and the embedding model instead of names.

    Raises StartupError.
    """
    embedder = str(resolve_model(settings.embedder, "embedder")) if settings.embedder else ""
    return settings.model_copy(update={"model": str(resolve_model(settings.model)), "embedder": embedder})


def resolve_model(name: str, setting: str = "model") -> Path:
    """The directory of a model. Raises StartupError.

    name: "" for the bundled model, a directory, or a Hugging Face name that is cached or can be fetched.
    """
    if not name:
        return MODEL_DIR
    path = Path(name).expanduser()
    if path.is_dir():
        return path.absolute()
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise StartupError(
            f"{setting} {name!r}: no such directory; give a model directory or a Hugging Face name like "
            "org/model"
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"])
        )
    except Exception as error:
        raise StartupError(
            f"{setting} {name!r}: no such directory, and it cannot be fetched: {str(error).splitlines()[0]}"
        ) from None
