"""What is done to Redis and its entries."""

from __future__ import annotations

import random
import select
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import redis

from loadtests.harness.redis_server import PrivateRedis


class Proxy:
    """A TCP proxy to a unix socket that can delay, talk nonsense, or hang up."""

    def __init__(self, target: Path) -> None:
        self._target = str(target)
        self.delay_s = 0.0
        self.garbage = False
        self.before_load: Callable[[], object] = lambda: None
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            client, _ = self._listener.accept()
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, socket.socket(socket.AF_UNIX) as server, suppress(OSError):
            server.connect(self._target)
            while True:
                for readable in select.select([client, server], [], [])[0]:
                    content = readable.recv(1 << 20)
                    if not content:
                        return
                    if readable is client:
                        if b"GETEX" in content:
                            self.before_load()
                        server.sendall(content)
                        continue
                    if self.delay_s:
                        time.sleep(self.delay_s)
                    client.sendall(random.randbytes(len(content)) if self.garbage else content)


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that is done to Redis or its entries, and undone."""

    name: str
    on: Callable[[], object]
    off: Callable[[], object] = lambda: None
    new_prompts: bool = False
    """Ask prompts as well that are not in Redis and are to be stored."""


FULL = "full"
SETTLE_S = 5.0


def entries(client: redis.Redis) -> list[bytes]:
    return sorted(client.scan_iter("memserve:kv:*", count=1000))


def wait_for_chunks(client: redis.Redis, chunks: int) -> None:
    """Until Redis holds that number of entries, for SETTLE_S at most. The bars see it when it does not."""
    deadline_s = time.monotonic() + SETTLE_S
    while len(entries(client)) < chunks and time.monotonic() < deadline_s:
        time.sleep(0.05)


def rewrite(client: redis.Redis, change: Callable[[bytearray], bytes | bytearray]) -> None:
    """Change the value of every entry."""
    for key in entries(client):
        client.set(key, bytes(change(bytearray(cast(bytes, client.get(key))))), keepttl=True)


def flip(value: bytearray) -> bytearray:
    value[random.randrange(len(value))] ^= 1 << random.randrange(8)
    return value


def swap(client: redis.Redis) -> None:
    """Give every entry the value of the next."""
    keys = entries(client)
    values = client.mget(keys)
    for key, value in zip(keys, values[1:] + values[:1], strict=True):
        client.set(key, value or b"", keepttl=True)


def faults(server: PrivateRedis, proxy: Proxy, client: redis.Redis) -> list[Fault]:
    def kill() -> None:
        server.process.kill()
        server.process.wait()

    def restart_empty() -> None:
        kill()
        server.start()

    def restart() -> None:
        client.save()
        restart_empty()
        for dump in server.socket.parent.glob("*.rdb"):
            dump.unlink()

    def set_proxy(**values: object) -> Callable[[], object]:
        return lambda: vars(proxy).update(values)

    return [
        Fault("none", lambda: None),
        Fault(
            "paused (SIGSTOP)",
            server.pause,
            server.resume,
        ),
        Fault("slow: 20 ms an answer", set_proxy(delay_s=0.02), set_proxy(delay_s=0.0)),
        Fault("slow: 300 ms an answer", set_proxy(delay_s=0.3), set_proxy(delay_s=0.0)),
        Fault("talks nonsense", set_proxy(garbage=True), set_proxy(garbage=False)),
        # It evicts nothing: what is there is loaded, what is new is refused with OOM.
        Fault(
            FULL,
            lambda: client.config_set("maxmemory", 1),
            lambda: client.config_set("maxmemory", 0),
            new_prompts=True,
        ),
        Fault(
            "removed between look-up and load",
            set_proxy(before_load=client.flushdb),
            set_proxy(before_load=lambda: None),
        ),
        Fault("a bit flipped in every entry", lambda: rewrite(client, flip)),
        Fault(
            "every entry cut short",
            lambda: rewrite(client, lambda value: value[: random.randrange(len(value))]),
        ),
        Fault("entries swapped", lambda: swap(client)),
        Fault("killed", kill, server.start),
        Fault("restarted", restart),
        Fault("restarted empty", restart_empty),
    ]
