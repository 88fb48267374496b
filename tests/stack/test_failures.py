"""What breaks, and what then happens. These tests run last of the stack's: they kill its parts."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import grpc
import psutil
import pytest
import redis

from memserve.client import AsyncClient, CallFailed, Client
from memserve.domain import Module, Route, Sampling
from memserve.embedded import Stack, marked_processes
from memserve.embedded.story import ask_and_store, long_prefix
from memserve.errors import StartupError
from memserve.registry.leases import lease_key
from memserve.worker.fleet.fitting import check_memory
from tests.stack.fixtures import WORKERS, eventually
from tests.stack.modules import LOADED, adapter_files, places

pytestmark = [pytest.mark.stack, pytest.mark.timeout(600)]

STREAMS = 8
# Long enough to be under way when the worker dies.
LONG = Sampling(max_tokens=1200, min_tokens=1200)
SHORT = Sampling(max_tokens=8)


async def one_stream(
    client: AsyncClient, number: int, worker_id: str, started: asyncio.Semaphore
) -> tuple[str, grpc.StatusCode]:
    """Returns the worker that answered and how the stream ended."""
    worker = ""
    begun = False
    try:
        async for event in client.stream(
            f"Stream {number}: tell me all that you know.", sampling=LONG, worker_id=worker_id
        ):
            if isinstance(event, Route):
                worker = event.worker_id
            elif not begun:
                begun = True
                started.release()
    except CallFailed as failed:
        return worker, failed.code
    return worker, grpc.StatusCode.OK


def engine_of(replica: psutil.Process) -> psutil.Process:
    """vLLM's engine process: what the replica has started beside multiprocessing's helper.

    Not by its title: where the process's first environment variable was set anew, setproctitle does nothing.
    """
    below = {child.pid: " ".join(child.cmdline()) for child in replica.children(recursive=True)}
    engines = [pid for pid, command in below.items() if "resource_tracker" not in command]
    assert len(engines) == 1, f"not one engine among {below} of {replica}"
    return psutil.Process(engines[0])


@pytest.mark.parametrize("victim", ["the replica", "the engine"])
async def test_a_killed_worker_takes_only_its_streams_with_it_and_comes_back_by_itself(
    stack: Stack, client: Client, victim: str, tmp_path: Path
) -> None:
    """What is preloaded everywhere comes back with it."""
    name = f"kept-beside-{victim.removeprefix('the ')}"
    preloaded = client.modules.publish(name, adapter_files("harbour", tmp_path / "kept", 1.02))
    assert {entry.place for entry in client.modules.preload(preloaded.reference)} <= set(LOADED)
    async with AsyncClient(stack.address, timeout_s=120) as asking:
        started = asyncio.Semaphore(0)
        ready = [worker.worker_id for worker in client.status().workers if worker.ready]
        streams = [
            asyncio.create_task(one_stream(asking, number, ready[number % len(ready)], started))
            for number in range(STREAMS)
        ]
        for _ in range(STREAMS):
            await started.acquire()
        # What workers say of themselves is a heartbeat old, and one may have been killed by the test before.
        eventually(lambda: any(worker.running for worker in client.status().workers), timeout_s=30)
        worker = max(client.status().workers, key=lambda worker: worker.running)
        replica = psutil.Process(worker.pid)
        (replica if victim == "the replica" else engine_of(replica)).kill()
        await asyncio.sleep(1.0)
        following = await asking.generate("Hello.", sampling=SHORT)
        assert following.route.worker_id != worker.worker_id
        ended = await asyncio.gather(*streams)
    lost = [code for name, code in ended if name == worker.worker_id]
    kept = [code for name, code in ended if name != worker.worker_id]
    assert lost
    assert set(lost) == {grpc.StatusCode.UNAVAILABLE}
    assert kept
    assert set(kept) == {grpc.StatusCode.OK}
    gone = worker.worker_id
    eventually(
        lambda: (
            sum(worker.ready and worker.worker_id != gone for worker in client.status().workers) == WORKERS
        ),
        timeout_s=180,
    )
    eventually(lambda: len(places(client, preloaded)) == WORKERS, timeout_s=5)
    client.modules.unload(preloaded.reference)
    eventually(lambda: places(client, preloaded) == {}, timeout_s=5)
    client.modules.delete(name, preloaded.version)


async def answers_while(stack: Stack, act: Callable[[], None], requests: int) -> list[str]:
    """Ask `requests` times around `act`; returns how the calls that failed ended."""
    failed: list[str] = []
    async with AsyncClient(stack.address, timeout_s=60) as asking:

        async def ask(number: int) -> None:
            try:
                await asking.generate(
                    f"{os.getpid()} {act} request {number}. " * 30,
                    module="harbour" if number % 2 else "",
                    sampling=SHORT,
                )
            except CallFailed as failure:
                failed.append(str(failure))

        for begin in range(0, requests, 4):
            if begin == 8:
                act()
            await asyncio.gather(*(ask(begin + number) for number in range(4)))
    return failed


def hits_come_back(stack: Stack, client: Client, seed: int) -> bool:
    first, second = sorted(worker.worker_id for worker in client.status().workers)
    with redis.Redis.from_url(stack.settings.redis) as registry:
        if not registry.exists(lease_key(first)):
            return False  # the worker has yet to say again that it lives
    prefix = long_prefix(seed)
    ask_and_store(stack, client, [prefix], first)
    other = client.generate(prefix.messages, worker_id=second, sampling=SHORT)
    return other.usage.cached.total >= 0.95 * other.usage.prompt_tokens


def redis_servers(stack: Stack) -> list[subprocess.Popen[bytes]]:
    """Of the registry and of the cache."""
    assert stack.registry_process is not None
    assert stack.cache_process is not None
    return [stack.registry_process, stack.cache_process]


def modules_of(client: Client) -> list[Module] | None:
    """None while they cannot be had."""
    try:
        return list(client.modules.all())
    except CallFailed:
        return None


def test_every_process_is_known_by_its_mark_so_that_the_next_start_can_sweep_it(
    stack: Stack, client: Client
) -> None:
    assert stack.workers_process is not None
    assert stack.gateway_process is not None
    started = {server.pid for server in redis_servers(stack)} | {
        stack.workers_process.pid,
        stack.gateway_process.pid,
    }
    assert started <= {process.pid for process in marked_processes(stack.settings.data)}


async def test_every_request_succeeds_while_redis_hangs_and_hits_come_back_afterwards(
    stack: Stack, client: Client
) -> None:
    client.generate("Hello.", module="harbour", sampling=SHORT)
    servers = redis_servers(stack)

    def send(number: signal.Signals) -> None:
        for server in servers:
            server.send_signal(number)

    try:
        assert await answers_while(stack, lambda: send(signal.SIGSTOP), 32) == []
    finally:
        send(signal.SIGCONT)
    seeds = iter(range(400, 500))
    eventually(lambda: hits_come_back(stack, client, next(seeds)), timeout_s=60)


async def test_every_request_succeeds_without_redis_and_hits_come_back_when_it_is_started_again(
    stack: Stack, client: Client
) -> None:
    client.generate("Hello.", module="harbour", sampling=SHORT)
    modules = client.modules.all()
    before = redis_servers(stack)

    def kill() -> None:
        for server in before:
            server.kill()
            server.wait()

    assert await answers_while(stack, kill, 32) == []
    eventually(
        lambda: {server.pid for server in redis_servers(stack)}.isdisjoint(server.pid for server in before),
        timeout_s=30,
    )
    eventually(lambda: modules_of(client) == modules, timeout_s=30)
    seeds = iter(range(500, 600))
    eventually(lambda: hits_come_back(stack, client, next(seeds)), timeout_s=60)


def test_a_killed_gateway_is_started_again_with_all_that_was_acknowledged(
    stack: Stack, client: Client
) -> None:
    assert stack.gateway_process is not None
    memory = client.remember("durable", "The gate of Cedar station is 12.").memory
    assert memory is not None
    stack.gateway_process.kill()
    eventually(lambda: modules_of(client) is not None, timeout_s=90)
    assert client.get_memory("durable", memory.memory_id) == memory
    assert {"harbour", "observatory"} <= {module.name for module in client.modules.all()}


def has_room_for_another_generation(stack: Stack) -> bool:
    try:
        check_memory(stack.settings)
    except StartupError:
        return False
    return True


async def test_a_killed_gcs_costs_no_answer_and_others_take_the_workers_place(
    stack: Stack, client: Client
) -> None:
    """Ray ended all workers at once, 61 s after its GCS had gone unnoticed."""
    before = {worker.worker_id for worker in client.status().workers}
    room = has_room_for_another_generation(stack)
    [gcs] = [process for process in marked_processes(stack.settings.data) if process.name() == "gcs_server"]
    gcs.kill()
    failed: list[str] = []
    deadline_s = time.monotonic() + 300
    async with AsyncClient(stack.address, timeout_s=60) as asking:
        while True:
            try:
                await asking.generate("Hello.", sampling=SHORT)
            except CallFailed as failure:
                failed.append(str(failure))
            ready = {
                worker.worker_id
                for worker in (await asking.status(workers_only=True)).workers
                if worker.ready
            }
            if len(ready) == WORKERS and not ready & before:
                break
            assert time.monotonic() < deadline_s, f"{ready} of {before} serve still"
            await asyncio.sleep(0.1)
    assert not room or failed == [], "without room for both the old generation is ended first"


def test_a_killed_controller_of_serve_costs_no_worker(stack: Stack, client: Client) -> None:
    """A new controller asks each worker for the file of its log, and stopped all: vLLM had closed it."""

    def controllers() -> list[psutil.Process]:
        return [
            process
            for process in marked_processes(stack.settings.data)
            if "ServeController" in " ".join(process.cmdline())
        ]

    # A generation of workers that the test before has damaged may still be leaving.
    eventually(lambda: len(controllers()) == 1 and len(client.status().workers) == WORKERS, timeout_s=60)
    before = {worker.worker_id for worker in client.status().workers}
    [killed] = controllers()
    killed.kill()
    eventually(lambda: [process.pid for process in controllers()] not in ([], [killed.pid]), timeout_s=60)
    # It looks at the workers as it begins; what it stops ends within a second.
    for _ in range(20):
        client.generate("Hello.", sampling=SHORT)
        time.sleep(0.25)
    assert {worker.worker_id for worker in client.status().workers if worker.ready} == before


def test_restarting_the_workers_puts_others_in_their_place(stack: Stack, client: Client) -> None:
    before = {worker.worker_id for worker in client.status().workers}
    stack.restart_workers()
    after = {worker.worker_id for worker in client.status().workers}
    assert len(after) == WORKERS, "the ones before are out of sight"
    assert not after & before
    assert client.generate("Hello.", sampling=SHORT).route.worker_id in after
