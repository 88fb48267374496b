"""What is sent, and when: a plan that depends on the scenario, the seed and the salt alone.

Every request has its time before the first is sent. The turns of a conversation have theirs too, and their
history has answers that are drawn ahead. So a slow server changes nothing that is offered, equal seeds offer
equal requests, and the share of the prompts that a perfect cache would hold is known.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from memserve.bench.scenario import MAX_REQUESTS, Scenario
from memserve.bench.trace import BLOCK_TOKENS, Arrival
from memserve.domain import Message, Role
from memserve.errors import UsageError

WORDS = (
    "amber", "anchor", "apple", "arrow", "autumn", "barrel", "basket", "beacon", "bridge", "bronze",
    "canal", "candle", "carpet", "castle", "cedar", "circle", "cloud", "cobalt", "copper", "coral",
    "cotton", "crystal", "delta", "desert", "dragon", "eagle", "earth", "ember", "fabric", "falcon",
    "feather", "field", "flame", "forest", "fountain", "garden", "glass", "granite", "harbour", "hazel",
    "hollow", "island", "ivory", "jasper", "kettle", "ladder", "lantern", "letter", "linen", "marble",
    "meadow", "mirror", "mountain", "needle", "ocean", "olive", "orchid", "paper", "pebble", "pepper",
    "pillar", "planet", "pocket", "prairie", "quartz", "quiet", "rabbit", "ribbon", "river", "saddle",
    "salmon", "scarlet", "shadow", "shelter", "silver", "spring", "stone", "summer", "temple", "thunder",
    "timber", "tunnel", "valley", "velvet", "violet", "walnut", "water", "willow", "window", "winter",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Planned:
    """A request that is to be sent."""

    number: int
    due_s: float
    """The intended time, from the start of the run."""
    messages: tuple[Message, ...]
    output_tokens: int
    session: str = ""
    turn: int = 0
    """Of its conversation, from 0."""
    module: str = ""
    """A reference. Empty: the base model."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The requests of one run, by time."""

    requests: tuple[Planned, ...]
    seconds: float
    """How long requests come."""
    namespace: str = ""
    """To recall from. Empty: no recall."""
    memories: tuple[str, ...] = ()
    """What the namespace holds."""
    cut_prompts: int = 0
    """Prompts of a trace that were too long."""


def make_plan(
    scenario: Scenario, seed: int, salt: str, rate_per_s: float | None = None, trace: Sequence[Arrival] = ()
) -> Plan:
    """salt: what every prompt begins with, so that no cache knows it. rate_per_s: None for the scenario's.

    trace: of a scenario with a trace.
    Raises UsageError when the plan has no request, or too many.
    """
    if scenario.trace is not None:
        plan = _replay(scenario, seed, salt, rate_per_s, trace)
    else:
        plan = _conversations(scenario, seed, salt, rate_per_s or scenario.arrivals.rate_per_s)
    if not 0 < len(plan.requests) <= MAX_REQUESTS:
        count = len(plan.requests)
        raise UsageError("arrivals", f"{count} requests in a run; from 1 to {MAX_REQUESTS} are possible")
    return plan


def words(dice: random.Random, count: int) -> str:
    return " ".join(dice.choices(WORDS, k=count))


def arrival_times(order: str, rate_per_s: float, begin_s: float, end_s: float, seed: int) -> Iterator[float]:
    """From begin_s, before end_s."""
    dice = random.Random(f"{seed} arrivals")
    if order == "constant":
        count = max(round((end_s - begin_s) * rate_per_s), 1)
        yield from (begin_s + number / rate_per_s for number in range(count))
        return
    at_s = begin_s + dice.expovariate(rate_per_s)
    while at_s < end_s:
        yield at_s
        at_s += dice.expovariate(rate_per_s)


def _zipf(count: int, exponent: float) -> list[float]:
    return [1 / (rank + 1) ** exponent for rank in range(count)]


def _conversations(scenario: Scenario, seed: int, salt: str, rate_per_s: float) -> Plan:
    """Conversations begin before the run too, so that turns of every number come from its start on."""
    prompt, turns, adapters = scenario.prompt, scenario.turns, scenario.adapters
    seconds = scenario.arrivals.seconds
    if rate_per_s * seconds > MAX_REQUESTS:
        raise UsageError("arrivals", f"at most {MAX_REQUESTS} requests in a run")
    shared = [
        f"{salt} text {number}: {words(random.Random(f'{seed} text {number}'), prompt.shared_words)}"
        for number in range(prompt.shared_texts)
    ]
    texts = _zipf(len(shared), prompt.zipf)
    memories = _memories(scenario, seed, salt)
    begin_s = -3 * turns.pause_s * (turns.count - 1)
    times = arrival_times(scenario.arrivals.order, rate_per_s / turns.count, begin_s, seconds, seed)
    found: list[Planned] = []
    for session, start_s in enumerate(times):
        dice = random.Random(f"{seed} session {session}")
        history: list[Message] = []
        if shared:
            history.append(Message(Role.SYSTEM, dice.choices(shared, texts)[0]))
        module = ""
        if adapters is not None and dice.random() >= adapters.base_share:
            module = dice.choices(adapters.references, _zipf(len(adapters.references), adapters.zipf))[0]
        at_s = start_s
        for turn in range(turns.count):
            about = f"{dice.choice(memories)} " if memories else ""
            question = f"{salt} {session}.{turn} {about}{words(dice, prompt.question_words)}?"
            history.append(Message(Role.USER, question))
            if 0 <= at_s < seconds:
                found.append(
                    Planned(
                        0, at_s, tuple(history), scenario.output.tokens, f"{salt}-{session}", turn, module
                    )
                )
            history.append(Message(Role.ASSISTANT, words(dice, turns.answer_words)))
            at_s += dice.expovariate(1 / turns.pause_s) if turns.pause_s else 0.0
    return Plan(_numbered(found), seconds, f"bench-{salt}" if memories else "", memories)


def _memories(scenario: Scenario, seed: int, salt: str) -> tuple[str, ...]:
    if scenario.recall is None:
        return ()
    dice = random.Random(f"{seed} memories")
    return tuple(
        f"{salt} {number} {words(dice, scenario.recall.words)}" for number in range(scenario.recall.memories)
    )


def _replay(
    scenario: Scenario, seed: int, salt: str, rate_per_s: float | None, trace: Sequence[Arrival]
) -> Plan:
    """rate_per_s: mean rate that the trace is brought to. None: by its factor."""
    rules, seconds = scenario.trace, scenario.arrivals.seconds
    assert rules is not None
    arrivals = trace[: rules.first or None]
    if not arrivals:
        raise UsageError("trace.path", "names no request; name a trace with --trace")
    factor = rules.factor
    if rate_per_s is not None:
        factor = rate_per_s * max(arrivals[-1].at_s, 1e-3) / len(arrivals)
    block_words = max(round(BLOCK_TOKENS * rules.words_per_token * rules.length_factor), 1)
    texts: dict[int, str] = {}
    found, cut = [], 0
    for arrival in arrivals:
        due_s = arrival.at_s / factor
        if due_s >= seconds:
            break
        # The last block of a prompt is seldom full.
        share = 1 - (len(arrival.blocks) * BLOCK_TOKENS - arrival.prompt_tokens) / BLOCK_TOKENS
        parts = []
        for block in arrival.blocks:
            if block not in texts:
                texts[block] = words(random.Random(f"{seed} block {block}"), block_words)
            parts.append(texts[block])
        spoken = " ".join(parts[:-1]).split() + parts[-1].split()[: max(round(share * block_words), 1)]
        cut += len(spoken) > rules.max_words
        text = f"{salt} {' '.join(spoken[: rules.max_words])}"
        output = max(round(arrival.output_tokens * rules.length_factor), 1)
        found.append(Planned(0, due_s, (Message(Role.USER, text),), output))
    return Plan(_numbered(found), seconds, cut_prompts=cut)


def _numbered(found: Sequence[Planned]) -> tuple[Planned, ...]:
    ordered = sorted(found, key=lambda request: request.due_s)
    return tuple(
        Planned(number, each.due_s, each.messages, each.output_tokens, each.session, each.turn, each.module)
        for number, each in enumerate(ordered)
    )
