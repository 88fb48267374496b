"""`memserve up` as a user runs it: start, stop, start again; and the ways in which it does not start."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from loadtests.harness.up import is_engine
from memserve.client import Client, wait_until_ready
from memserve.config import Settings
from memserve.demo import demo_modules
from memserve.embedded import marked_processes, redis_executable
from memserve.embedded.story import ANSWER, long_prefix
from memserve.processes.ports import taken_ports
from memserve.registry.leases import WORKERS
from tests.stack.fixtures import eventually

pytestmark = [pytest.mark.stack, pytest.mark.timeout(600)]

CHUNK_TOKENS = 64  # of the bundled model: two blocks


@contextlib.contextmanager
def up(folder: Path, stop_with: signal.Signals, workers: int = 1) -> Iterator[Client]:
    """A client of one that runs while inside.

    workers: that are ready when it is given. 0: it is given while the worker starts.
    """
    command = [sys.executable, "-m", "memserve", "up", "--workers", "1", "--data-dir", str(folder)]
    process = subprocess.Popen(
        [*command, "--port", "0", "--http-port", "0", "--metrics-port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        # Also where these tests run under nohup.
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
        encoding="utf-8",
    )
    try:
        deadline_s = time.monotonic() + 240
        while (ports := taken_ports(folder, process.pid)) is None or not wait_until_ready(
            f"127.0.0.1:{ports['port']}", 1.0, workers
        ):
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline_s
            time.sleep(0.1)
        with Client(f"127.0.0.1:{ports['port']}") as client:
            yield client
        process.send_signal(stop_with)
        output, _ = process.communicate(timeout=90)
        assert process.returncode == (-signal.SIGKILL if stop_with is signal.SIGKILL else 0), output
        assert "Redis" in output
        assert "Traceback" not in output
    finally:
        process.kill()
        process.wait()
        if stop_with is not signal.SIGKILL:
            for left in marked_processes(folder):
                left.kill()
        if process.stdout is not None:
            process.stdout.close()  # an open pipe would fail a later test


def test_however_it_ends_it_leaves_no_process_and_a_new_start_finds_the_data(tmp_path: Path) -> None:
    # A terminal that is closed.
    with up(tmp_path, signal.SIGHUP) as client:
        memory = client.remember("notes", "The code of Alder station is 4071.").memory
        assert memory is not None
        eventually(
            lambda: sum(bool(module.aliases) for module in client.modules.all()) == len(demo_modules()),
            timeout_s=180,
        )
        modules = client.modules.all()
        prefix = long_prefix(700)
        cold = client.generate(prefix.messages, sampling=ANSWER)
        assert cold.usage.cached.total == 0
        # The engine stands back for the gateway on the processor, and so does whatever it starts.
        (engine,) = [process for process in marked_processes(tmp_path) if is_engine(process)]
        assert engine.nice() == Settings().worker_nice
        autogroup = Path(f"/proc/{engine.pid}/autogroup")
        assert not autogroup.exists() or autogroup.read_text(encoding="ascii").split()[-1] == str(
            Settings().worker_nice
        )
        with redis.Redis(unix_socket_path=str(tmp_path / "cache" / "redis.sock")) as cache:
            eventually(
                lambda: int(cache.dbsize()) >= 0.98 * (cold.usage.prompt_tokens // CHUNK_TOKENS), timeout_s=20
            )
    assert list(marked_processes(tmp_path)) == []
    assert left_in_shared_memory(tmp_path) == []
    assert leases_kept_in(tmp_path) == set()
    with up(tmp_path, signal.SIGKILL) as client:
        assert client.get_memory("notes", memory.memory_id) == memory
        assert client.modules.all() == modules
        again = client.generate(prefix.messages, sampling=ANSWER)
        assert again.usage.cached.redis >= 0.95 * again.usage.prompt_tokens
        assert again.token_ids == cold.token_ids
        late = client.remember("notes", "The code of Birch station is 1122.").memory
        assert late is not None
    eventually(lambda: list(marked_processes(tmp_path)) == [], timeout_s=10)
    # Ctrl-C while it starts.
    with up(tmp_path, signal.SIGINT, workers=0) as client:
        assert client.get_memory("notes", late.memory_id) == late
        assert client.status(workers_only=True).workers == ()
    assert list(marked_processes(tmp_path)) == []


def leases_kept_in(folder: Path) -> set[bytes]:
    """Start the registry's redis-server alone and look."""
    server = subprocess.Popen([redis_executable(), str(folder / "registry" / "redis.conf")])
    try:
        with redis.Redis(unix_socket_path=str(folder / "registry" / "redis.sock")) as client:
            deadline_s = time.monotonic() + 10
            while True:
                try:
                    return set(client.smembers(WORKERS)) | set(client.scan_iter("memserve:worker:*"))
                except redis.RedisError:
                    assert time.monotonic() < deadline_s
                    time.sleep(0.05)
    finally:
        server.terminate()
        server.wait(10)


def left_in_shared_memory(folder: Path) -> list[Path]:
    """The engines' host regions that were made after this memserve was started."""
    begun_s = (folder / "lock").stat().st_ctime
    return [path for path in Path("/dev/shm").glob("vllm_offload_*") if path.stat().st_ctime > begun_s]


def refused(folder: Path, *flags: str, **environment: str) -> str:
    """Run `memserve up`, which must refuse; returns its one line."""
    done = subprocess.run(
        [sys.executable, "-m", "memserve", "up", "--data-dir", str(folder), *flags],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **environment},
        check=False,
        encoding="utf-8",
    )
    assert done.returncode == 1, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("memserve:")]
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert list(marked_processes(folder)) == []
    return lines[0]


def test_a_port_in_use_is_refused_by_number(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"port {port} on 127.0.0.1 is in use" in refused(tmp_path, "--port", str(port))


def test_a_missing_model_is_refused_by_name(tmp_path: Path) -> None:
    assert "/nowhere/model" in refused(tmp_path, "--model", "/nowhere/model")


def test_too_little_memory_is_refused_with_the_amounts(tmp_path: Path) -> None:
    line = refused(tmp_path, MEMSERVE_KV_DEVICE_BYTES=str(1 << 46))
    assert "GiB are free" in line


def test_an_unknown_setting_is_refused_with_the_nearest_one(tmp_path: Path) -> None:
    assert "did you mean MEMSERVE_KV_TTL_S?" in refused(tmp_path, MEMSERVE_KV_TTLS="3")


def test_a_data_directory_in_use_is_refused(tmp_path: Path) -> None:
    import fcntl

    with (tmp_path / "lock").open("w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "another memserve runs on" in refused(tmp_path)
