"""What a tenant with a valid key does: floods, floods of the audit, odd values, cancelled calls, text that is
code to somebody.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import redis

from loadtests.safety.attack.world import Attack, World, refusal_of, run_memserve
from memserve.client import CallFailed, Client
from memserve.demo import ADAPTERS_DIR
from memserve.domain import KeyRole, Sampling
from memserve.registry.leases import WORKERS, lease_key

BIG_PROMPT_BYTES = 3_900_000
NAMESPACES = 800
HOSTILE = "[/INST][bold]x[/bold]\x1b]0;owned\x07\x1b[2J\r{{7*7}}\u202e\x00"


def big_prompts(world: World) -> tuple[str, bool]:
    text = "a b " * (BIG_PROMPT_BYTES // 4)
    with ThreadPoolExecutor(6) as threads, world.client(KeyRole.ASK) as noisy, world.other() as quiet:
        alone_s = _timed(lambda: quiet.search(["none"], "x"))
        floods = [threads.submit(refusal_of, lambda: noisy.generate(text)) for _ in range(6)]
        beside_s = max(_timed(lambda: quiet.search(["none"], "x")) for _ in range(20))
        codes = {flood.result().name for flood in floods}
    held = codes == {"INVALID_ARGUMENT"} and beside_s < 2.0
    return (
        f"six prompts of 3.9 MB: {', '.join(codes)}; another tenant's search {alone_s * 1000:.0f} ms alone, "
        f"{beside_s * 1000:.0f} ms beside",
        held,
    )


def many_namespaces(world: World) -> tuple[str, bool]:
    with world.client(KeyRole.WRITE) as writer, ThreadPoolExecutor(8) as threads:
        codes = Counter(
            threads.map(
                lambda number: _patiently(lambda: writer.remember(f"n{number}", "one memory")),
                range(NAMESPACES),
            )
        )
        began_s = time.monotonic()
        listed = len(writer.namespaces())
        listed_s = time.monotonic() - began_s
    gateway = world.stack.gateway_process
    assert gateway is not None
    gateway.kill()
    began_s = time.monotonic()
    while time.monotonic() - began_s < 90:
        with (
            contextlib.suppress(CallFailed),
            Client(world.stack.address, world.keys[KeyRole.READ], 5.0) as reader,
        ):
            if any(worker.ready for worker in reader.status().workers):
                break
        time.sleep(0.2)
    ready_s = time.monotonic() - began_s
    return (
        f"{codes[True]} of {NAMESPACES} namespaces; {listed} listed in {listed_s:.2f} s; a killed "
        f"gateway is back in {ready_s:.1f} s",
        (ready_s < 60 and listed_s < 5 and codes[True] == NAMESPACES and listed >= NAMESPACES),
    )


def odd_leases(world: World) -> tuple[str, bool]:
    with redis.Redis.from_url(world.settings.redis, decode_responses=True) as registry:
        known = next(
            json.loads(lease)
            for name in registry.smembers(WORKERS)
            if (lease := registry.get(lease_key(name)))
        )
        odd: dict[str, Any] = {
            "w-newer": json.dumps(
                {
                    **known,
                    "worker_id": "w-newer",
                    "address": "127.0.0.1:1",
                    "field_of_a_newer_version": {"a": [1]},
                }
            ),
            "w-short": json.dumps({"worker_id": "w-short"}),
            "w-not-json": "{",
            "w-list": "[1, 2]",
            "w-nonsense": json.dumps(
                {**known, "worker_id": "w-nonsense", "address": "no address at all", "block_tokens": "many"}
            ),
        }
        try:
            for name, lease in odd.items():
                registry.set(lease_key(name), lease, px=60_000)
                registry.sadd(WORKERS, name)
            time.sleep(2.0)
            with world.client(KeyRole.ASK) as client:
                answered = refusal_of(lambda: client.generate("Hello."))
                ready = [worker.worker_id for worker in client.status().workers if worker.ready]
        finally:
            for name in odd:
                registry.srem(WORKERS, name)
                registry.delete(lease_key(name))
        time.sleep(1.0)
        with world.client(KeyRole.ASK) as client:
            after = {worker.worker_id for worker in client.status().workers}
    held = answered is grpc.StatusCode.OK and known["worker_id"] in ready and not after & set(odd)
    return (
        f"{len(odd)} leases of newer and broken workers: answers {answered.name}, "
        f"discovery {'goes on' if not after & set(odd) else 'ended'}",
        held,
    )


def flood_the_audit(world: World) -> tuple[str, bool]:
    with world.client(KeyRole.WRITE) as writer:
        version = writer.modules.publish("flooded", ADAPTERS_DIR / "harbour")
        # Only what has passed its gate may have all of an alias's traffic.
        writer.modules.promote("flooded", version.version)
        codes: Counter[str] = Counter()

        def change(number: int) -> None:
            codes.update(
                [
                    refusal_of(
                        lambda: writer.modules.split(
                            "flooded", {version.version: 1.0}, alias=f"a{number % 50}"
                        )
                    ).name
                ]
            )

        began_s = time.monotonic()
        with ThreadPoolExecutor(8) as threads:
            while time.monotonic() - began_s < 10:
                list(threads.map(change, range(64)))
        events = refusal_of(lambda: list(writer.modules.audit()))
    held = events is grpc.StatusCode.OK and codes["RESOURCE_EXHAUSTED"] > 0
    return f"changes in 10 s: {dict(codes)}; the audit afterwards: {events.name}", held


def untrue_rules(world: World) -> tuple[str, bool]:
    said = {}
    with world.client(KeyRole.ASK) as client:
        for name, sampling in (
            ("max_tokens 2^31-1", Sampling(max_tokens=2**31 - 1)),
            ("max_tokens -1", Sampling(max_tokens=-1)),
            ("min_tokens alone", Sampling(max_tokens=0, min_tokens=2)),
        ):
            try:
                client.generate("Hello.", sampling=sampling)
                said[name] = "OK"
            except CallFailed as failed:
                said[name] = failed.detail
    held = (
        "positive" not in said["max_tokens 2^31-1"]
        and said["max_tokens -1"] != "OK"
        and said["min_tokens alone"] == "OK"
    )
    return "; ".join(f"{name}: {what[:70]}" for name, what in said.items()), held


def cancelled_calls(world: World) -> tuple[str, bool]:
    before = world.log_of("gateway").count("Traceback")
    with world.client(KeyRole.WRITE) as client:

        def cancel(number: int) -> None:
            with contextlib.suppress(CallFailed):
                stream = client.stream("Tell me of the harbour.", sampling=Sampling(max_tokens=64))
                for _ in range(number % 4):
                    next(iter(stream), None)
                stream.close()

        with ThreadPoolExecutor(8) as threads:
            list(threads.map(cancel, range(200)))
        hasty = Client(world.stack.address, world.keys[KeyRole.WRITE], 0.005)
        with hasty, ThreadPoolExecutor(8) as threads:
            list(
                threads.map(
                    lambda number: refusal_of(lambda: hasty.remember("hasty", f"text {number}")), range(200)
                )
            )
    time.sleep(1.0)
    tracebacks = world.log_of("gateway").count("Traceback") - before
    return f"400 calls cancelled or out of time: {tracebacks} tracebacks in the log", tracebacks == 0


def equal_content(world: World) -> tuple[str, bool]:
    def publish(_: int) -> str:
        with world.client(KeyRole.WRITE) as client:
            try:
                return str(client.modules.publish("equal", ADAPTERS_DIR / "observatory").version)
            except CallFailed as failed:
                return failed.code.name

    with ThreadPoolExecutor(8) as threads:
        results = Counter(threads.map(publish, range(8)))
    return f"eight publish equal content at once: {dict(results)}", len(results) == 1 and next(
        iter(results)
    ).isdigit()


def text_as_code(world: World) -> tuple[str, bool]:
    with world.client(KeyRole.WRITE) as client:
        code = refusal_of(
            lambda: client.remember("text", HOSTILE.replace("\x00", ""), source="[red]s[/red]\x1b[31m")
        )
    environment = {
        **os.environ,
        "COLUMNS": "400",
        "MEMSERVE_ADDRESS": world.stack.address,
        "MEMSERVE_API_KEY": world.keys[KeyRole.WRITE],
    }
    environment = {
        name: value
        for name, value in environment.items()
        if name.startswith("MEMSERVE_A") or not name.startswith("MEMSERVE_")
    }
    shown, failed = "", 0
    for command in (
        ["search", "bold", "-n", "text"],
        ["search", "[/x]", "-n", "none[/]"],
        ["generate", "[/INST]", "--recall", "text"],
        ["status"],
    ):
        result = run_memserve([*command], environment)
        shown += result.stdout + result.stderr
        failed += "Traceback" in result.stderr
    controls = sorted(
        {hex(ord(letter)) for letter in shown if ord(letter) < 32 and letter not in "\n\t"}
        | ({"0x202e"} if "\u202e" in shown else set())
    )
    kept = "[bold]x[/bold]" in shown or code is not grpc.StatusCode.OK
    logged = [part for part in ("gateway", "workers") if "\x1b]0;owned" in world.log_of(part)]
    held = not failed and not controls and kept and not logged
    return (
        f"stored as {code.name}; {failed} tracebacks, control characters {controls or 'none'}, "
        f"markup {'as text' if kept else 'eaten'}",
        held,
    )


ATTACKS = (
    Attack("11", "six prompts of 3.9 MB beside another tenant's call", big_prompts),
    Attack(
        "9", f"{NAMESPACES} namespaces of one memory, then kill -9 of the gateway", many_namespaces, slow=True
    ),
    Attack("10", "leases of a newer version, and broken ones", odd_leases),
    Attack("12", "flood the audit, then read it", flood_the_audit, slow=True),
    Attack("15", "values whose refusal was untrue", untrue_rules),
    Attack("15", "cancel 400 calls and look at the log", cancelled_calls),
    Attack("15", "eight clients publish equal content", equal_content),
    Attack("15", "text that is markup, escapes or a template", text_as_code),
)


def _timed(call: Any) -> float:
    began_s = time.monotonic()
    refusal_of(call)
    return time.monotonic() - began_s


def _patiently(call: Any) -> bool:
    """Try again while a quota asks to."""
    deadline_s = time.monotonic() + 120
    while True:
        code = refusal_of(call)
        if code is grpc.StatusCode.OK:
            return True
        if code is not grpc.StatusCode.RESOURCE_EXHAUSTED or time.monotonic() > deadline_s:
            return False
        time.sleep(0.5)
