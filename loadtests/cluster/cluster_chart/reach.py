"""Who reaches what: every wire of the release tried for real, those allowed and those forbidden."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from loadtests.cluster.kubelet.pod import RunningPod

TRY_S = 1.5

_TRIES = """
import concurrent.futures, socket, sys
def attempt(place):
    try:
        socket.create_connection(place, {try_s}).close()
        return "open"
    except ConnectionRefusedError:
        return "refused"
    except OSError:
        return "nothing"
places = {places!r}
with concurrent.futures.ThreadPoolExecutor(64) as pool:
    print(dict(zip(places, pool.map(attempt, places))))
"""


@dataclass(frozen=True)
class Wire:
    """A port of a part, and a part that calls it or must not. Parts are names of pods' groups."""

    caller: str
    part: str
    port: int
    allowed: bool


@dataclass(frozen=True)
class Try:
    """What became of a try."""

    wire: Wire
    answer: str
    """`open`, `refused` (a way, but nobody listens) or `nothing`."""

    @property
    def as_wanted(self) -> bool:
        return self.answer == "open" if self.wire.allowed else self.answer == "nothing"


GATEWAY_PORTS = (50051, 8000)
GATEWAY, WORKER, HEAD, REGISTRY, CACHE, MILVUS = "gateway", "worker", "head", "registry", "cache", "milvus"
CLIENT, STRANGER = "client", "stranger"


def wires(ray_ports: Sequence[int]) -> list[Wire]:
    """ray_ports: of a Ray node that other nodes call. Any other caller of a port is forbidden."""
    allowed = {
        *((CLIENT, GATEWAY, port) for port in GATEWAY_PORTS),
        (GATEWAY, WORKER, 50061),
        *((part, store, 6379) for part in (GATEWAY, WORKER, HEAD) for store in (REGISTRY, CACHE)),
        (GATEWAY, MILVUS, 19530),
        (WORKER, HEAD, 6379),
        *((caller, part, port) for caller, part in ((WORKER, HEAD), (HEAD, WORKER)) for port in ray_ports),
        # No policy of the release selects these two.
        (STRANGER, MILVUS, 19530),
        (CLIENT, MILVUS, 19530),
    }
    ports = {
        GATEWAY: (*GATEWAY_PORTS, 50052, 9464),
        WORKER: (50061, 50062, 9465, *ray_ports),
        HEAD: (6379, 50062, *ray_ports),
        REGISTRY: (6379,),
        CACHE: (6379,),
        MILVUS: (19530,),
    }
    callers = (CLIENT, STRANGER, GATEWAY, WORKER, HEAD, REGISTRY)
    return [
        Wire(caller, part, port, (caller, part, port) in allowed)
        for caller in callers
        for part, numbers in ports.items()
        for port in numbers
        if caller != part
    ]


def tried(all_wires: Iterable[Wire], parts: Mapping[str, RunningPod]) -> list[Try]:
    """Try every wire between the parts that there are, from the caller's own network namespace."""
    tries = []
    for caller, pod in parts.items():
        own = [wire for wire in all_wires if wire.caller == caller and wire.part in parts]
        places = [(parts[wire.part].address, wire.port) for wire in own]
        answers = _answers(pod, places)
        tries += [Try(wire, answers[place]) for wire, place in zip(own, places, strict=True)]
    return tries


def _answers(pod: RunningPod, places: Sequence[tuple[str, int]]) -> dict[tuple[str, int], str]:
    script = _TRIES.format(try_s=TRY_S, places=list(places))
    shown = subprocess.run(
        pod.host.command([sys.executable, "-c", script]),
        check=True,
        capture_output=True,
        encoding="utf-8",
        timeout=120,
    ).stdout
    answers: dict[tuple[str, int], str] = ast.literal_eval(shown)
    return answers
