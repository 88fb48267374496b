"""Checks at start that the cache's servers can hold KV."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

from redis import Redis
from redis.backoff import NoBackoff
from redis.crc import REDIS_CLUSTER_HASH_SLOTS
from redis.exceptions import (
    AuthenticationError,
    AuthenticationWrongNumberOfArgsError,
    InvalidResponse,
    NoPermissionError,
    ResponseError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry
from redis.sentinel import MasterNotFoundError

from memserve.errors import StartupError
from memserve.kv.transport.topology import LEARNING_FAILS, ClusterNodes, SentinelMaster
from memserve.kv.transport.url import Address, CacheUrl, Deployment, parse_cache_url

T = TypeVar("T")
# This version has GETEX, which slides a time to live with a read.
OLDEST_REDIS: Final = (6, 2)


def check_cache_servers(url: str, *, timeout_s: float = 5.0) -> None:
    """Connect to every server of the cache at start, and refuse one that would not work later. Blocks.

    Start is the time to be strict. Of the nodes or Sentinels that the URL names, one must answer. Then every
    master of the cluster must answer, or the master that the Sentinels name. A failure of these servers later
    costs hits, and no request.

    timeout_s: for each connection and each answer.
    Raises StartupError that names the server and says what to do. The message shows no password.
    """
    try:
        cache = parse_cache_url(url)
    except ValueError as error:
        raise StartupError(f"cache_redis_url: {error}") from None
    masters = frozenset(cache.addresses)
    if cache.deployment is Deployment.CLUSTER:
        masters = _cluster_masters(cache, timeout_s)
    elif cache.deployment is Deployment.SENTINEL:
        masters = _sentinel_masters(cache, timeout_s)
    for address in sorted(masters):
        arguments = cache.arguments(address)
        fault = info_fault(_asked(arguments, address, timeout_s, _ping_and_info), cache.deployment)
        if fault is not None:
            raise StartupError(f"cache_redis_url: the server at {_named(address)} {fault}")
        _asked(arguments, address, timeout_s, _run_script)


def info_fault(info: Mapping[str, Any], deployment: Deployment) -> str | None:
    """What keeps a server from holding a cache's values, and what to do about it. None: nothing.

    info: the reply to INFO, as redis-py parses it. Valkey gives redis_version 7.2.4, and may have server_mode
    where Redis has redis_mode.
    """
    version = str(info.get("redis_version", ""))
    numbers = tuple(int(number) for number in version.split(".")[:2] if number.isdecimal())
    mode = info.get("redis_mode", info.get("server_mode", "standalone"))
    if not numbers and "valkey_version" not in info:
        return "tells no redis_version in INFO; memserve needs Redis from 6.2 on, or Valkey"
    if numbers < OLDEST_REDIS and "valkey_version" not in info:
        return f"is Redis {version}; memserve needs 6.2 or later (GETEX), or Valkey"
    if mode == "sentinel":
        return "is a Sentinel, and holds no values; use redis+sentinel://host:port,host:port/<service name>"
    clustered = mode == "cluster" or info.get("cluster_enabled") == 1
    if clustered and deployment is not Deployment.CLUSTER:
        return "is a node of a Redis Cluster; use redis+cluster://host:port,host:port"
    if deployment is Deployment.CLUSTER and not clustered:
        return "runs without cluster mode; use redis://host:port"
    if info.get("role") == "slave" and info.get("slave_read_only", 1) == 1:
        return (
            "is a read-only replica; give the address of its master, or use redis+sentinel:// to have it "
            "found"
        )
    policy = str(info.get("maxmemory_policy", ""))
    if int(info.get("maxmemory", 0)) > 0 and policy.startswith("allkeys-"):
        return (
            f"evicts any key when it is full, the cache's ledger too (maxmemory-policy {policy}); set the "
            "policy to volatile-lru"
        )
    return None


def _cluster_masters(cache: CacheUrl, timeout_s: float) -> frozenset[Address]:
    unreachable: list[str] = []
    for address in cache.addresses:
        try:
            info = _asked(cache.arguments(address), address, timeout_s, _ping_and_info)
        except StartupError as error:
            unreachable.append(str(error))
            continue
        fault = info_fault({**info, "role": "master"}, cache.deployment)  # any node knows the others
        if fault is not None:
            raise StartupError(f"cache_redis_url: the server at {_named(address)} {fault}")
    if len(unreachable) == len(cache.addresses):
        raise StartupError("; ".join(unreachable))
    nodes = ClusterNodes(cache, timeout_s)
    try:
        masters = nodes.learn()
    except LEARNING_FAILS as error:
        raise StartupError(
            f"cache_redis_url: the cluster does not tell its slots ({error}); look at `redis-cli --cluster "
            "check`"
        ) from None
    finally:
        nodes.close()
    if nodes.covered_slots < REDIS_CLUSTER_HASH_SLOTS:
        missing = REDIS_CLUSTER_HASH_SLOTS - nodes.covered_slots
        raise StartupError(
            f"cache_redis_url: {missing} slots of the cluster are on no master; repair it with `redis-cli "
            "--cluster fix`"
        )
    return masters


def _sentinel_masters(cache: CacheUrl, timeout_s: float) -> frozenset[Address]:
    unreachable: list[str] = []
    for address in cache.addresses:
        host, port = address
        try:
            sentinel = {**cache.sentinel_options, "host": host, "port": port}
            info = _asked(sentinel, address, timeout_s, _ping_and_info)
        except StartupError as error:
            unreachable.append(str(error))
            continue
        if info.get("redis_mode", info.get("server_mode")) != "sentinel":
            raise StartupError(
                f"cache_redis_url: the server at {_named(address)} is no Sentinel; name the Sentinels "
                "(usually port 26379), or use redis:// for a server that holds values"
            )
    if len(unreachable) == len(cache.addresses):
        raise StartupError("; ".join(unreachable))
    master = SentinelMaster(cache, timeout_s)
    try:
        return master.learn()
    except MasterNotFoundError:
        raise StartupError(
            f"cache_redis_url: the Sentinels know no master of {cache.service!r} that is up; `redis-cli -p "
            "26379 SENTINEL MASTERS` lists what they know"
        ) from None
    except LEARNING_FAILS as error:
        raise StartupError(f"cache_redis_url: the Sentinels do not tell their master ({error})") from None
    finally:
        master.close()


def _ping_and_info(client: Redis) -> dict[str, Any]:
    client.ping()  # loads use it
    return dict(client.info())


def _run_script(client: Redis) -> None:
    """As the ledger's scripts do."""
    try:
        client.eval("return redis.call('TIME')", 0)
    except ResponseError as error:
        # What a script may not call is an error of the script.
        raise NoPermissionError(str(error)) from None


def _asked(arguments: Mapping[str, Any], address: Address, timeout_s: float, ask: Callable[[Redis], T]) -> T:
    """What one server answers. Raises StartupError."""
    where = f"cache_redis_url: the server at {_named(address)}"
    timeouts: dict[str, Any] = {"socket_timeout": timeout_s, "socket_connect_timeout": timeout_s}
    with Redis(**arguments, **timeouts, protocol=2, retry=Retry(NoBackoff(), 0)) as client:
        try:
            return ask(client)
        except (AuthenticationError, AuthenticationWrongNumberOfArgsError) as error:
            raise StartupError(f"{where} refuses the user or password, or wants one ({error})") from None
        except NoPermissionError:
            raise StartupError(
                f"{where} does not let this user run PING, INFO, TIME or scripts; allow +info, +time, "
                "+@read, +@write, +@connection and +@scripting"
            ) from None
        except (RedisConnectionError, RedisTimeoutError, OSError) as error:
            raise StartupError(
                f"{where} cannot be reached ({error}); start it, or correct the address"
            ) from None
        except (InvalidResponse, ResponseError) as error:
            raise StartupError(
                f"{where} does not speak as Redis does ({error}); memserve needs Redis or Valkey"
            ) from None


def _named(address: Address) -> str:
    host, port = address
    return f"{host}:{port}" if port else host
