"""Modules for the tests of the stack, and where its workers have them."""

from __future__ import annotations

from pathlib import Path

from safetensors.numpy import load_file, save_file

from memserve.client import Client
from memserve.demo import ADAPTERS_DIR
from memserve.domain import ModulePlace, ModuleVersion

LOADED = (ModulePlace.DEVICE, ModulePlace.HOST)


def adapter_files(adapter: str, folder: Path, scale: float = 1.0) -> Path:
    """A demo adapter without its probes; with a scale other than 1 its answers are the same and its digest
    another.
    """
    folder.mkdir()
    (folder / "adapter_config.json").write_bytes(
        (ADAPTERS_DIR / adapter / "adapter_config.json").read_bytes()
    )
    tensors = load_file(ADAPTERS_DIR / adapter / "adapter_model.safetensors")
    scaled = {
        name: tensor * tensor.dtype.type(scale if ".lora_B." in name else 1)
        for name, tensor in tensors.items()
    }
    save_file(scaled, folder / "adapter_model.safetensors")
    return folder


def places(client: Client, version: ModuleVersion) -> dict[str, ModulePlace]:
    """Worker to where its engine holds the version; workers that do not are left out."""
    return {
        worker.worker_id: worker.modules[version.digest]
        for worker in client.status().workers
        if version.digest in worker.modules
    }
