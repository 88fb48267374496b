"""Two tenants on the same workers and the same Redis: nothing of one reaches the other."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from memserve.client import CallFailed, Client, wait_until_ready
from memserve.config import child_environment
from memserve.demo import ADAPTERS_DIR
from memserve.embedded import Stack
from memserve.embedded.story import ANSWER, ask_and_store, long_prefix
from memserve.processes.ports import taken_ports
from tests.stack.fixtures import eventually

pytestmark = [pytest.mark.stack, pytest.mark.timeout(600)]

KEYS = [
    {"name": tenant, "tenant": tenant, "role": "admin", "key": f"key-of-{tenant}-0001"}
    for tenant in ("acme", "bolt")
]


@pytest.fixture(scope="module")
def address(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A second gateway over the stack's workers and Redis, with API keys, its own Milvus Lite and the same
    module directory.
    """
    folder: Path = tmp_path_factory.mktemp("tenants")
    (folder / "keys.json").write_text(json.dumps({"keys": KEYS}), encoding="utf-8")
    settings = stack.settings.model_copy(
        update={
            "port": 0,
            "metrics_port": 0,
            "http_port": 0,
            "milvus_uri": str(folder / "milvus.db"),
            "api_keys_file": folder / "keys.json",
        }
    )
    log = folder / "gateway.log"
    with log.open("wb") as output:
        gateway = subprocess.Popen(
            [sys.executable, "-m", "memserve", "gateway"],
            env=child_environment(settings, folder / "settings.json"),
            stdout=output,
            stderr=output,
        )
    try:
        eventually(
            lambda: taken_ports(settings.data, gateway.pid) is not None or gateway.poll() is not None,
            timeout_s=60,
        )
        ports = taken_ports(settings.data, gateway.pid)
        assert ports is not None, log.read_text(encoding="utf-8")
        where = f"127.0.0.1:{ports['port']}"
        with Client(where, api_key="key-of-acme-0001") as client:

            def ready() -> bool:
                assert gateway.poll() is None, log.read_text(encoding="utf-8")
                try:
                    return sum(worker.ready for worker in client.status().workers) == stack.settings.workers
                except CallFailed:
                    return False

            eventually(ready, timeout_s=60)
        yield where
    finally:
        gateway.terminate()
        gateway.wait(30)


def test_a_call_without_a_key_is_refused(address: str) -> None:
    assert not wait_until_ready(address, 0.1)
    for key in ("", "wrong-key", "acme"):
        with Client(address, api_key=key) as client, pytest.raises(CallFailed) as refused:
            client.generate("Hello.")
        assert refused.value.code.name == "UNAUTHENTICATED"


def test_a_tenants_kv_is_found_by_itself_on_every_worker_and_never_by_another(
    stack: Stack, address: str
) -> None:
    prefix = long_prefix(909)
    with (
        Client(address, api_key="key-of-acme-0001") as acme,
        Client(address, api_key="key-of-bolt-0001") as bolt,
    ):
        first, second = sorted(worker.worker_id for worker in acme.status().workers)
        [cold] = ask_and_store(stack, acme, [prefix], first)
        foreign = bolt.generate(prefix.messages, worker_id=first, sampling=ANSWER)
        assert foreign.usage.cached.total == 0
        assert foreign.route.expected_cached_tokens == 0
        assert foreign.token_ids == cold.token_ids
        own = acme.generate(prefix.messages, worker_id=second, sampling=ANSWER)
        assert own.usage.cached.redis >= 0.95 * own.usage.prompt_tokens


def test_a_tenants_modules_and_memories_do_not_exist_for_another(address: str) -> None:
    with (
        Client(address, api_key="key-of-acme-0001") as acme,
        Client(address, api_key="key-of-bolt-0001") as bolt,
    ):
        acme.modules.publish("secret", ADAPTERS_DIR / "harbour")
        memory = acme.remember("secret", "The code of Alder station is 4071.")
        assert [module.name for module in bolt.modules.all()] == []
        for call in (
            lambda: bolt.generate("Hello.", module="secret"),
            lambda: bolt.generate("Hello.", namespaces=["secret"]),
            lambda: bolt.get_memory("secret", memory.memory_id),
            lambda: bolt.search(["secret"], "code"),
            lambda: bolt.modules.get("secret"),
        ):
            with pytest.raises(CallFailed) as refused:
                call()
            assert refused.value.code.name == "NOT_FOUND"
