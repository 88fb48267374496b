"""Clients that ask without a pause, as the command of a pod. Each request that has ended is a line of JSON.

ADDRESS, HTTP_URL, API_KEY and WORKERS (0: no answers are asked for) come from the environment.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import threading
import time
import urllib.request
from collections.abc import Callable

from memserve.client import Client
from memserve.domain import Sampling

PAUSE_S = 0.1
TIMEOUT_S = 120.0
NAMESPACE = "chart"
CALLS_OF_A_CONNECTION = 50


def calls(has_workers: bool) -> dict[str, Callable[[Client], object]]:
    """By kind of request."""
    numbers = itertools.count()
    kinds: dict[str, Callable[[Client], object]] = {
        "remember": lambda client: client.remember(NAMESPACE, f"The code of lamp {next(numbers)} is 4071."),
        "search": lambda client: client.search([NAMESPACE], "lamp"),
        "list modules": lambda client: client.modules.all(),
        "over HTTP": lambda client: _ask_http(),
    }
    if has_workers:
        kinds["answer"] = lambda client: client.generate("Hello.", sampling=Sampling(max_tokens=16))
        # Longer than the gateways' drain delay is where the machine is slow; it must finish all the same.
        kinds["long answer"] = lambda client: client.generate(
            "Tell me about lamps.", sampling=Sampling(max_tokens=100, min_tokens=100)
        )
    return kinds


def _ask_http() -> None:
    """A connection of its own for each request."""
    request = urllib.request.Request(
        f"{os.environ['HTTP_URL']}/v1/models", headers={"authorization": f"Bearer {os.environ['API_KEY']}"}
    )
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as reply:
        reply.read()


def ask(kind: str, call: Callable[[Client], object]) -> None:
    """For ever. A connection is used for many requests, and then replaced; at once after a failure."""
    while True:
        with Client(os.environ["ADDRESS"], os.environ["API_KEY"], timeout_s=TIMEOUT_S) as client:
            for _ in range(CALLS_OF_A_CONNECTION):
                started_s, failure = time.monotonic(), ""
                try:
                    call(client)
                except Exception as error:
                    failure = f"{type(error).__name__}: {error}"
                line = {"kind": kind, "started_s": started_s, "ended_s": time.monotonic(), "failure": failure}
                sys.stdout.write(json.dumps(line) + "\n")
                sys.stdout.flush()
                if failure:
                    break
                time.sleep(PAUSE_S)


if __name__ == "__main__":
    for kind, call in calls(os.environ["WORKERS"] != "0").items():
        threading.Thread(target=ask, args=(kind, call)).start()
