"""What is looked at before anything is started: the model, the memory."""

from __future__ import annotations

import shutil
from pathlib import Path

import psutil

from memserve.config import GIB, MIB, Settings
from memserve.demo import MODEL_DIR
from memserve.errors import StartupError
from memserve.model_files import open_model

WORKER_BYTES = 2 * GIB


def check_model(settings: Settings) -> Path:
    """The directory of the model, which can be opened and has weights. Raises StartupError."""
    model = resolve_model(settings.model)
    if not open_model(model, settings.max_context_tokens).tensor_shapes():
        raise StartupError(f"model directory {model} has no weights; memserve needs *.safetensors")
    return model


def resolve_model(name: str) -> Path:
    """The directory of a model: the bundled one for "", a directory, or a Hugging Face name that is fetched or already cached.

    Raises StartupError.
    """
    if not name:
        return MODEL_DIR
    path = Path(name).expanduser()
    if path.is_dir():
        return path.absolute()
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise StartupError(f"model {name!r}: no such directory; give a model directory or a Hugging Face name like org/model")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]))
    except Exception as error:
        raise StartupError(f"model {name!r}: no such directory, and it cannot be fetched: {str(error).splitlines()[0]}") from None


def check_memory(settings: Settings) -> None:
    """Raises StartupError when the workers would not fit."""
    each = WORKER_BYTES + settings.kv_device_bytes + settings.kv_host_bytes
    needed, free = each * settings.workers, psutil.virtual_memory().available
    if needed > free:
        fitting = free // each
        advice = f"use --workers {fitting}" if fitting else "stop something else"
        raise StartupError(f"{settings.workers} workers need about {needed / GIB:.1f} GiB and {free / GIB:.1f} GiB are free; {advice}")
    shared = shutil.disk_usage("/dev/shm").free
    if settings.kv_host_bytes * settings.workers > shared:
        raise StartupError(
            f"/dev/shm has {shared // MIB} MiB free and the KV host tier needs {settings.kv_host_bytes * settings.workers // MIB}; "
            "enlarge it or lower MEMSERVE_KV_HOST_BYTES"
        )
