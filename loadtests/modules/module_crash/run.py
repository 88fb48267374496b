"""The client of one run: it draws operations, does them while processes are killed, and tries again."""

from __future__ import annotations

import itertools
import random
import statistics
import time
from collections import defaultdict
from collections.abc import Mapping
from functools import partial

import grpc

from loadtests.harness.figures import report
from loadtests.modules.module_crash.killer import PATIENCE_S, Figures, Killer, eventually
from loadtests.modules.module_crash.oracle import Oracle
from loadtests.modules.module_crash.states import MODULES, Operation, Seen, State, look
from memserve.client import CallFailed, Client
from memserve.domain import Sampling
from memserve.gateway.modules.deletion import HOLD_S

KINDS = ("publish", "promote", "split", "rollback", "delete")
WEIGHTS = {"publish": 4, "promote": 3, "split": 1, "rollback": 1, "delete": 3}
VERSIONS_MAX = 5
RETRY_S = 0.3
ANSWER = Sampling(max_tokens=8)
ACKNOWLEDGED, DONE_UNHEARD, NOT_DONE = "acknowledged", "done, not heard", "not done"


class Run:
    """Operations, one after the other."""

    def __init__(self, killer: Killer, oracle: Oracle, rng: random.Random, figures: Figures) -> None:
        self.oracle = oracle
        self.durations_s: defaultdict[str, list[float]] = defaultdict(list)
        """By the operation's duration class."""
        self._killer = killer
        self._rng = rng
        self._figures = figures
        self._contents = itertools.count(1)
        # Versions whose deletion was cut off, and when they can be deleted at the latest, on the monotonic
        # clock.
        self._held_until_s: dict[tuple[str, int], float] = {}

    def begin(self) -> None:
        """A history for every module, and how long each kind of operation takes when nothing is killed."""
        for module in MODULES:
            for _ in range(3):
                self.do(Operation("publish", module, content=next(self._contents)))
            self.do(Operation("promote", module, versions=(1,)))
            self.do(Operation("promote", module, versions=(2,)))
            self.do(Operation("split", module, versions=(1, 2)))
            self.do(Operation("rollback", module))
            self.do(Operation("promote", module, versions=(1,)))
            self.do(Operation("delete", module, versions=(3,)))

    def end(self) -> None:
        """Do the deletions that were cut off, when their marks have run out."""
        while self._held_until_s:
            (module, version), until_s = min(self._held_until_s.items(), key=lambda entry: entry[1])
            time.sleep(max(0.0, until_s - time.monotonic()) + 0.5)
            self.do(Operation("delete", module, versions=(version,)))
            self._held_until_s.pop((module, version), None)

    def draw(self) -> Operation:
        """An operation that the present state allows. Deletions that were cut off come first when they can go
        on.
        """
        due = [deletion for deletion, until_s in self._held_until_s.items() if time.monotonic() > until_s]
        if due:
            module, version = self._rng.choice(due)
            return Operation("delete", module, versions=(version,))
        while True:
            kind = self._rng.choices(KINDS, [WEIGHTS[name] for name in KINDS])[0]
            module = self._rng.choice(MODULES)
            state = self.oracle.states[module]
            usable = [number for number in state.versions if (module, number) not in self._held_until_s]
            passed = [number for number in usable if state.promoted(number)]
            free = [number for number in usable if number not in dict(state.targets)]
            match kind:
                case "publish" if len(state.versions) < VERSIONS_MAX:
                    return Operation(kind, module, content=next(self._contents))
                case "promote" if free:
                    return Operation(kind, module, versions=(self._rng.choice(free),))
                case "split" if len(passed) >= 2:
                    return Operation(kind, module, versions=tuple(self._rng.sample(passed, 2)))
                case "rollback" if state.rolled_back and {version for version, _ in state.rolled_back} <= set(
                    usable
                ):
                    return Operation(kind, module)
                case "delete" if len(free) >= 2:
                    return Operation(kind, module, versions=(self._rng.choice(free),))

    def do(self, operation: Operation, victim: str = "") -> None:
        """Do it until it is done or has to wait. victim: what is killed at the first try."""
        if operation.content:
            self.oracle.files(operation.content)
        target = self.oracle.target(operation)
        give_up_s = time.monotonic() + PATIENCE_S
        while True:
            failure = self._tried(operation, victim)
            seen = self.look_again()
            state = seen.state(operation.module)
            self.oracle.judge(operation, target, state, failure)
            if victim:
                met = ACKNOWLEDGED if failure is None else DONE_UNHEARD if state == target else NOT_DONE
                self._figures.met[operation.kind, victim, met] += 1
                report(f"  {victim} killed: {met}{f' ({failure})' if failure else ''}")
                victim = ""
            self.check(seen, {**self.oracle.states, operation.module: state})
            if failure is None or state == target:
                if operation.kind == "delete":
                    self._held_until_s.pop((operation.module, operation.versions[0]), None)
                return
            if operation.kind == "delete" and self._has_to_wait(operation, failure):
                return
            if time.monotonic() > give_up_s:
                self._figures.never_done.append(f"{operation}: {failure}")
                return
            report(f"  once more: {operation.kind} ({failure})")
            time.sleep(RETRY_S)

    def _tried(self, operation: Operation, victim: str) -> CallFailed | None:
        """The failure of one call. victim: what is killed meanwhile."""
        if victim:
            what = f"{operation.kind} {operation.module} {operation.versions or operation.content}"
            usual_s = statistics.median(self.durations_s[self._duration_class(operation)])
            return self._killer.attempt(what, partial(self._call, operation), victim, usual_s)
        started_s = time.monotonic()
        with self._killer.client() as client:
            try:
                self._call(operation, client)
            except CallFailed as failure:
                return failure
        self.durations_s[self._duration_class(operation)].append(time.monotonic() - started_s)
        return None

    def _call(self, operation: Operation, client: Client) -> None:
        """Raises CallFailed. Aliases are changed only from the revision that was seen: nothing can be done
        twice.
        """
        name, revision = operation.module, len(self.oracle.states[operation.module].history)
        match operation.kind:
            case "publish":
                version = client.modules.publish(
                    name, self.oracle.files(operation.content), notes=f"content {operation.content}"
                )
                if version.digest != self.oracle.digest(operation.content):
                    self.oracle.note([f"{version.reference}: acknowledged with another digest"])
            case "promote":
                client.modules.promote(name, operation.versions[0], expected_revision=revision)
            case "split":
                client.modules.split(name, dict(operation.targets), expected_revision=revision)
            case "rollback":
                client.modules.rollback(name, expected_revision=revision)
            case "delete":
                client.modules.delete(name, operation.versions[0])

    def _has_to_wait(self, operation: Operation, failure: CallFailed) -> bool:
        """Whether the mark of a deletion that was cut off keeps others from the version. Only whoever was cut
        off could go on before the mark runs out.
        """
        deletion = operation.module, operation.versions[0]
        if failure.code is grpc.StatusCode.FAILED_PRECONDITION and "another deletion" in failure.detail:
            if time.monotonic() > self._held_until_s.get(deletion, 0.0):
                self._figures.inconsistent.append(f"{operation}: still marked after its time")
            return True
        self._held_until_s[deletion] = time.monotonic() + HOLD_S
        return False

    def _duration_class(self, operation: Operation) -> str:
        """Operations of a class take about as long. A version is asked its probes only at its first
        promotion.
        """
        state = self.oracle.states[operation.module]
        again = operation.kind == "promote" and state.promoted(operation.versions[0])
        return "promote again" if again else operation.kind

    def look_again(self) -> Seen:
        def looked() -> Seen:
            with self._killer.client() as client:
                return look(client)

        return eventually("look at the store", looked)

    def check(self, seen: Seen, states: Mapping[str, State]) -> None:
        """As of `Oracle`; and every alias answers with a version that it targets."""
        answers = [
            eventually("answer", partial(self._answered, module, state))
            for module, state in states.items()
            if state.targets
        ]
        self.oracle.note([line for wrong in answers for line in wrong if line])
        self.oracle.check(seen, states)

    def _answered(self, module: str, state: State) -> list[str]:
        """Ask the alias. Returns one line: what is wrong with the receipt, or nothing."""
        with self._killer.client() as client:
            used = client.generate("Hello.", module=module, sampling=ANSWER).route.modules[0]
        if used.version in dict(state.targets) and used.digest == state.versions[used.version]:
            return [""]
        answered = f"{used.version} ({used.digest[:12]})"
        return [f"{module}: answered with {answered}, and the alias is at {state.targets}"]
