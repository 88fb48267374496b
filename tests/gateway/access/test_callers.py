"""Keys, tenants, roles and salts: who gets in, and what a broken or changed file of keys does."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import grpc
import pytest

from memserve import credentials
from memserve.api.grpc.server import SERVICES
from memserve.client import AsyncClient, CallFailed
from memserve.config import Settings
from memserve.domain import KeyRole
from memserve.errors import InvalidField, PermissionDenied, StartupError, Unauthenticated
from memserve.gateway.access.callers import Access, KeyFile, load_access
from memserve.gateway.access.keys import add_key, read_keys, revoke_key
from memserve.gateway.access.roles import NEEDED
from memserve.gateway.workers.calls import GrpcCalls
from memserve.gateway.workers.pool import WorkerPool
from memserve.kv.index import BlockIndex
from memserve.pb.v1 import activation_pb2, inference_pb2, lineage_pb2, memory_pb2, module_pb2, status_pb2
from memserve.registry.leases import Registry
from tests.gateway.access.issuer import jwks, token, token_settings
from tests.gateway.fixtures import StartGateway
from tests.gateway.running import eventually, open_gateway, until

SALT_KEY = b"s" * 32
KEYS = {"alice-key-1": "alice", "alice-key-2": "alice", "bob-key-1": "bob"}
FILES = (activation_pb2, inference_pb2, lineage_pb2, memory_pb2, module_pb2, status_pb2)


def access_of(tmp_path: Path, content: object = KEYS, salt_key: bytes = SALT_KEY) -> Access:
    file = tmp_path / "some-keys.json"
    file.write_text(json.dumps(content), encoding="utf-8")
    return Access(read_keys(file, must_exist=True), salt_key)


# Roles


def methods() -> list[str]:
    return [
        method.name
        for file in FILES
        for service in file.DESCRIPTOR.services_by_name.values()
        if service.full_name in SERVICES
        for method in service.methods
    ]


def test_every_rpc_is_in_the_table_of_roles_and_nothing_else_is() -> None:
    assert sorted(NEEDED) == sorted(methods())


@pytest.mark.parametrize("role", list(KeyRole))
def test_a_key_calls_what_its_role_covers_and_is_refused_the_rest(tmp_path: Path, role: KeyRole) -> None:
    access = access_of(
        tmp_path, {"keys": [{"name": "one", "tenant": "acme", "role": role, "key": "the-key-of-one"}]}
    )
    order = list(KeyRole)
    for rpc, needed in NEEDED.items():
        if order.index(role) >= order.index(needed):
            assert access.caller(rpc, "Bearer the-key-of-one").role is role
        else:
            with pytest.raises(PermissionDenied, match=f"{rpc} needs .* {needed}; .* {role}"):
                access.caller(rpc, "Bearer the-key-of-one")


def test_a_key_of_the_short_form_writes_and_is_no_administrator(tmp_path: Path) -> None:
    assert access_of(tmp_path).tenant("Bearer bob-key-1").role is KeyRole.WRITE


async def test_only_an_administrator_names_workers_and_sees_where_they_are(
    tmp_path: Path, model_dir: Path
) -> None:
    keys = tmp_path / "keys.json"
    made = {role: add_key(keys, f"one-{role}", "acme", role, 0.0) for role in KeyRole}
    async with open_gateway(tmp_path, model_dir, api_keys_file=keys) as gateway:
        for role, key in made.items():
            async with AsyncClient(gateway.address, key) as client:
                worker = (await client.status()).workers[0]
                usage = await client.activation.usage()
                if role is KeyRole.ADMIN:
                    assert worker.address and worker.metrics_address
                    assert (await client.generate("hello", worker_id="w0")).route.worker_id == "w0"
                    continue
                assert (worker.address, worker.metrics_address, worker.pid) == ("", "", 0)
                assert (usage.cache_stored_bytes, usage.cache_quota_bytes) == (0, 0)
                for call in (
                    client.generate("hello", worker_id="w0"),
                    client.modules.preload("m", worker_id="w0"),
                    client.modules.unload("m", worker_id="w0"),
                ):
                    with pytest.raises(CallFailed) as refused:
                        await call
                    # A module that does not exist is found out first where the role would allow to look.
                    assert refused.value.code in (
                        grpc.StatusCode.PERMISSION_DENIED,
                        grpc.StatusCode.NOT_FOUND,
                    )
        async with AsyncClient(gateway.address, made[KeyRole.WRITE]) as writer:
            with pytest.raises(CallFailed, match="worker_id needs") as refused:
                await writer.generate("hello", worker_id="w0")
            assert refused.value.code is grpc.StatusCode.PERMISSION_DENIED
        async with AsyncClient(gateway.address, made[KeyRole.READ]) as reader:
            with pytest.raises(CallFailed) as refused:
                await reader.generate("hello")
            assert refused.value.code is grpc.StatusCode.PERMISSION_DENIED


async def test_a_worker_with_another_salt_key_is_not_used_and_the_log_says_why(
    tmp_path: Path, model_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_gateway(tmp_path, model_dir, workers=({},)) as gateway:
        lease = gateway.workers[0].lease
        registry = Registry(gateway.settings.redis)
        stranger = partial(GrpcCalls, credential="0" * 64)
        other = WorkerPool(registry, BlockIndex(), lease.tokenizer_digest, stranger)
        await other.start()
        try:
            await until(lambda: "salt_key differs" in caplog.text)
            assert other.ready(0.0) == []
        finally:
            await other.close()
            await registry.close()


# The file of keys


async def test_a_key_that_is_revoked_is_refused_without_a_restart(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    keys = tmp_path / "keys.json"
    key = add_key(keys, "alice", "alice", KeyRole.WRITE, 0.0)
    add_key(keys, "bob", "bob", KeyRole.WRITE, 0.0)
    gateway = await start_gateway(api_keys_file=keys)
    follower = KeyFile(gateway.access, gateway.settings)
    async with AsyncClient(gateway.address, key) as alice:
        await alice.status()
        revoke_key(keys, "alice")
        follower.look()
        with pytest.raises(CallFailed) as refused:
            await alice.status()
        assert refused.value.code is grpc.StatusCode.UNAUTHENTICATED
        new = add_key(keys, "alice", "alice", KeyRole.WRITE, 0.0)
        follower.look()
        with pytest.raises(CallFailed):
            await alice.status()
    async with AsyncClient(gateway.address, new) as alice:
        await alice.status()


@pytest.mark.parametrize("content", [None, "", "{", "[]", '{"keys": [{"name": "x"}]}', "\xff"])
def test_a_file_that_breaks_while_a_gateway_runs_changes_nothing_and_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: str | None
) -> None:
    keys = tmp_path / "keys.json"
    key = add_key(keys, "alice", "alice", KeyRole.WRITE, 0.0)
    settings = Settings(data_dir=tmp_path)
    access = load_access(settings)
    follower = KeyFile(access, settings)
    if content is None:
        keys.unlink()
    else:
        keys.write_bytes(content.encode("latin-1"))
    follower.look()
    assert access.tenant(f"Bearer {key}").name == "alice"
    with pytest.raises(Unauthenticated):
        access.tenant("")
    assert "stay as they were" in caplog.text


def test_a_gateway_that_ran_open_closes_with_the_first_key(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    access = load_access(settings)
    follower = KeyFile(access, settings)
    assert access.tenant("").name == "default"
    key = add_key(tmp_path / "keys.json", "alice", "alice", KeyRole.READ, 0.0)
    follower.look()
    assert access.tenant(f"Bearer {key}").role is KeyRole.READ
    with pytest.raises(Unauthenticated):
        access.tenant("")
    revoke_key(tmp_path / "keys.json", "alice")
    follower.look()
    with pytest.raises(Unauthenticated):  # no key is left: nobody gets in, rather than everybody
        access.tenant("")


def test_the_file_keeps_digests_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    keys.write_text(json.dumps({"a-short-form-key": "acme"}), encoding="utf-8")
    key = add_key(keys, "alice", "alice", KeyRole.WRITE, 0.0)
    content = keys.read_text(encoding="utf-8")
    assert key not in content and "a-short-form-key" not in content
    assert keys.stat().st_mode & 0o777 == 0o600
    names = [known.name for known in read_keys(keys, must_exist=True) or ()]
    assert len(names) == 2 and all(names), "a key of the short form got a name to be revoked by"
    for name in names:
        revoke_key(keys, name)
    assert read_keys(keys, must_exist=True) == []


@pytest.mark.parametrize(
    ("name", "tenant"),
    [("", "a"), ("a b", "a"), ("a" * 65, "a"), ("a", "A"), ("a", ""), ("a", "x/y"), ("taken", "a")],
)
def test_a_name_or_tenant_that_breaks_a_rule_makes_no_key(tmp_path: Path, name: str, tenant: str) -> None:
    keys = tmp_path / "keys.json"
    add_key(keys, "taken", "acme", KeyRole.WRITE, 0.0)
    before = keys.read_text(encoding="utf-8")
    with pytest.raises(InvalidField):
        add_key(keys, name, tenant, KeyRole.WRITE, 0.0)
    assert keys.read_text(encoding="utf-8") == before


@pytest.mark.parametrize(
    "content",
    [
        "", "{", "[]", "{}", '"key"', '{"short": "alice"}', '{"long-enough": "Alice"}',
        '{"long-enough": ""}', '{"long-enough": 1}',
        '{"long-enough": "a/b"}', '{"keys": [1]}', '{"keys": [], "more": 1}',
        '{"keys": [{"name": "a", "tenant": "a", "role": "root", "key": "long-enough"}]}',
        '{"keys": [{"name": "a", "tenant": "a", "role": "read", "key": "long-enough", "rolle": "read"}]}',
        '{"keys": [{"name": "a", "tenant": "a", "role": "read"}]}',
        '{"keys": [{"name": "a", "tenant": "a", "role": "read", "sha256": "abc"}]}',
        '{"keys": [{"name": "a", "tenant": "a", "role": "read", "key": "long-enough", '
        '"sha256": "' + "0" * 64 + '"}]}',
        '{"keys": [{"name": "a", "tenant": "a", "role": "read", "key": "long-enough"}, '
        '{"name": "b", "tenant": "b", "role": "admin", "key": "long-enough"}]}',
        '{"keys": [{"name": "a", "tenant": "a", "role": "read", "key": "long-enough", "created_s": "now"}]}',
        "[" * 100_000,
    ],
)  # fmt: skip
def test_a_key_file_that_breaks_a_rule_stops_the_start_without_telling_a_key(
    tmp_path: Path, content: str
) -> None:
    file = tmp_path / "keys.json"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(StartupError, match="api_keys_file") as refusal:
        load_access(Settings(data_dir=tmp_path, api_keys_file=file))
    assert "long-enough" not in str(refusal.value)


def test_a_missing_key_file_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="api_keys_file"):
        load_access(Settings(data_dir=tmp_path, api_keys_file=tmp_path / "none.json"))


def test_without_keys_only_this_machine_is_served(tmp_path: Path) -> None:
    for host in ("0.0.0.0", "::", "10.1.2.3", "example.org"):
        with pytest.raises(StartupError, match=r"keys add.*allow_anonymous"):
            load_access(Settings(data_dir=tmp_path, host=host))
        load_access(Settings(data_dir=tmp_path, host=host, allow_anonymous=True))
    for host in ("127.0.0.1", "127.8.8.8", "::1", "localhost"):
        load_access(Settings(data_dir=tmp_path, host=host))
    add_key(tmp_path / "keys.json", "alice", "alice", KeyRole.READ, 0.0)
    load_access(Settings(data_dir=tmp_path, host="0.0.0.0"))


# Salts and principals


def test_a_salt_depends_on_the_tenant_and_on_the_servers_key(tmp_path: Path) -> None:
    first, second = access_of(tmp_path, salt_key=b"1" * 32), access_of(tmp_path, salt_key=b"2" * 32)
    alice = first.tenant("Bearer alice-key-1")
    other = first.tenant("bearer  alice-key-2 ")
    assert (alice.name, alice.cache_salt) == (other.name, other.cache_salt)
    assert alice.cache_salt != first.tenant("Bearer bob-key-1").cache_salt
    assert alice.cache_salt != second.tenant("Bearer alice-key-1").cache_salt


def test_a_principal_is_the_keys_name_or_nothing_that_a_guess_can_be_held_against(tmp_path: Path) -> None:
    import hashlib

    first, second = access_of(tmp_path, salt_key=b"1" * 32), access_of(tmp_path, salt_key=b"2" * 32)
    principal = first.tenant("Bearer alice-key-1").principal
    assert principal != first.tenant("Bearer alice-key-2").principal
    assert principal != second.tenant("Bearer alice-key-1").principal, (
        "without the salt key a guess cannot be tested"
    )
    assert not hashlib.sha256(b"alice-key-1").hexdigest().startswith(principal.removeprefix("key "))
    named = access_of(
        tmp_path, {"keys": [{"name": "ci", "tenant": "acme", "role": "ask", "key": "alice-key-1"}]}
    )
    assert named.tenant("Bearer alice-key-1").principal == "key ci"


def test_without_keys_every_caller_is_the_default_tenants_administrator() -> None:
    assert Access(None, SALT_KEY).tenant("") == Access(None, SALT_KEY).tenant("Bearer anything")
    assert Access(None, SALT_KEY).tenant("").role is KeyRole.ADMIN


@pytest.mark.parametrize(
    "authorization",
    ["", "Bearer", "Bearer ", "alice-key-1", "Basic alice-key-1", "Bearer alice-key-3", "Bearer alice"],
)
def test_with_keys_anything_but_a_key_is_refused(tmp_path: Path, authorization: str) -> None:
    with pytest.raises(Unauthenticated):
        access_of(tmp_path).tenant(authorization)


def test_credentials_for_different_purposes_differ_and_no_tenants_salt_is_one() -> None:
    derived = [
        credentials.tenant_salt(SALT_KEY, "default"),
        credentials.worker_credential(SALT_KEY),
        credentials.operator_credential(SALT_KEY),
        credentials.anonymous_principal(SALT_KEY, "default"),
    ]
    assert len(set(derived)) == len(derived)


# Signals


@pytest.mark.timeout(120)
async def test_a_running_gateway_follows_its_files_of_keys_and_ends_nothing(
    tmp_path: Path, model_dir: Path, own_redis_server: object
) -> None:
    keys = tmp_path / "data" / "keys.json"
    key = add_key(keys, "alice", "alice", KeyRole.READ, 0.0)
    tokens, jwks_file = token_settings(tmp_path, "ES256-a"), tmp_path / "jwks.json"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MEMSERVE_")}
    log = tmp_path / "gateway.log"
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: ASYNC220
            [sys.executable, "-m", "memserve", "gateway"],
            env={
                **environment,
                "MEMSERVE_DATA_DIR": str(tmp_path / "data"),
                "MEMSERVE_MODEL": str(model_dir),
                "MEMSERVE_REDIS_URL": own_redis_server.url,  # type: ignore[attr-defined]
                "MEMSERVE_PORT": "0",
                "MEMSERVE_METRICS": "false",
                "MEMSERVE_HTTP": "false",
                **{f"MEMSERVE_{name.upper()}": value for name, value in tokens.items()},
            },
            stdout=output,
            stderr=output,
        )
    try:
        await until(lambda: "serving on" in log.read_text(encoding="utf-8") or process.poll() is not None)
        port = log.read_text(encoding="utf-8").partition("serving on 127.0.0.1:")[2].partition(",")[0]
        async with AsyncClient(f"127.0.0.1:{port}", key) as client:
            await client.status()
            keys.write_text("broken", encoding="utf-8")
            process.send_signal(signal.SIGHUP)
            await until(lambda: "stay as they were" in log.read_text(encoding="utf-8"))
            await client.status()
            keys.write_text('{"keys": []}', encoding="utf-8")
            process.send_signal(signal.SIGHUP)

            async def refused() -> bool:
                try:
                    await client.status()
                except CallFailed as failed:
                    return failed.code is grpc.StatusCode.UNAUTHENTICATED
                return False

            await eventually(refused)
        jwks_file.write_bytes(jwks("ES256-b"))
        async with AsyncClient(f"127.0.0.1:{port}", token("ES256-b")) as client:

            async def taken() -> bool:
                return bool(await client.status())

            await eventually(taken)
        assert process.poll() is None
    finally:
        process.terminate()
        await asyncio.to_thread(process.wait, 30)
