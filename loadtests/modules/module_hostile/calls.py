"""Calls that ask for what must not be."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import grpc

from loadtests.modules.module_hostile.stack import TIMEOUT_S
from loadtests.modules.module_hostile.uploads import INVALID, HostileUpload
from memserve.client import Client
from memserve.client.errors import call_failed
from memserve.domain import Sampling, TextDelta, Usage
from memserve.pb.v1 import module_pb2_grpc

STREAMED_TOKENS = 600
NOT_FOUND, PRECONDITION, ABORTED = (
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.ABORTED,
)


@dataclass(frozen=True, slots=True)
class Case:
    """A call that must be refused."""

    name: str
    act: Callable[[], object]
    """Raises CallFailed with `code`, the field `at`, and a detail that contains `says`."""
    code: grpc.StatusCode
    at: str = ""
    says: str = ""
    changes: int = 0
    """Changes of aliases, by the part of the case that is not refused."""


def hostile_calls(client: Client, long_client: Client) -> list[Case]:
    """Of a module `town` with two versions, the first of them live, and an expert `archive`."""
    return [*calls_at_once(client, long_client), *hostile_changes(client), *hostile_uses(client)]


def calls_at_once(client: Client, long_client: Client) -> list[Case]:
    """Calls that exclude each other, both under way. long_client: for a stream beside another call."""
    modules = client.modules

    def two_promotions() -> None:
        """Both from the revision that is there: one is made, the other is refused."""
        revision = modules.get("town").aliases[0].revision
        together = threading.Barrier(2)

        def promote(version: int) -> None:
            together.wait()
            modules.promote("town", version, expected_revision=revision)

        with ThreadPoolExecutor(2) as pool:
            failures = [call.exception() for call in [pool.submit(promote, version) for version in (1, 2)]]
        refused = [failure for failure in failures if failure is not None]
        if len(refused) != 1:
            raise RuntimeError(f"{len(refused)} of two promotions at once were refused: {refused}")
        raise refused[0]

    def deleted_while_streaming() -> None:
        """The deletion is refused, and the stream goes on to its end."""
        used = next(
            version for version in (1, 2) if version != modules.get("town").aliases[0].targets[0].version
        )
        sampling = Sampling(max_tokens=STREAMED_TOKENS, min_tokens=STREAMED_TOKENS)
        events = long_client.stream("Hello.", module=f"town@{used}", sampling=sampling)
        tokens = 0
        for event in events:
            if isinstance(event, TextDelta):
                tokens += len(event.token_ids)
                break
        try:
            modules.delete("town", used)
        finally:
            rest = list(events)
            tokens += sum(len(event.token_ids) for event in rest if isinstance(event, TextDelta))
            if tokens != STREAMED_TOKENS or not isinstance(rest[-1], Usage):
                raise RuntimeError(f"the stream ended after {tokens} of {STREAMED_TOKENS} tokens")

    return [
        Case(
            "a version deleted while a request streams",
            deleted_while_streaming,
            PRECONDITION,
            says="in use by a request",
        ),
        Case("two promotions at once", two_promotions, ABORTED, says="at revision", changes=1),
    ]


def hostile_changes(client: Client) -> list[Case]:
    """Promotions, deletions and rollbacks."""
    modules = client.modules
    return [
        Case(
            "promotion of a version that does not exist",
            lambda: modules.promote("town", 99),
            NOT_FOUND,
            says="town@99",
        ),
        Case(
            "promotion of a module that does not exist",
            lambda: modules.promote("nobody", 1),
            NOT_FOUND,
            says="nobody@1",
        ),
        Case("promotion of version -1", lambda: modules.promote("town", -1), INVALID, "version"),
        Case("an alias '../live'", lambda: modules.promote("town", 1, alias="../live"), INVALID, "alias"),
        Case(
            "a version deleted that is live",
            lambda: modules.delete("archive", 1),
            PRECONDITION,
            says="alias live",
        ),
        Case(
            "deletion of a version that does not exist",
            lambda: modules.delete("town", 99),
            NOT_FOUND,
            says="town@99",
        ),
        Case(
            "rollback of what has no past",
            lambda: modules.rollback("archive"),
            PRECONDITION,
            says="no other targets before",
        ),
    ]


def hostile_uses(client: Client) -> list[Case]:
    """Splits, preloads, requests and compositions."""
    modules = client.modules
    return [
        Case(
            "a split with a weight of NaN",
            lambda: modules.split("town", {1: 1.0, 2: float("nan")}),
            INVALID,
            "targets[1].weight",
        ),
        Case(
            "a split with a version that is not",
            lambda: modules.split("town", {1: 1.0, 99: 1.0}),
            NOT_FOUND,
            says="town@99",
        ),
        Case(
            "preload of a version that does not exist",
            lambda: modules.preload("town@99"),
            NOT_FOUND,
            says="town@99",
        ),
        Case(
            "a request for '../../etc/passwd'",
            lambda: client.generate("Hello.", module="../../etc/passwd"),
            INVALID,
            "module",
        ),
        Case(
            "an expert asked for as a LoRA",
            lambda: client.generate("Hello.", module="archive"),
            INVALID,
            "module",
        ),
        Case(
            "an expert composed with a LoRA", _composed(client), INVALID, "parents[1].reference", "only LoRAs"
        ),
    ]


def _composed(client: Client) -> Callable[[], object]:
    return lambda: client.modules.compose("mixed", "linear", {"town": 1.0, "archive": 1.0})


def publish(channel: grpc.Channel, upload: HostileUpload) -> None:
    stub = module_pb2_grpc.ModuleServiceStub(channel)
    try:
        stub.PublishModule(upload.parts(), timeout=TIMEOUT_S)
    except grpc.RpcError as error:
        raise call_failed(error) from None
