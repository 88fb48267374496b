"""What became of every request."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from enum import StrEnum

from memserve.bench.scenario import Slo
from memserve.errors import PicklableError


class Outcome(StrEnum):
    """How a request ended. Every offered request has one of these."""

    MET = "met"
    """Answered whole and in time."""
    LATE = "late"
    """Answered whole, and later than the SLO allows."""
    REFUSED = "refused"
    """The server said that it does not take the request now."""
    FAILED = "failed"
    """No answer began, for another reason."""
    CUT_OFF = "cut_off"
    """The answer began and did not come to its end."""
    SHED = "shed"
    """The generator did not send it: too many were under way."""
    UNFINISHED = "unfinished"
    """The run was ended while it was under way."""


@dataclass(slots=True)
class Heard:
    """What a target hears of one answer. Times are those of the run's clock."""

    worker: str = ""
    token_times_s: array[float] = field(default_factory=lambda: array("d"))
    """Of each message with text."""
    output_tokens: int | None = None
    """None: the server has not said."""
    prompt_tokens: int | None = None
    cached_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One offered request. Times are seconds from the start of the run."""

    number: int
    intended_s: float
    sent_s: float | None
    """None: it was not sent."""
    ended_s: float | None
    outcome: Outcome
    reason: str
    """Why it was refused or failed, or what was late. Empty: it was met."""
    worker: str
    session: str
    turn: int
    module: str
    prompt_tokens: int | None
    output_tokens: int | None
    cached_tokens: int | None
    token_times_s: array[float]

    @property
    def ttft_s(self) -> float | None:
        """From the intended time."""
        return self.token_times_s[0] - self.intended_s if self.token_times_s else None

    @property
    def tpot_s(self) -> float | None:
        """Mean over the tokens after the first. None for an answer of one token."""
        return tpot_s(self.token_times_s, self.output_tokens)

    @property
    def e2e_s(self) -> float | None:
        """From the intended time."""
        return None if self.ended_s is None else self.ended_s - self.intended_s

    @property
    def is_answered(self) -> bool:
        return self.outcome in (Outcome.MET, Outcome.LATE)


class NotAnswered(PicklableError):
    """What a target raises for a request without a whole answer."""

    def __init__(self, reason: str, refused: bool = False) -> None:
        """reason: from a small set of words. refused: the server does not take the request now."""
        super().__init__(reason)
        self.reason = reason
        self.refused = refused


def tpot_s(times_s: array[float], output_tokens: int | None) -> float | None:
    tokens = len(times_s) if output_tokens is None else output_tokens
    return (times_s[-1] - times_s[0]) / (tokens - 1) if tokens > 1 and times_s else None


def ended_badly(error: NotAnswered, heard: Heard) -> Outcome:
    """An answer that has begun is cut off, whatever the server says."""
    if heard.token_times_s:
        return Outcome.CUT_OFF
    return Outcome.REFUSED if error.refused else Outcome.FAILED


def judged(slo: Slo, intended_s: float, ended_s: float, heard: Heard) -> tuple[Outcome, str]:
    """A whole answer against the SLO: its outcome, and which times were missed."""
    times_s = heard.token_times_s
    taken_ms = {
        "ttft": (1000 * (times_s[0] - intended_s) if times_s else None, slo.ttft_ms),
        "tpot": (_ms(tpot_s(times_s, heard.output_tokens)), slo.tpot_ms),
        "e2e": (1000 * (ended_s - intended_s), slo.e2e_ms),
    }
    missed = [
        name
        for name, (taken, limit) in taken_ms.items()
        if limit is not None and taken is not None and taken > limit
    ]
    return (Outcome.LATE, ", ".join(missed)) if missed else (Outcome.MET, "")


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else 1000 * seconds
