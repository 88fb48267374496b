"""Parametric memory: modules under their content digest. Blobs in a directory that the workers see, names in the registry.

One kind today, `lora`. A module is checked against the base model before it gets a name.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from memserve.domain import Module
from memserve.errors import InvalidField, InvalidModule, ModuleNotFound, RegistryUnavailable
from memserve.model_files import read_safetensors_header
from memserve.registry import Registry

LORA = "lora"
CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
LORA_FILES = (CONFIG_FILE, WEIGHTS_FILE)
CONFIG_MAX_BYTES = 1 << 20
ALPHA_MAX = 1e6
NAME_RULE = "must be 1-64 of a-z 0-9 . _ -, starting with a letter or a digit"
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_TENSOR = re.compile(r"base_model\.model\.(?P<path>.+)\.lora_(?P<side>[AB])\.weight")
_DTYPES: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}


def check_module_name(field: str, name: str) -> None:
    """Raises InvalidField."""
    if not _NAME.fullmatch(name):
        raise InvalidField(field, NAME_RULE)


@dataclass(frozen=True, slots=True)
class CheckedLora:
    """A LoRA that fits the base model. `config` is the canonical adapter_config.json."""

    digest: str
    rank: int
    target_modules: tuple[str, ...]
    config: bytes


def check_lora(folder: Path, base_shapes: Mapping[str, tuple[int, ...]], max_rank: int) -> CheckedLora:
    """Check adapter_config.json and adapter_model.safetensors in `folder` against the base model's weights.

    base_shapes: weight name to shape [out, in]. max_rank: the workers' limit.
    Raises InvalidModule, which names the file, the field or the tensor.
    """
    config = _read_config(folder / CONFIG_FILE)
    rank = _check_config(config, max_rank)
    pairs, content = _check_tensors(folder / WEIGHTS_FILE, base_shapes, rank)
    canonical = json.dumps(
        {
            "base_model_name_or_path": "",
            "bias": "none",
            "lora_alpha": config["lora_alpha"],
            "peft_type": "LORA",
            "r": rank,
            "target_modules": sorted({path.rsplit(".", 1)[-1] for path in pairs}),
            "task_type": "CAUSAL_LM",
            "use_rslora": bool(config.get("use_rslora", False)),
        },
        sort_keys=True,
    ).encode()
    digest = hashlib.sha256(canonical + content).hexdigest()
    return CheckedLora(digest, rank, tuple(json.loads(canonical)["target_modules"]), canonical)


class ModuleUpload:
    """Files of one upload, in a folder of their own until they are checked."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder = folder
        self.size_bytes = 0
        self._max_bytes = max_bytes
        folder.mkdir(parents=True)

    def append(self, file_name: str, content: bytes) -> None:
        """Raises InvalidModule for a file that does not belong to a module, or too many bytes."""
        if file_name not in LORA_FILES:
            raise InvalidModule("chunk.file_name", f"{file_name[:80]!r} is not part of a LoRA; it has {' and '.join(LORA_FILES)}")
        self.size_bytes += len(content)
        if self.size_bytes > self._max_bytes:
            raise InvalidModule("chunk.content", f"a module has at most {self._max_bytes} bytes (setting max_module_bytes)")
        with (self.folder / file_name).open("ab") as stream:
            stream.write(content)

    def discard(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


class ModuleCatalogue:
    """Publishes modules and resolves their names. A tenant sees its own only."""

    def __init__(self, root: Path, registry: Registry, base_shapes: Mapping[str, tuple[int, ...]], max_rank: int, max_bytes: int) -> None:
        """root: the directory that holds `modules/<digest>`. base_shapes: empty when this gateway has no base weights at hand."""
        self._root = root
        self._registry = registry
        self._base_shapes = base_shapes
        self._max_rank = max_rank
        self._max_bytes = max_bytes
        self._known: dict[tuple[str, str], Module] = {}

    def begin_upload(self) -> ModuleUpload:
        if not self._base_shapes:
            raise InvalidModule("module", "this gateway has no base model weights to check it against; give it the model's directory")
        return ModuleUpload(self._root / "staging" / uuid.uuid4().hex, self._max_bytes)

    def store(self, upload: ModuleUpload, name: str, expected_digest: str) -> Module:
        """Check the upload and keep it under its digest. Blocking; name it with `register`.

        Raises InvalidModule.
        """
        checked = check_lora(upload.folder, self._base_shapes, self._max_rank)
        if expected_digest and expected_digest != checked.digest:
            raise InvalidModule("header.expected_digest", f"the content's digest is {checked.digest}")
        (upload.folder / CONFIG_FILE).write_bytes(checked.config)
        for file in (*(upload.folder / name for name in LORA_FILES), upload.folder):
            _sync(file)
        kept = self._root / "modules" / checked.digest
        kept.parent.mkdir(parents=True, exist_ok=True)
        if not kept.is_dir():
            try:
                upload.folder.rename(kept)
            except OSError:
                if not kept.is_dir():
                    raise
        _sync(kept.parent)
        size_bytes = sum((kept / file).stat().st_size for file in LORA_FILES)
        return Module(name, checked.digest, LORA, checked.rank, checked.target_modules, size_bytes, time.time())

    async def register(self, tenant: str, module: Module) -> Module:
        """Give the stored module its name. Raises ModuleConflict and RegistryUnavailable."""
        registered = await self._registry.add_module(tenant, module)
        self._known[tenant, module.name] = registered
        return registered

    async def resolve(self, tenant: str, name: str) -> Module:
        """The module that the name means now. While the registry does not answer, the one that it meant last.

        Raises InvalidField, ModuleNotFound and RegistryUnavailable.
        """
        check_module_name("module", name)
        try:
            module = await self._registry.module(tenant, name)
        except RegistryUnavailable:
            known = self._known.get((tenant, name))
            if known is None:
                raise
            return known
        if module is None:
            raise ModuleNotFound(name)
        self._known[tenant, name] = module
        return module

    async def list(self, tenant: str) -> list[Module]:
        """The tenant's modules by name. Raises RegistryUnavailable."""
        return list((await self._registry.modules(tenant)).values())


def _read_config(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise InvalidModule(CONFIG_FILE, "is missing")
    if file.stat().st_size > CONFIG_MAX_BYTES:
        raise InvalidModule(CONFIG_FILE, f"has at most {CONFIG_MAX_BYTES} bytes")
    try:
        config = json.loads(file.read_bytes())
    except (ValueError, RecursionError):
        raise InvalidModule(CONFIG_FILE, "is not JSON") from None
    if not isinstance(config, dict):
        raise InvalidModule(CONFIG_FILE, "must hold an object")
    return config


def _check_config(config: dict[str, Any], max_rank: int) -> int:
    """Returns the rank."""
    if config.get("peft_type") != "LORA":
        raise InvalidModule(f"{CONFIG_FILE}: peft_type", "must be LORA")
    rank = config.get("r")
    if not isinstance(rank, int) or isinstance(rank, bool) or not 1 <= rank <= max_rank:
        raise InvalidModule(f"{CONFIG_FILE}: r", f"must be a whole number from 1 to {max_rank} (setting max_lora_rank)")
    alpha = config.get("lora_alpha")
    if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not 0 < abs(alpha) <= ALPHA_MAX:  # NaN fails too
        raise InvalidModule(f"{CONFIG_FILE}: lora_alpha", f"must be a number other than 0, at most {ALPHA_MAX:g}")
    if config.get("bias", "none") != "none":
        raise InvalidModule(f"{CONFIG_FILE}: bias", 'must be "none"')
    for field in ("use_dora", "fan_in_fan_out", "modules_to_save", "rank_pattern", "alpha_pattern", "lora_bias"):
        if config.get(field):
            raise InvalidModule(f"{CONFIG_FILE}: {field}", "is not supported when serving; merge it into plain LoRA weights")
    return rank


def _check_tensors(file: Path, base_shapes: Mapping[str, tuple[int, ...]], rank: int) -> tuple[set[str], bytes]:
    """Returns the adapted modules' paths and the digest material of the tensors."""
    if not file.is_file():
        raise InvalidModule(WEIGHTS_FILE, "is missing")
    try:
        # First the reader that vLLM uses: a file that it cannot read must not get the digest of a sound file with the same tensors.
        with safe_open(file, framework="numpy"):
            header = read_safetensors_header(file)
        entries = {name: (e["dtype"], tuple(e["shape"]), *e["data_offsets"]) for name, e in header.items()}
    except (SafetensorError, ValueError, TypeError, KeyError, RecursionError, OSError):
        raise InvalidModule(WEIGHTS_FILE, "is not a safetensors file, or is cut short") from None
    if not entries:
        raise InvalidModule(WEIGHTS_FILE, "holds no tensors")
    data = np.memmap(file, dtype=np.uint8, mode="r")
    begin = 8 + int.from_bytes(data[:8].tobytes(), "little")
    sides: dict[str, set[str]] = {}
    nonzero: set[tuple[str, str]] = set()
    whole = hashlib.sha256()
    for name, (dtype, shape, start, end) in sorted(entries.items()):
        match = _TENSOR.fullmatch(name)
        base = base_shapes.get(f"{match['path']}.weight") if match else None
        if match is None or base is None or len(base) != 2:
            raise InvalidModule(name[:200], "does not belong to a linear layer of the base model; it would be silently ignored")
        if dtype not in _DTYPES:
            raise InvalidModule(name, f"dtype must be one of {', '.join(_DTYPES)}, not {dtype!r}")
        wanted = (rank, base[1]) if match["side"] == "A" else (base[0], rank)
        if shape != wanted:
            raise InvalidModule(name, f"shape must be {list(wanted)} for this base model and rank, not {list(shape)}")
        kind = _DTYPES[dtype]
        size = math.prod(shape) * kind.itemsize
        if not (isinstance(start, int) and isinstance(end, int) and start >= 0 and end - start == size and begin + end <= len(data)):
            raise InvalidModule(name, "its data lies outside the file, or is cut short")
        raw = data[begin + start : begin + end].tobytes()
        values = np.frombuffer(raw, dtype=kind)
        finite = (values & 0x7F80) != 0x7F80 if dtype == "BF16" else np.isfinite(values)
        if not finite.all():
            raise InvalidModule(name, "holds NaN or infinite values")
        if (values & 0x7FFF if dtype == "BF16" else values).any():
            nonzero.add((match["path"], match["side"]))
        sides.setdefault(match["path"], set()).add(match["side"])
        whole.update(f"{name}\0{dtype}\0{shape}\0".encode())
        whole.update(raw)
    for path, present in sides.items():
        if present != {"A", "B"}:
            raise InvalidModule(path, "has only one of lora_A and lora_B")
    if not any({(path, "A"), (path, "B")} <= nonzero for path in sides):
        raise InvalidModule(WEIGHTS_FILE, "lora_A or lora_B is zero in every layer: the module would change nothing")
    return set(sides), whole.digest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
