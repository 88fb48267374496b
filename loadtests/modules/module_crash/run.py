"""The client of one run: it draws operations, does them while processes are killed, and compares."""

from __future__ import annotations

import itertools
import json
import random
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import grpc
import psutil
import redis

from loadtests.harness.figures import report
from loadtests.harness.module_states import MODULES, Operation, Seen, State, after, contradictions, look
from loadtests.harness.stack import variant
from loadtests.harness.up import is_engine
from memserve.client import CallFailed, Client
from memserve.demo import ADAPTERS_DIR, MODEL_DIR
from memserve.domain import Sampling
from memserve.embedded import Stack
from memserve.errors import MemserveError
from memserve.gateway.modules.lifecycle import HOLD_S
from memserve.memory.modules.blobs.store import BlobStore
from memserve.memory.modules.kinds.lora import check_lora
from memserve.memory.modules.kinds.table import BaseModel
from memserve.model.files import open_model

T = TypeVar("T")
GATEWAY, REGISTRY, WORKER = "gateway", "registry", "worker"
KINDS = ("publish", "promote", "split", "rollback", "delete")
WEIGHTS = {"publish": 4, "promote": 3, "split": 1, "rollback": 1, "delete": 3}
VERSIONS_MAX = 5
# So many of the kills come right after the registry has taken a change, at most so long; the others at any
# time of the usual duration.
AT_A_CHANGE, JUST_AFTER_S = 0.4, 0.02
EVENTS_KEY = "memserve:module:events:7:default"
RETRY_S = 0.3
PATIENCE_S = 120.0
PROBES = 6
ANSWER = Sampling(max_tokens=8)


@dataclass
class Figures:
    """What went wrong, one line each, and what each kill met."""

    lost: list[str] = field(default_factory=list)
    inconsistent: list[str] = field(default_factory=list)
    never_done: list[str] = field(default_factory=list)
    met: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    under_way: int = 0
    recovery_s: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))


class Run:
    """The client of one run, and what it knows."""

    def __init__(self, stack: Stack, folder: Path, workers: int, seed: int) -> None:
        self.stack = stack
        self.workers = workers
        self.rng = random.Random(seed)
        self.folder = folder
        model = open_model(MODEL_DIR)
        self.base = BaseModel(
            model.tensor_shapes(), int(model.config["vocab_size"]), stack.settings.max_lora_rank
        )
        self.registry = redis.Redis.from_url(stack.settings.redis)
        self.blobs = BlobStore("", stack.settings.modules_root / "modules")
        self.states = dict.fromkeys(MODULES, State())
        self.seen = Seen(dict.fromkeys(MODULES, ()), dict.fromkeys(MODULES, ()), {}, ())
        self.contents = itertools.count(1)
        self.durations: defaultdict[str, list[float]] = defaultdict(list)
        # Versions whose deletion was cut off: from when on they can be deleted at the latest, on the
        # monotonic clock.
        self.held: dict[tuple[str, int], float] = {}
        self.figures = Figures()
        self.digests: dict[int, str] = {}

    def client(self) -> Client:
        """A new one every time: its channel connects at once, whatever happened before."""
        return Client(self.stack.address, timeout_s=60.0)

    def files(self, content: int) -> Path:
        """A module that differs from the harbour adapter in the fourth decimal, with a few of its questions
        as probes.
        """
        folder = self.folder / str(content)
        if not folder.exists():
            variant("harbour", folder, scale=1 + content / 10_000)
            held = json.loads((ADAPTERS_DIR / "harbour" / "facts.json").read_text(encoding="utf-8"))[:PROBES]
            probes = [{"question": fact["questions"][0], "answers": [fact["answer"]]} for fact in held]
            document = {
                "sets": [{"name": f"recall-{content}", "kind": "recall", "target": 0.5, "probes": probes}]
            }
            (folder / "probes.json").write_text(json.dumps(document), encoding="utf-8")
            self.digests[content] = check_lora(folder, self.base).digest
        return folder

    def draw(self) -> Operation:
        """An operation that the present state allows. Deletions that were cut off come first when they can go
        on.
        """
        due = [entry for entry, from_s in self.held.items() if time.monotonic() > from_s]
        if due:
            module, version = self.rng.choice(due)
            return Operation("delete", module, versions=(version,))
        while True:
            kind = self.rng.choices(KINDS, [WEIGHTS[name] for name in KINDS])[0]
            module = self.rng.choice(MODULES)
            state = self.states[module]
            usable = [number for number in state.versions if (module, number) not in self.held]
            passed = [number for number in usable if state.promoted(number)]
            free = [number for number in usable if number not in dict(state.targets)]
            match kind:
                case "publish" if len(state.versions) < VERSIONS_MAX:
                    return Operation(kind, module, content=next(self.contents))
                case "promote" if free:
                    return Operation(kind, module, versions=(self.rng.choice(free),))
                case "split" if len(passed) >= 2:
                    return Operation(kind, module, versions=tuple(self.rng.sample(passed, 2)))
                case "rollback" if state.rolled_back and {version for version, _ in state.rolled_back} <= set(
                    usable
                ):
                    return Operation(kind, module)
                case "delete" if len(free) >= 2:
                    return Operation(kind, module, versions=(self.rng.choice(free),))

    def call(self, client: Client, operation: Operation) -> None:
        """Raises CallFailed. Aliases are changed only from the revision that was seen: nothing can be done
        twice.
        """
        name, revision = operation.module, len(self.states[operation.module].history)
        match operation.kind:
            case "publish":
                version = client.modules.publish(
                    name, self.files(operation.content), notes=f"content {operation.content}"
                )
                if version.digest != self.digests[operation.content]:
                    self.figures.inconsistent.append(f"{version.reference}: acknowledged with another digest")
            case "promote":
                client.modules.promote(name, operation.versions[0], expected_revision=revision)
            case "split":
                client.modules.split(name, dict(operation.targets), expected_revision=revision)
            case "rollback":
                client.modules.rollback(name, expected_revision=revision)
            case "delete":
                client.modules.delete(name, operation.versions[0])

    def do(self, operation: Operation, victim: str = "") -> None:
        """Do it, with a kill at the first try where a victim is named, until it is done or its time has to
        come.
        """
        self.files(operation.content) if operation.content else None
        target = after(self.states[operation.module], operation, self.digests.get(operation.content, ""))
        give_up_s = time.monotonic() + PATIENCE_S
        met = ""
        while True:
            failure = self.attempt(operation, victim) if victim else self.unharmed(operation)
            seen = self.look_again()
            state = seen.state(operation.module)
            if failure is None and state != target:
                self.figures.lost.append(f"{operation}: acknowledged, and the store has {state}")
            elif failure is not None and state not in (target, self.states[operation.module]):
                self.figures.inconsistent.append(f"{operation}: cut off, and the store has {state}")
            if victim:
                met = (
                    "acknowledged" if failure is None else "done, not told" if state == target else "not done"
                )
                self.figures.met[operation.kind, victim, met] += 1
                report(f"  {victim} killed: {met}{f' ({failure})' if failure else ''}")
                victim = ""
            self.check(seen, {**self.states, operation.module: state})
            deleted = (operation.module, *operation.versions)
            if failure is None or state == target:
                self.held = {entry: from_s for entry, from_s in self.held.items() if entry != deleted}
                return
            if operation.kind == "delete":
                # Nobody but the one who was cut off can go on with it before its mark runs out.
                marked = (
                    failure.code is grpc.StatusCode.FAILED_PRECONDITION
                    and "another deletion" in failure.detail
                )
                if marked and time.monotonic() > self.held.get(
                    (operation.module, operation.versions[0]), 0.0
                ):
                    self.figures.inconsistent.append(f"{operation}: still marked after its time")
                if marked:
                    return
                self.held[operation.module, operation.versions[0]] = time.monotonic() + HOLD_S
            if time.monotonic() > give_up_s:
                self.figures.never_done.append(f"{operation}: {failure}")
                return
            report(f"  once more: {operation.kind} ({failure})")
            time.sleep(RETRY_S)

    def unharmed(self, operation: Operation) -> CallFailed | None:
        started_s = time.monotonic()
        with self.client() as client:
            try:
                self.call(client, operation)
            except CallFailed as failure:
                return failure
        self.durations[self.sort(operation)].append(time.monotonic() - started_s)
        return None

    def attempt(self, operation: Operation, victim: str) -> CallFailed | None:
        """With a kill within its usual duration. Returns when everything runs again."""
        with self.client() as client:
            worker = self.rng.choice(client.status().workers)
        at_a_change, engine = self.rng.random() < AT_A_CHANGE, self.rng.random() < 0.5
        delay_s = self.rng.uniform(
            0, JUST_AFTER_S if at_a_change else statistics.median(self.durations[self.sort(operation)])
        )
        when = f"{delay_s * 1000:.0f} ms after {'a change' if at_a_change else 'its begin'}"
        report(
            f"{operation.kind} {operation.module} {operation.versions or operation.content}, {victim} {when}"
        )
        with self.client() as client, ThreadPoolExecutor(1) as pool:
            events = self._events()
            calling = pool.submit(self.call, client, operation)
            while at_a_change and not calling.done() and self._events() == events:
                pass
            time.sleep(delay_s)
            self.figures.under_way += not calling.done()
            killed_s = time.monotonic()
            match victim:
                case "gateway":
                    self._kill(self.stack.gateway_process.pid if self.stack.gateway_process else 0)
                case "registry":
                    self._kill(self.stack.registry_process.pid if self.stack.registry_process else 0)
                case _:
                    self._kill(worker.pid, engine=engine)
            failure = calling.exception()
        self.eventually("recovery", lambda: self._recovered(worker.worker_id if victim == WORKER else ""))
        self.figures.recovery_s[victim].append(time.monotonic() - killed_s)
        if failure is not None and not isinstance(failure, CallFailed):
            raise failure
        return failure

    def sort(self, operation: Operation) -> str:
        """Of operations that take about as long: a version is asked its probes only at its first
        promotion.
        """
        again = operation.kind == "promote" and self.states[operation.module].promoted(operation.versions[0])
        return "promote again" if again else operation.kind

    def _events(self) -> int:
        return int(self.registry.xlen(EVENTS_KEY))

    def _kill(self, pid: int, *, engine: bool = False) -> None:
        process = psutil.Process(pid)
        if engine:
            process = next(child for child in process.children(recursive=True) if is_engine(child))
        process.kill()

    def _recovered(self, gone: str) -> bool:
        with self.client() as client:
            status = client.status()
            client.modules.all()
        ready = {worker.worker_id for worker in status.workers if worker.ready} - {gone}
        return status.redis_ok and len(ready) == self.workers

    def eventually(self, what: str, holds: Callable[[], T]) -> T:
        """What `holds` returns when it is true and does not fail. Raises RuntimeError when it does not
        come.
        """
        deadline_s = time.monotonic() + PATIENCE_S
        while True:
            failed = ""
            try:
                if result := holds():
                    return result
            except (CallFailed, MemserveError) as error:
                failed = str(error)
            if time.monotonic() > deadline_s:
                raise RuntimeError(f"no {what} within {PATIENCE_S:.0f} s {failed}")
            time.sleep(0.1)

    def look_again(self) -> Seen:
        def looked() -> Seen:
            with self.client() as client:
                return look(client)

        return self.eventually("look at the store", looked)

    def check(self, seen: Seen, states: Mapping[str, State]) -> None:
        """Hold everything that can be seen against itself and against what it is to be."""
        wrong = contradictions(seen, self.seen)
        for module, state in states.items():
            if seen.state(module) != state:
                wrong.append(f"{module}: the store has {seen.state(module)}, and {state} was acknowledged")
        for digest in sorted({digest for state in states.values() for digest in state.versions.values()}):
            try:
                if check_lora(self.blobs.local(digest), self.base).digest != digest:
                    wrong.append(f"the files of {digest} have another digest")
            except MemserveError as error:
                wrong.append(f"the files of {digest}: {error}")
        for module, state in states.items():
            if state.targets:
                wrong += self.eventually(
                    "answer", lambda module=module, state=state: [self._answered(module, state)]
                )  # type: ignore[misc]
        self.figures.inconsistent += [line for line in wrong if line]
        for line in wrong:
            report(f"  WRONG: {line}") if line else None
        self.seen, self.states = seen, {module: seen.state(module) for module in MODULES}

    def _answered(self, module: str, state: State) -> str:
        """Ask the alias; returns what is wrong with the receipt."""
        with self.client() as client:
            used = client.generate("Hello.", module=module, sampling=ANSWER).route.modules[0]
        right = used.version in dict(state.targets) and used.digest == state.versions[used.version]
        return (
            ""
            if right
            else f"{module}: answered with {used.version} ({used.digest[:12]}), and the alias is at "
            f"{state.targets}"
        )

    def begin(self) -> None:
        """A history for every module, and how long each kind of operation takes when nothing is killed."""
        for module in MODULES:
            for _ in range(3):
                self.do(Operation("publish", module, content=next(self.contents)))
            self.do(Operation("promote", module, versions=(1,)))
            self.do(Operation("promote", module, versions=(2,)))
            self.do(Operation("split", module, versions=(1, 2)))
            self.do(Operation("rollback", module))
            self.do(Operation("promote", module, versions=(1,)))
            self.do(Operation("delete", module, versions=(3,)))

    def end(self) -> None:
        """What was cut off can be done when the marks have run out."""
        while self.held:
            (module, version), from_s = min(self.held.items(), key=lambda entry: entry[1])
            time.sleep(max(0.0, from_s - time.monotonic()) + 0.5)
            self.do(Operation("delete", module, versions=(version,)))
            self.held.pop((module, version), None)
