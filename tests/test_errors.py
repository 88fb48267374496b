"""Every exception of memserve's crosses a process boundary whole: a pool that gets one it cannot read breaks,
or hangs.
"""

from __future__ import annotations

import copy
import importlib
import inspect
import pickle
import pkgutil
import socket
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import grpc
import pytest

import memserve
from memserve.client import CallFailed, Client, RefusalReason
from memserve.memory.texts.local.schema import RebuildReason

# A value for each type that a constructor takes.
VALUES: dict[str, Any] = {
    "str": "text",
    "int": 7,
    "float": 1.5,
    "bool": True,
    "str | None": None,
    "float | None": 2.5,
    "grpc.StatusCode": grpc.StatusCode.NOT_FOUND,
    "RefusalReason": RefusalReason.LATE,
    "RefusalReason | None": RefusalReason.LATE,
    "RebuildReason": RebuildReason.DAMAGED,
}
# They start things, or need what a gateway has not.
LEFT_OUT = ("memserve.__main__", "memserve.processes.reaper", "memserve.processes.tether")


def exceptions() -> Iterator[type[BaseException]]:
    seen = set()
    for module in pkgutil.walk_packages(memserve.__path__, "memserve."):
        if module.name.startswith(LEFT_OUT) or ".worker." in module.name or ".pb." in module.name:
            continue
        for value in vars(importlib.import_module(module.name)).values():
            if (
                inspect.isclass(value)
                and issubclass(value, BaseException)
                and value.__module__.startswith("memserve.")
            ):
                seen.add(value)
    yield from sorted(seen, key=lambda kind: kind.__qualname__)


def instance_of(kind: type[BaseException]) -> BaseException:
    if "__init__" not in {
        name for parent in kind.__mro__ if parent.__module__.startswith("memserve.") for name in vars(parent)
    }:
        return kind("text")
    parameters = list(inspect.signature(kind).parameters.values())
    return kind(*(VALUES[str(parameter.annotation)] for parameter in parameters))


@pytest.mark.parametrize("kind", list(exceptions()), ids=lambda kind: kind.__qualname__)
def test_an_exception_comes_out_of_pickle_as_it_went_in(kind: type[BaseException]) -> None:
    error = instance_of(kind)
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(again) is kind
        assert str(again) == str(error)
        assert vars(again) == vars(error)


def test_the_clients_refusal_is_among_them() -> None:
    assert CallFailed in set(exceptions())
    assert len(list(exceptions())) > 40


def test_a_refusal_comes_out_of_a_process_pool(silent_address: str) -> None:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        with pytest.raises(CallFailed) as failed:
            pool.submit(_ask_nothing, silent_address).result(60)
        assert pool.submit(abs, -1).result(60) == 1
    assert failed.value.code is grpc.StatusCode.UNAVAILABLE


@pytest.fixture
def silent_address() -> Iterator[str]:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{held.getsockname()[1]}"


def _ask_nothing(address: str) -> None:
    with Client(address, timeout_s=5) as client:
        client.status()
