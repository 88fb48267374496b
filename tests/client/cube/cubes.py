"""Cubes that tests write without a gateway."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from memserve.client.cube.layout import MEMORIES, module_entry, version_entry
from memserve.client.cube.records import encoded
from memserve.client.cube.signing import Signer
from memserve.client.cube.values import CubeAlias, CubeManifest, CubeModule
from memserve.client.cube.writing import CubeWriter
from memserve.domain import Alias, AliasChange, ModuleKind, ModuleVersion, TrafficShare, WeightFigures

FILES = {"adapter_config.json": b'{"r": 4}', "adapter_model.safetensors": bytes(range(256)) * 64}
PROBES = b'{"sets": []}'
BASE = "ba" * 32


def exported(namespaces: Mapping[str, Sequence[str]]) -> bytes:
    """The lines of an export. namespaces: namespace to memories' ids."""
    header = {
        "memserve_export": 1,
        "embedder": "e",
        "namespaces": {name: len(ids) for name, ids in namespaces.items()},
    }
    memories = [
        {"memory": {"dropped": 0, "versions": [{"action": "remembered", "memory": _memory(name, identity)}]}}
        for name, ids in namespaces.items()
        for identity in ids
    ]
    canonical = [json.dumps(line, sort_keys=True, separators=(",", ":")).encode() for line in memories]
    end = {
        "memserve_export_end": 1,
        "memories": len(memories),
        "sha256": hashlib.sha256(b"".join(canonical)).hexdigest(),
    }
    return b"".join(json.dumps(line).encode() + b"\n" for line in (header, *memories, end))


def _memory(namespace: str, identity: str) -> dict[str, Any]:
    return {"namespace": namespace, "memory_id": identity, "text": f"Of {identity}.", "version": 1}


def version(number: int = 1) -> ModuleVersion:
    return ModuleVersion(
        module="tone",
        version=number,
        digest=f"{number:064x}",
        kind=ModuleKind.LORA,
        base_digest=BASE,
        rank=4,
        target_modules=("q_proj",),
        size_bytes=sum(map(len, FILES.values())),
        created_s=1.5,
        author="me",
        sources=("memory:notes/m1@1",),
        parents=("cd" * 32,),
        recipe="{}",
        notes="n",
        figures=WeightFigures(1.0, 0.5, 2.0),
        probes_digest=hashlib.sha256(PROBES).hexdigest(),
    )


def write_cube(
    file: Path,
    namespaces: Mapping[str, Sequence[str]],
    *,
    versions: Sequence[ModuleVersion] = (),
    sign: Path | None = None,
    changes: Mapping[str, Any] | None = None,
    targets: tuple[TrafficShare, ...] = (TrafficShare(1, 1.0),),
) -> Path:
    """changes: of the manifest. targets: of the alias of the module."""
    signer = Signer(sign) if sign is not None else None
    writer = CubeWriter(file)
    if namespaces:
        writer.begin(MEMORIES)
        writer.write(exported(namespaces))
    if versions:
        alias = CubeAlias(
            Alias("live", targets, 1, 1.5), (AliasChange(1, targets, 1.5, "me", "promote", "", False),)
        )
        writer.add(module_entry("tone"), encoded(CubeModule("tone", ModuleKind.LORA, (alias,))))
    for each in versions:
        writer.add(version_entry("tone", each.version), encoded(each))
        for name, content in {**FILES, "probes.json": PROBES}.items():
            writer.add(version_entry("tone", each.version, name), content)
    writer.end()
    fields: dict[str, Any] = {
        "created_s": 1.5,
        "memserve": "0.1.0",
        "model": "tiny",
        "model_digest": BASE,
        "embedder": "e",
        "namespaces": {name: len(ids) for name, ids in namespaces.items()},
        "modules": {"tone": tuple(each.version for each in versions)} if versions else {},
        "left_out": (),
        "entries": tuple(writer.entries),
    }
    writer.close(CubeManifest(**{**fields, **(changes or {})}), signer)
    writer.put()
    writer.discard()
    return file
