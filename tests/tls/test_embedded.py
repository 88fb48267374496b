"""`memserve up` with TLS: it calls its own gateway by a socket, and says what clients need."""

from __future__ import annotations

import asyncio
import stat
from pathlib import Path

from loadtests.harness.certificates import Trial, new_trial
from memserve.api.grpc.front import SERVING, open_front
from memserve.config import Settings
from memserve.embedded.readiness import SERVICE, serves_memories
from memserve.embedded.stack import Stack
from memserve.private_files import new_socket_path


def settings(trial: Trial, folder: Path, *, mutual: bool = True) -> Settings:
    files = trial.files("public")
    return Settings(
        data_dir=folder,
        port=0,
        tls_cert_file=files.certificate,
        tls_key_file=files.key,
        tls_client_ca_file=files.authorities if mutual else None,
    )


async def test_the_gateways_own_socket_needs_no_tls_and_is_this_users_alone(tmp_path: Path) -> None:
    trial = new_trial(tmp_path / "certs")
    socket = new_socket_path(tmp_path, "gateway-")
    tls = trial.live("public")
    async with open_front(settings(trial, tmp_path), [SERVICE], tls, str(socket)) as front:
        own = f"unix:{socket}"

        async def ready(address: str) -> bool:
            return await asyncio.to_thread(serves_memories, address)

        assert not await ready(own)
        await front.health.set(SERVICE, SERVING)
        assert await ready(own)
        assert not await ready(f"127.0.0.1:{front.port}"), "the port itself has TLS"
        assert stat.S_IMODE(socket.parent.stat().st_mode) == 0o700


def test_the_first_steps_name_the_files_beside_the_gateways(tmp_path: Path) -> None:
    trial = new_trial(tmp_path / "certs")
    client = tmp_path / "certs" / "client"
    assert Stack(Settings(data_dir=tmp_path)).client_variables() == {}
    assert Stack(settings(trial, tmp_path, mutual=False)).client_variables() == {
        "MEMSERVE_TLS_CA_FILE": str(tmp_path / "certs" / "public" / "ca.crt")
    }
    assert Stack(settings(trial, tmp_path)).client_variables() == {
        "MEMSERVE_TLS_CA_FILE": str(tmp_path / "certs" / "public" / "ca.crt"),
        "MEMSERVE_TLS_CLIENT_CERT_FILE": str(client / "tls.crt"),
        "MEMSERVE_TLS_CLIENT_KEY_FILE": str(client / "tls.key"),
    }
