"""Each import rule of pyproject.toml is broken on purpose in a copy of the code, and is reported by name."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# By contract: a file, and an import that the contract forbids there.
OFFENCES = {
    "Imports point down": ("memserve/kv/index.py", "import memserve.gateway.shared"),
    "No import circles": ("memserve/domain/tenants.py", "import memserve.domain.workers\n"),
    "Policies see the domain and the errors, and nothing else of memserve": (
        "memserve/policy/sampling.py",
        "import memserve.plain",
    ),
    "The domain and the errors see nothing else of memserve": (
        "memserve/domain/memories.py",
        "import memserve.plain",
    ),
    "Policies do no I/O": ("memserve/policy/kv/loading.py", "import time"),
    "vLLM, torch and Ray stay in the worker and in the demo's training": (
        "memserve/gateway/shared.py",
        "import torch",
    ),
    "The client is installed alone: domain, errors, channels and pb": (
        "memserve/client/arguments.py",
        "import memserve.records",
    ),
    "Protobuf and gRPC only at the edges": (
        "memserve/memory/backup_files.py",
        "from memserve.pb.v1 import memory_pb2",
    ),
    "Redis only in its own packages and in the stores": ("memserve/kv/rates.py", "import redis"),
    "Milvus only in memory.texts.milvus and milvus_lite": (
        "memserve/memory/texts/reads.py",
        "import pymilvus",
    ),
    "tantivy and faiss only in memory.texts.local": ("memserve/memory/texts/reads.py", "import faiss"),
    "fsspec only in memory.modules.blobs.remote and model.fetch.stores": (
        "memserve/memory/modules/probes.py",
        "import fsspec",
    ),
    "Parsers of documents only in memory.documents": (
        "memserve/memory/documents/passages.py",
        "import pypdf",
    ),
    "Rules for texts need neither numpy nor a store": ("memserve/memory/texts/rules.py", "import numpy"),
    "Workers know nothing of text memories": (
        "memserve/worker/service.py",
        "import memserve.memory.texts.rules",
    ),
}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What lint-imports prints about a copy of the code that breaks every contract."""
    copy = tmp_path_factory.mktemp("copy")
    shutil.copytree(ROOT / "memserve", copy / "memserve", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", copy)
    # The circle's other half.
    offences = [*OFFENCES.values(), ("memserve/domain/workers.py", "import memserve.domain.tenants\n")]
    for name, offence in offences:
        file = copy / name
        file.write_text(f"{file.read_text(encoding='utf-8')}\n{offence}\n", encoding="utf-8")
    command = (
        "import sys; from importlinter.cli import lint_imports_command; sys.exit(lint_imports_command())"
    )
    ended = subprocess.run(
        [sys.executable, "-c", command, "--no-cache"],
        cwd=copy,
        env={**os.environ, "PYTHONPATH": str(copy), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=60,
        check=False,
    )
    assert ended.returncode == 1, ended.stdout + ended.stderr
    return ended.stdout


def test_each_contract_has_an_offence() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    assert {contract["name"] for contract in contracts} == OFFENCES.keys()


@pytest.mark.parametrize("contract", OFFENCES)
def test_a_broken_contract_is_reported_by_name(report: str, contract: str) -> None:
    assert re.search(rf"^{re.escape(contract)} BROKEN\b", report, re.MULTILINE), report
