"""When a container is probed, and what the answers mean: started, ready, or to be restarted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from loadtests.cluster.kubelet.objects import Manifest

ProbeKind = Literal["startup", "readiness", "liveness"]
KINDS: tuple[ProbeKind, ...] = ("startup", "readiness", "liveness")

FIRST_RESTART_S = 10.0
LONGEST_RESTART_S = 300.0


@dataclass(frozen=True, slots=True)
class ProbeTimes:
    """When a probe is made, and how many answers count. The defaults are Kubernetes'."""

    initial_delay_s: float = 0.0
    period_s: float = 10.0
    timeout_s: float = 1.0
    failure_threshold: int = 3
    success_threshold: int = 1

    @classmethod
    def of(cls, probe: Manifest) -> ProbeTimes:
        return cls(
            float(probe.get("initialDelaySeconds", 0)),
            float(probe.get("periodSeconds", 10)),
            float(probe.get("timeoutSeconds", 1)),
            int(probe.get("failureThreshold", 3)),
            int(probe.get("successThreshold", 1)),
        )


class Verdict:
    """What the answers to one probe have come to."""

    def __init__(self, times: ProbeTimes) -> None:
        self.times = times
        self.value: bool | None = None
        """None: too few answers yet."""
        self._alike = 0
        self._last: bool | None = None

    def observe(self, ok: bool) -> None:
        self._alike = self._alike + 1 if ok is self._last else 1
        self._last = ok
        if self._alike >= (self.times.success_threshold if ok else self.times.failure_threshold):
            self.value = ok


class ContainerHealth:
    """The probes of one run of a container. Times are seconds on the caller's clock."""

    def __init__(self, probes: Mapping[ProbeKind, ProbeTimes], started_s: float) -> None:
        """started_s: when the container's process was started."""
        self._verdicts = {kind: Verdict(times) for kind, times in probes.items()}
        self._next_s = {kind: started_s + times.initial_delay_s for kind, times in probes.items()}

    @property
    def started(self) -> bool:
        """The startup probe has succeeded, or there is none."""
        startup = self._verdicts.get("startup")
        return startup is None or startup.value is True

    @property
    def ready(self) -> bool:
        readiness = self._verdicts.get("readiness")
        return self.started and (readiness is None or readiness.value is True)

    @property
    def must_restart(self) -> bool:
        """The startup probe or the liveness probe has failed often enough."""
        return any(
            kind in self._verdicts and self._verdicts[kind].value is False for kind in ("startup", "liveness")
        )

    def due(self, now_s: float) -> list[ProbeKind]:
        """The probes to make now. Each is next due a period later."""
        kinds = [kind for kind in self._next_s if self._next_s[kind] <= now_s and self._open(kind)]
        for kind in kinds:
            self._next_s[kind] = now_s + self._verdicts[kind].times.period_s
        return kinds

    def observe(self, kind: ProbeKind, ok: bool, now_s: float) -> None:
        """Take the answer to a probe that was due."""
        was_started = self.started
        self._verdicts[kind].observe(ok)
        if kind == "startup" and self.started and not was_started and "readiness" in self._next_s:
            self._next_s["readiness"] = now_s

    def _open(self, kind: ProbeKind) -> bool:
        """The startup probe is made until it succeeds, and the others from then on."""
        return (kind == "startup") is not self.started


def restart_delay_s(restarts: int) -> float:
    """How long a container that has ended waits before it is started again.

    restarts: how often it was started again before. The first time it waits for nothing.
    """
    if restarts == 0:
        return 0.0
    return min(LONGEST_RESTART_S, FIRST_RESTART_S * float(2 ** min(restarts - 1, 10)))
