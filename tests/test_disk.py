"""A full disk: noticed before it is met, told by its role, survived by the registry, and never shown as a
path.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import redis
from pymilvus.exceptions import MilvusException

from memserve import errors
from memserve.api.entry import CHANGES
from memserve.api.facts import detail_of, fact_of
from memserve.disk import DATA_DISK, DiskWatch, free_share, says_full
from memserve.embedded.disk_guard import RegistryGuard
from memserve.memory.modules.blobs.places import answering as answering_of_blobs
from memserve.pb.v1 import activation_pb2, inference_pb2, memory_pb2, module_pb2, status_pb2
from memserve.registry.leases import Registry
from tests.kv.redis_server import RedisServer

# RPCs that only read, or whose changes are in no file of the server.
READS = {
    "Generate",
    "Explain",
    "ExplainAnswer",
    "Search",
    "GetMemory",
    "FollowLinks",
    "ReadPlaces",
    "ListMemories",
    "ExportMemories",
    "WatchMemories",
    "GetMemoryUsage",
    "Recall",
    "ListNamespaces",
    "GetStatus",
    "GetLadder",
    "LookupPrefix",
    "GetUsage",
    "GetUpload",
    "GetModule",
    "GetVersion",
    "GetResidency",
    "ListModules",
    "ListVersions",
    "ReadVersion",
    "ListAliasHistory",
    "ListAuditEvents",
    "ListConsolidations",
    "ListDistillations",
    "WatchModules",
}


def test_a_disk_is_short_when_less_is_free_than_is_held_back(tmp_path: Path) -> None:
    room = os.statvfs(tmp_path)
    assert free_share(tmp_path, 1) > 1
    assert free_share(tmp_path, 0) == float("inf")
    eighth = room.f_blocks * room.f_frsize / 8
    assert free_share(tmp_path, 1 << 60) == pytest.approx(room.f_bavail * room.f_frsize / eighth, rel=0.1)
    assert free_share(tmp_path / "nowhere", 1) == float("inf")


def test_errors_that_are_behind_each_other_have_an_end() -> None:
    """pymilvus raises a kept exception again: a gateway went round in it for ever."""
    first, second = OSError("one"), OSError("two")
    first.__context__, second.__cause__ = second, first
    assert not says_full(first)
    second.errno = errno.ENOSPC
    assert says_full(first)


def test_a_short_disk_is_told_by_its_role_with_a_time_to_wait(tmp_path: Path) -> None:
    watch = DiskWatch({DATA_DISK: tmp_path}, 1, room=lambda place, reserve: 0.5)
    assert not watch.has_room()
    with pytest.raises(errors.DiskFull, match=DATA_DISK) as full:
        watch.check()
    assert full.value.retry_after_s > 0
    assert str(tmp_path) not in str(full.value)
    DiskWatch({DATA_DISK: tmp_path}, 1, room=lambda place, reserve: 1.5).check()


def test_every_rpc_is_a_read_or_a_change() -> None:
    rpcs = {
        method.name
        for module in (activation_pb2, inference_pb2, memory_pb2, module_pb2, status_pb2)
        for service in module.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }
    assert rpcs == READS | CHANGES
    assert not READS & CHANGES


def deep(path: str) -> Exception:
    """What Milvus Lite's ENOSPC looks like when it has come through gRPC."""
    try:
        try:
            raise MilvusException(message=f"[Errno 28] No space left on device: '{path}'")
        except MilvusException as error:
            raise errors.VectorStoreUnavailable(str(error)) from error
    except errors.VectorStoreUnavailable as error:
        return error


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device", "/srv/memserve/staging/x"),
        OSError(errno.EDQUOT, "Disk quota exceeded", "/srv/memserve/staging/x"),
        deep("/srv/memserve/milvus.db/collections/x/wal/wal_data_000001.arrow"),
    ],
    ids=["disk", "quota", "milvus"],
)
def test_a_full_disk_is_the_same_fact_wherever_it_is_met(error: Exception) -> None:
    fact = fact_of(error)
    assert isinstance(fact, errors.DiskFull)
    assert "/srv" not in detail_of(fact)


def test_a_full_disk_of_the_module_store_is_the_same_fact() -> None:
    with pytest.raises(errors.BlobStoreUnavailable) as unavailable, answering_of_blobs():
        raise OSError(errno.ENOSPC, "No space left on device", "/srv/memserve/modules/x")
    assert isinstance(fact_of(unavailable.value), errors.DiskFull)


def test_a_text_of_the_caller_that_speaks_of_full_disks_is_none() -> None:
    quoted = errors.InvalidField("text", "must not contain 'No space left on device'")
    assert fact_of(quoted) is quoted


SERVER_ERRORS = [
    "Error 2 connecting to unix:///srv/memserve/registry/redis.sock. No such file or directory.",
    "Error 111 connecting to /srv/memserve/registry/redis.sock. Connection refused.",
    "[Errno 13] Permission denied: "
    "'/srv/memserve/milvus.db/collections/memserve_memories_v1/wal/wal_data_000002.arrow'",
    "<MilvusException: (code=1, message=[Errno 20] Not a directory: '/tmp/a b/c.db/LOCK')>",
    "failed to connect to all addresses; last error: UNKNOWN: unix:/run/memserve/.milvus-x1/socket: "
    "Connection refused",
    'File "/usr/lib/python3.11/site-packages/x.py", line 3: cannot map /dev/shm/vllm_offload_1',
    "open(/home/someone/.cache/huggingface/hub/models--x) failed",
    "path=/var/lib/memserve/staging/tenant/file.part:12",
]


@pytest.mark.parametrize("text", SERVER_ERRORS)
@pytest.mark.parametrize(
    "fact",
    [
        errors.RegistryUnavailable,
        errors.CacheUnavailable,
        errors.VectorStoreUnavailable,
        errors.VectorStoreDamaged,
        errors.BlobStoreUnavailable,
        errors.NoWorker,
        lambda text: errors.BlobDamaged("0" * 64, text),
        lambda text: errors.InvalidModule("weights", text),
    ],
)
def test_no_error_shows_a_path_of_the_server(fact: object, text: str) -> None:
    detail = detail_of(fact(text))  # type: ignore[operator]
    for word in (
        "/srv",
        "/tmp",
        "/run",
        "/usr",
        "/dev",
        "/home",
        "/var",
        "redis.sock",
        "milvus.db",
        ".cache",
        "staging",
    ):
        assert word not in detail


def test_what_is_no_path_stays_as_it_is() -> None:
    for text in (
        "fetch https://example.org/a/b?c=d",
        "module 'a/b' at 3/4",
        "org/model",
        "s3://bucket/key/x",
        "1 / 2",
        "and/or",
    ):
        assert text in detail_of(errors.BlobStoreUnavailable(text))


# The registry and its guard


@pytest.mark.asyncio
async def test_the_guard_has_the_registry_refuse_changes_and_keep_what_it_took(
    own_redis_server: RedisServer,
) -> None:
    own_redis_server.start_durably()
    room = [2.0]
    guard = RegistryGuard(own_redis_server.url, lambda: room[0], lambda line: None)
    client = own_redis_server.client
    client.set("before", "1")
    guard.step()
    client.set("still", "1")
    room[0] = 0.4
    guard.step()
    with pytest.raises(redis.ResponseError, match="NOREPLICAS"):
        client.set("refused", "1")
    registry = Registry(own_redis_server.url)
    with pytest.raises(errors.RegistryDiskFull):
        await registry.drop_lease("w1")
    await registry.ping()
    await registry.close()
    assert client.get("before") == b"1"
    own_redis_server.start_durably()  # killed while it refuses: the supervisor starts it as it was
    client = own_redis_server.client
    assert (client.get("before"), client.get("still"), client.get("refused")) == (b"1", b"1", None)
    guard.step()
    with pytest.raises(redis.ResponseError, match="NOREPLICAS"):
        client.set("refused", "1")
    room[0] = 0.6
    guard.step()
    with pytest.raises(redis.ResponseError, match="NOREPLICAS"):
        client.set("refused", "1")
    room[0] = 2.0
    guard.step()
    client.set("after", "1")
    own_redis_server.start_durably()
    client = own_redis_server.client
    assert [client.get(name) for name in ("before", "still", "refused", "after")] == [b"1", b"1", None, b"1"]


def test_a_registry_that_is_gone_is_not_the_guards_concern(own_redis_server: RedisServer) -> None:
    own_redis_server.stop()
    RegistryGuard(own_redis_server.url, lambda: 0.1, lambda line: None).step()
