"""The figures of a run, from its rows. Pure arithmetic."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from memserve.bench.generator import Sending
from memserve.bench.rows import Outcome, Row
from memserve.bench.scenario import Limits, Slo


@dataclass(frozen=True, slots=True)
class Spread:
    """Quantiles in milliseconds, by nearest rank: each is a time that was measured."""

    count: int
    p50: float
    p90: float
    p99: float
    most: float


@dataclass(frozen=True, slots=True)
class Stall:
    """A worker owed answers and sent no token. Times are seconds from the start of the run."""

    worker: str
    from_s: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Figures:
    """What a run measured. Shares and rates are over everything that was offered."""

    offered: int
    outcomes: dict[str, int]
    """Requests by outcome; they add up to `offered`."""
    reasons: dict[str, dict[str, int]]
    """Requests by reason, by outcome."""
    goodput: float
    """Requests that were met, of those offered."""
    requested_per_s: float
    """Offered requests, over the time in which they were to come."""
    sent_per_s: float
    """Sent requests, over the same time or until the last one left, if that was later."""
    completed_per_s: float
    """Whole answers, over the same time or until the last one ended, if that was later."""
    output_tokens_per_s: float
    """Of whole answers, over the same time as these."""
    ttft_ms: Spread | None
    """From the intended time, of whole answers, as the three below. None: there is none."""
    tpot_ms: Spread | None
    itl_ms: Spread | None
    """Between two messages with text."""
    e2e_ms: Spread | None
    lateness_ms: Spread | None
    """From the intended time until the request left."""
    late_by_generator: int
    """Late answers that would have had their first token in time, had the generator sent them in time."""
    cpu_share: float
    """Of one core, that the generator's process took."""
    hit_share: float | None
    """Cached of prompt tokens, as the server says. None: it does not say."""
    workers: dict[str, int]
    """Whole answers by worker."""
    longest_silence_ms: dict[str, float]
    """By worker: the longest time in which it owed answers and sent no token."""
    stalls: tuple[Stall, ...]
    """The silences that are at least `limits.stall_ms`."""
    invalid: tuple[str, ...]
    """Why the run measures the generator and not the server. Empty: the run is valid."""
    is_complete: bool
    """False: the run was ended before its time."""


def spread(seconds: Iterable[float]) -> Spread | None:
    """None for no values."""
    ordered = sorted(1000 * value for value in seconds)
    if not ordered:
        return None

    def rank(share: float) -> float:
        return ordered[max(math.ceil(share * len(ordered)), 1) - 1]

    return Spread(len(ordered), rank(0.5), rank(0.9), rank(0.99), ordered[-1])


def figures_of(sending: Sending, slo: Slo, limits: Limits) -> Figures:
    rows = sending.rows
    answered = [row for row in rows if row.is_answered]
    sent = [row for row in rows if row.sent_s is not None]
    outcomes = Counter(row.outcome for row in rows)
    reasons: dict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        if row.reason:
            reasons[row.outcome.value][row.reason] += 1
    is_complete = len(rows) == sending.planned and not outcomes[Outcome.UNFINISHED]
    offered_s = sending.planned_s if is_complete else min(sending.elapsed_s, sending.planned_s)
    sent_s = max([offered_s, *(row.sent_s for row in sent if row.sent_s is not None)])
    ended_s = max([offered_s, *(row.ended_s for row in answered if row.ended_s is not None)])
    lateness_ms = spread(row.sent_s - row.intended_s for row in sent if row.sent_s is not None)
    cpu_share = sending.cpu_s / max(sending.elapsed_s, 1e-9)
    silences = sorted(_silences(rows), key=lambda silence: silence.from_s)
    longest: dict[str, float] = {}
    for silence in silences:
        longest[silence.worker] = max(longest.get(silence.worker, 0.0), 1000 * silence.seconds)
    return Figures(
        offered=len(rows),
        outcomes={outcome.value: outcomes[outcome] for outcome in Outcome},
        reasons={outcome: dict(counted.most_common()) for outcome, counted in sorted(reasons.items())},
        goodput=outcomes[Outcome.MET] / max(len(rows), 1),
        requested_per_s=len(rows) / max(offered_s, 1e-9),
        sent_per_s=len(sent) / max(sent_s, 1e-9),
        completed_per_s=len(answered) / max(ended_s, 1e-9),
        output_tokens_per_s=sum(row.output_tokens or 0 for row in answered) / max(ended_s, 1e-9),
        ttft_ms=spread(row.ttft_s for row in answered if row.ttft_s is not None),
        tpot_ms=spread(row.tpot_s for row in answered if row.tpot_s is not None),
        itl_ms=spread(_gaps(answered)),
        e2e_ms=spread(row.e2e_s for row in answered if row.e2e_s is not None),
        lateness_ms=lateness_ms,
        late_by_generator=sum(_late_by_generator(row, slo) for row in answered),
        cpu_share=cpu_share,
        hit_share=_hit_share(answered),
        workers=dict(Counter(row.worker for row in answered if row.worker).most_common()),
        longest_silence_ms=dict(sorted(longest.items())),
        stalls=tuple(silence for silence in silences if 1000 * silence.seconds >= limits.stall_ms),
        invalid=tuple(invalid_by(outcomes[Outcome.SHED], lateness_ms, cpu_share, limits)),
        is_complete=is_complete,
    )


def invalid_by(shed: int, lateness_ms: Spread | None, cpu_share: float, limits: Limits) -> Iterator[str]:
    """Why a run is invalid, a line for each bound that it broke."""
    if shed:
        yield (
            f"{shed} requests were not sent: {limits.max_outstanding} were under way (limits.max_outstanding)"
        )
    if lateness_ms is not None and lateness_ms.p99 > limits.late_p99_ms:
        yield (
            f"the generator sent late: p99 {lateness_ms.p99:.1f} ms, and {limits.late_p99_ms:g} ms is "
            "allowed (limits.late_p99_ms)"
        )
    if cpu_share > limits.cpu_share:
        yield (
            f"the generator took {cpu_share:.2f} of a core, and {limits.cpu_share:g} is allowed "
            "(limits.cpu_share)"
        )


def _late_by_generator(row: Row, slo: Slo) -> bool:
    if row.outcome is not Outcome.LATE or slo.ttft_ms is None or row.ttft_s is None or row.sent_s is None:
        return False
    from_sending_s = row.ttft_s - (row.sent_s - row.intended_s)
    return 1000 * from_sending_s <= slo.ttft_ms < 1000 * row.ttft_s


def _gaps(rows: Iterable[Row]) -> Iterator[float]:
    for row in rows:
        times_s = row.token_times_s
        yield from (after - before for before, after in pairwise(times_s))


def _hit_share(rows: Sequence[Row]) -> float | None:
    said = [
        (row.cached_tokens, row.prompt_tokens)
        for row in rows
        if row.cached_tokens is not None and row.prompt_tokens
    ]
    return sum(cached for cached, _ in said) / sum(prompt for _, prompt in said) if said else None


def _silences(rows: Sequence[Row]) -> Iterator[Stall]:
    """Of every worker: the times without a token while it owed at least one answer.

    A worker owes from when a request was sent until the answer's last token. Requests that ended without a
    worker's name count for none.
    """
    by_worker: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row.worker and row.sent_s is not None and row.token_times_s:
            by_worker[row.worker].append(row)
    for worker, owed in by_worker.items():
        owed.sort(key=lambda row: row.sent_s or 0.0)
        begin_s, end_s, tokens_s = 0.0, -1.0, list[float]()
        for row in owed:
            assert row.sent_s is not None
            if row.sent_s > end_s:
                yield from _between(worker, begin_s, tokens_s)
                begin_s, tokens_s = row.sent_s, []
            end_s = max(end_s, row.token_times_s[-1])
            tokens_s += row.token_times_s
        yield from _between(worker, begin_s, tokens_s)


def _between(worker: str, begin_s: float, tokens_s: list[float]) -> Iterator[Stall]:
    last_s = begin_s
    for token_s in sorted(tokens_s):
        yield Stall(worker, last_s, token_s - last_s)
        last_s = token_s
