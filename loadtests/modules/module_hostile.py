"""Hostile modules, hostile calls, and KV across versions: the right status with a reason, the store
unchanged, the engines alive.

A real memserve with two workers, through the public API. Every case of `hostile_modules`, and calls that ask
for what must not be: each must end with its status and name what is wrong, leave versions, aliases,
histories, audit and the module store's files as they were, and both workers must answer right after it, in
the same processes.

Then KV. Two versions of one module are asked with the same long prompts: a version's first ask must find
nothing cached on any tier, though the other's KV is in the worker's memory and in Redis, and the version's
own is found. The counter-test does the same to a plain vLLM engine, once with the names and paths that
memserve's workers give to adapters, and once with the digest taken out of them: there stale KV must be
served, or this test would not notice.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import grpc
import psutil

from loadtests.harness.figures import Bar, finish, parser, print_table, report
from loadtests.harness.hostile_modules import INVALID, HostileUpload, expert_files, hostile_uploads
from loadtests.harness.stack import ANSWER, running_stack, variant
from loadtests.harness.up import is_engine
from loadtests.harness.version_kv import Ask, ask_versions, engine_cached_tokens
from memserve.client import CallFailed, Client
from memserve.client.clients import call_failed
from memserve.demo import MODEL_DIR
from memserve.domain import Sampling, TextDelta, Usage
from memserve.embedded import Stack
from memserve.memory.modules.blobs.store import BlobStore, sweep
from memserve.memory.modules.registry.store import ModuleStore
from memserve.model.files import open_model
from memserve.pb.v1 import module_pb2_grpc

WORKERS = 2
TIMEOUT_S = 60.0
STATUS_CHARS, SHOWN_CHARS = 25, 110
STREAMED_TOKENS = 600
# Of a prompt, what its own KV must give back: the last tokens are always computed.
OWN_SHARE = 0.95
NOT_FOUND, PRECONDITION, ABORTED = (
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.ABORTED,
)


@dataclass(frozen=True, slots=True)
class Case:
    """act: does it, and raises CallFailed with `code`, the field `at` and a detail that contains `says`.

    changes: of aliases, by the part of it that is right.
    """

    name: str
    act: Callable[[], object]
    code: grpc.StatusCode
    at: str = ""
    says: str = ""
    changes: int = 0


@dataclass(frozen=True, slots=True)
class Held:
    """Everything that the store tells, and the files under it. lists: modules, versions and audit, each as it
    is shown.
    """

    lists: tuple[str, ...]
    histories: dict[str, tuple[str, ...]]
    files: dict[str, int]
    strays: tuple[str, ...]


class Fleet:
    """The worker and gateway processes as they were at the beginning."""

    def __init__(self, stack: Stack, client: Client) -> None:
        self._client = client
        self._workers = [worker.worker_id for worker in client.status().workers]
        gateway = stack.gateway_process.pid if stack.gateway_process is not None else 0
        workers = [psutil.Process(worker.pid) for worker in client.status().workers]
        engines = [
            child for worker in workers for child in worker.children(recursive=True) if is_engine(child)
        ]
        self.processes = [psutil.Process(gateway), *workers, *engines]

    def dead(self) -> int:
        """How many processes have ended, and workers do not answer."""
        silent = 0
        for worker_id in self._workers:
            try:
                self._client.generate("Hello.", worker_id=worker_id, sampling=ANSWER)
            except CallFailed as failure:
                report(f"  worker {worker_id}: {failure}")
                silent += 1
        return silent + sum(not process.is_running() for process in self.processes)


def held_by(stack: Stack, client: Client) -> Held:
    """After a sweep: content that a worker refused is in the store until then."""
    root = stack.settings.modules_root / "modules"
    asyncio.run(_swept(stack.settings.redis, root))
    modules = client.modules.all()
    names = [module.name for module in modules]
    files = {
        str(file.relative_to(root)): file.stat().st_size
        for file in root.rglob("*")
        if file.is_file() and ".staging" not in file.parts
    }
    places = (stack.settings.data, stack.settings.data.parent, stack.settings.data.parent.parent)
    strays = {
        str(path)
        for place in places
        for path in (*place.glob("*evil*"), *place.glob("*/*evil*"))
        if path.exists()
    }
    return Held(
        (
            repr(modules),
            *(repr(client.modules.versions(name)) for name in names),
            repr(list(client.modules.audit())),
        ),
        {name: tuple(repr(change) for change in client.modules.history(name)) for name in names},
        files,
        tuple(sorted(strays)),
    )


async def _swept(redis_url: str, root: Path) -> None:
    store = ModuleStore(redis_url)
    try:
        await sweep(BlobStore("", root), store, 0.0, time.time())
    finally:
        await store.close()


def publish(channel: grpc.Channel, upload: HostileUpload) -> None:
    stub = module_pb2_grpc.ModuleServiceStub(channel)
    try:
        stub.PublishModule(upload.parts(), timeout=TIMEOUT_S)
    except grpc.RpcError as error:
        raise call_failed(error) from None


def hostile_calls(client: Client, long_client: Client) -> list[Case]:
    """Of a module `town` with two versions, the first of them live, and an expert `archive`."""
    modules = client.modules

    def two_promotions() -> None:
        """Both from the revision that is there: one is made, the other is told."""
        revision = modules.get("town").aliases[0].revision
        together = threading.Barrier(2)

        def promote(version: int) -> None:
            together.wait()
            modules.promote("town", version, expected_revision=revision)

        with ThreadPoolExecutor(2) as pool:
            failures = [each.exception() for each in [pool.submit(promote, version) for version in (1, 2)]]
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


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a case. right: refused as it should be."""

    case: Case
    right: bool
    status: str
    reason: str
    changed: bool
    dead: int


def run_case(case: Case, stack: Stack, client: Client, fleet: Fleet) -> Outcome:
    before = held_by(stack, client)
    status, reason, right = "OK", "it was not refused", False
    try:
        case.act()
    except CallFailed as failure:
        status, reason = failure.code.name, failure.detail
        right = failure.code is case.code and (failure.field or "") == case.at and case.says in failure.detail
    except RuntimeError as error:
        reason = str(error)
    now = held_by(stack, client)
    if case.changes:
        grown = sum(len(now.histories[name]) - len(changes) for name, changes in before.histories.items())
        same = all(
            now.histories[name][: len(changes)] == changes for name, changes in before.histories.items()
        )
        changed = not (
            same and grown == case.changes and now.files == before.files and now.strays == before.strays
        )
    else:
        changed = now != before
    return Outcome(case, right, status, " ".join(reason.split()), changed, fleet.dead())


def publish_sound_ones(client: Client, folder: Path) -> None:
    """`town` with two versions, `archive`, and `kv` with two versions that know different facts. None has
    probes.
    """
    for name, adapter, scale in (
        ("town", "harbour", 0.99),
        ("town", "harbour", 1.01),
        ("kv", "harbour", 0.98),
        ("kv", "observatory", 0.98),
    ):
        client.modules.publish(name, variant(adapter, folder / f"{name}-{adapter}-{scale}", scale=scale))
    (folder / "archive").mkdir()
    for file_name, content in expert_files().items():
        (folder / "archive" / file_name).write_bytes(content)
    client.modules.publish("archive", folder / "archive")
    for name in ("town", "archive", "kv"):
        client.modules.promote(name, 1)


@contextlib.contextmanager
def sound_stack() -> Iterator[tuple[Stack, Client, Client]]:
    """With the modules of `publish_sound_ones`. Two clients: one is for a stream that another call goes
    beside.
    """
    with (
        tempfile.TemporaryDirectory(prefix="memserve-hostile-") as scratch,
        running_stack(workers=WORKERS, metrics_port=0) as stack,
        Client(stack.address, timeout_s=TIMEOUT_S) as client,
        Client(stack.address, timeout_s=TIMEOUT_S) as other,
    ):
        publish_sound_ones(client, Path(scratch))
        yield stack, client, other


def measure(chosen_cases: Callable[[list[Case]], list[Case]]) -> tuple[list[Outcome], list[Ask], bool]:
    """chosen_cases: which of the cases are run."""
    shapes = open_model(MODEL_DIR).tensor_shapes()
    with sound_stack() as (stack, client, other), grpc.insecure_channel(stack.address) as channel:
        fleet = Fleet(stack, client)
        cases = hostile_calls(client, other)
        for upload in hostile_uploads(shapes, stack.settings.max_module_bytes):
            act = lambda upload=upload: publish(channel, upload)  # noqa: E731
            cases.append(Case(upload.case, act, upload.code, upload.at, upload.says))
        outcomes = []
        for case in chosen_cases(cases):
            outcome = run_case(case, stack, client, fleet)
            report(f"{case.name}: {outcome.status}{'' if outcome.right else ' WRONG: ' + outcome.reason}")
            outcomes.append(outcome)
        return outcomes, *ask_versions(stack, client)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit status."""
    chosen = parser("module_hostile", __doc__).parse_args(arguments)
    outcomes, asks, same = measure(
        (lambda cases: cases[:2] + cases[2::3]) if chosen.quick else (lambda cases: cases)
    )
    with tempfile.TemporaryDirectory(prefix="memserve-hostile-") as scratch:
        named = {} if chosen.quick else engine_cached_tokens(Path(scratch))
    statuses = [outcome.status if outcome.right else f"{outcome.status} WRONG" for outcome in outcomes]
    width = max(len(outcome.case.name) for outcome in outcomes)
    for outcome, status in zip(outcomes, statuses, strict=True):
        print(f"{outcome.case.name:<{width}}  {status:<{STATUS_CHARS}}  {outcome.reason[:SHOWN_CHARS]}")
    print()
    columns = (
        "asked with the prompt of an earlier ask",
        "KV",
        "prompt tokens",
        "cached: device",
        "host",
        "redis",
    )
    print_table(columns, [ask.row for ask in asks])
    for name, tokens in named.items():
        print(f"adapters named {name}: {tokens} tokens of version 1's KV served to version 2 by vLLM")
    stale = sum(ask.answer.usage.cached.total for ask in asks if not ask.own)
    own = min(ask.answer.usage.cached.total / ask.answer.usage.prompt_tokens for ask in asks if ask.own)
    wrong = [outcome.case.name for outcome in outcomes if not outcome.right]
    changed = [outcome.case.name for outcome in outcomes if outcome.changed]
    for what, cases in (("not refused as it should be", wrong), ("changed the store", changed)):
        print(f"{what}: {', '.join(cases) or 'none'}")
    bars = [
        Bar("hostile cases", len(outcomes), at_least=20),
        Bar("cases not refused as they should be", len(wrong), at_most=0),
        Bar("cases that changed the store", len(changed), at_most=0),
        Bar("dead engines or processes", max(outcome.dead for outcome in outcomes), at_most=0),
        Bar("tokens of another version's KV served", stale, at_most=0),
        Bar("share of a version's own KV served, the least", own, at_least=OWN_SHARE),
        Bar("version 1 gives other tokens after a reload", not same, at_most=0),
    ]
    if named:
        bars += [
            Bar("stale tokens in vLLM with memserve's names", named["memserve's"], at_most=0),
            Bar(
                "stale tokens in vLLM without the digest in the name", named["without the digest"], at_least=1
            ),
        ]
    rows = [{"case": o.case.name, "status": o.status, "reason": o.reason, "right": o.right} for o in outcomes]
    return finish(bars, {"cases": rows, "asks": [ask.row for ask in asks], "named": named}, chosen.json)


if __name__ == "__main__":
    sys.exit(main())
