"""A module's life under constant load, on two workers: push, promote, split, rollback. No request fails, and
no answer mixes versions.

Two versions of one module know different facts: the first harbour's, the second observatory's. Before the
load each prompt is asked of each version by number, on a quiet memserve that has not seen it; prompts whose
two answers are equal are left out. Those tokens are what every answer under load is held against, by the
digest in its receipt. Half of the prompts carry a system text of several KV blocks, so that many answers come
from cached prefixes. Then both versions are deleted, and the second is pushed, gated and promoted while
askers ask.

Handbooks that nobody has asked before are asked twice of each version, of both workers: a version's very
first ask must find nothing cached, though the version before it has left its KV of the same tokens in the
same places.

Which version a session gets depends on its name only: of these sessions' names the share is the same in every
run.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections import defaultdict
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from loadtests.harness.figures import Bar, finish, parser, print_table, report
from loadtests.harness.stack import Ask, ConstantLoad, Exchange, exchange, running_stack, variant
from memserve.client import Answer, AsyncClient
from memserve.demo import facts
from memserve.demo.adapters import held_facts
from memserve.domain import Alias

MODULE, REHEARSAL = "town", "rehearsal"
ADAPTERS = {1: "harbour", 2: "observatory"}
# Other digests than the demo's own modules have.
SCALE = 0.99
ASKERS = 8
# Percent.
WEIGHTS = {1: 70.0, 2: 30.0}
SESSIONS = 1000
# Sessions that ask a second time.
RETURNING, QUICK_RETURNING = SESSIONS, 100
SHARE_POINTS = 3.0
# Four blocks and more.
SYSTEM_TOKENS = 160
HANDBOOK_TOKENS = 1500
HANDBOOKS = 4
# What follows a prefix's last full block is computed again, the question among it.
OWN_CACHED_AT_LEAST = 0.8

Prompt = tuple[str, str]
Tokens = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """What each version answers, cold and undisturbed. answers: by digest and prompt. prompts: those that
    tell the versions apart.
    """

    digests: dict[int, str]
    answers: dict[tuple[str, Prompt], Tokens]
    prompts: list[Prompt]
    cached_tokens: int


@dataclass(frozen=True, slots=True)
class Change:
    """A change of the alias. version: the one that has all of its traffic from then on, None for a split.
    Times on the monotonic clock.
    """

    name: str
    version: int | None
    called_s: float
    done_s: float


@dataclass(frozen=True, slots=True)
class HandbookAsk:
    """turn: 0 the first of its version, 1 the same worker again, 2 the other worker. after_rollback: the
    version has been live before.
    """

    version: int
    handbook: int
    turn: int
    after_rollback: bool
    exchange: Exchange


@dataclass
class Life:
    """What was seen under load."""

    exchanges: list[Exchange] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)
    handbooks: list[HandbookAsk] = field(default_factory=list)
    gate_s: float = 0.0


@dataclass
class Traffic:
    """What the askers ask: the prompts in rotation, for a session of those that wait, or for none."""

    prompts: Sequence[Prompt]
    sessions: list[str] = field(default_factory=list)

    def next_ask(self, number: int) -> Ask:
        system, question = self.prompts[number % len(self.prompts)]
        return Ask(question, MODULE, system=system, session=self.sessions.pop(0) if self.sessions else "")


async def rehearse(client: AsyncClient, folders: dict[int, Path]) -> Rehearsal:
    """Ask each prompt of each version, one after the other; then delete the versions, so that they are new
    again.
    """
    digests = {
        number: (await client.modules.publish(REHEARSAL, folders[number])).digest for number in folders
    }
    answers: dict[tuple[str, Prompt], Tokens] = {}
    cached_tokens = 0
    for prompt in candidates():
        for number, digest in digests.items():
            done = await exchange(client, Ask(prompt[1], f"{REHEARSAL}@{number}", system=prompt[0]))
            if done.answer is None:
                raise SystemExit(f"a question of the rehearsal failed: {done.failure}")
            answers[digest, prompt] = done.answer.token_ids
            cached_tokens += done.answer.usage.cached.total
    for number in digests:
        await client.modules.delete(REHEARSAL, number)
    prompts = [
        prompt for prompt in candidates() if answers[digests[1], prompt] != answers[digests[2], prompt]
    ]
    return Rehearsal(digests, answers, prompts, cached_tokens)


def candidates() -> list[Prompt]:
    """A question for each fact of both adapters, in a phrasing that they were not trained on: bare, and under
    a system text of its own.
    """
    questions = [fact.held_out_questions[0] for adapter in ADAPTERS.values() for fact in held_facts(adapter)]
    systems = [facts.handbook(1000 + place, SYSTEM_TOKENS).text for place in range(len(questions))]
    return [("", question) for question in questions] + list(zip(systems, questions, strict=True))


async def live(
    client: AsyncClient, folders: dict[int, Path], prompts: Sequence[Prompt], returning: int
) -> Life:
    """Push, promote, split and roll back while the askers ask."""
    life = Life()
    traffic = Traffic(prompts)

    async def change(name: str, version: int | None, call: Awaitable[Alias]) -> None:
        report(f"under load  {name}")
        called_s = time.monotonic()
        await call
        life.changes.append(Change(name, version, called_s, time.monotonic()))

    first = await client.modules.publish(MODULE, folders[1])
    await client.modules.promote(MODULE, first.version)
    async with ConstantLoad(client, ASKERS, traffic.next_ask, life.exchanges) as load:
        rounds = 2 * len(prompts)
        report("under load  version 1 is live")
        await asyncio.gather(load.answered(rounds), ask_handbooks(client, life, 1))
        report("under load  push")
        second = await client.modules.publish(MODULE, folders[2])
        report("under load  gate")
        started_s = time.monotonic()
        await client.modules.gate(MODULE, second.version)
        life.gate_s = time.monotonic() - started_s
        await change("promote", 2, client.modules.promote(MODULE, second.version))
        await asyncio.gather(load.answered(rounds), ask_handbooks(client, life, 2))
        await change("split", None, client.modules.split(MODULE, WEIGHTS))
        names = [f"session-{number}" for number in range(SESSIONS)]
        traffic.sessions = names + names[:returning]
        while traffic.sessions:
            await load.answered(ASKERS)
        await load.answered(ASKERS)
        await change("rollback", 2, client.modules.rollback(MODULE))
        await load.answered(rounds)
        await change("rollback", 1, client.modules.rollback(MODULE))
        await asyncio.gather(load.answered(rounds), ask_handbooks(client, life, 1, after_rollback=True))
    return life


async def ask_handbooks(
    client: AsyncClient, life: Life, version: int, *, after_rollback: bool = False
) -> None:
    """Each handbook twice of one worker, then of the other; which of them is the first alternates."""
    workers = sorted(worker.worker_id for worker in (await client.status()).workers)
    for number in range(HANDBOOKS):
        book = facts.handbook(number, HANDBOOK_TOKENS)
        [question] = facts.handbook_questions(book, number, 1)
        first, other = workers[number % 2], workers[1 - number % 2]
        for turn, worker_id in enumerate((first, first, other)):
            done = await exchange(client, Ask(question.text, MODULE, worker_id=worker_id, system=book.text))
            life.handbooks.append(HandbookAsk(version, number, turn, after_rollback, done))


def answered_in(life: Life) -> list[tuple[Exchange, Answer]]:
    return [(done, done.answer) for done in life.exchanges if done.answer is not None]


def judged(answered: Sequence[tuple[Exchange, Answer]], rehearsal: Rehearsal) -> tuple[int, int, int]:
    """Returns receipts without exactly one version, answers that are not that version's, and those of them
    that are the other version's.
    """
    receipts = wrong = others = 0
    digests = set(rehearsal.digests.values())
    for done, answer in answered:
        whose = {digest for digest in digests if rehearsal.answers[digest, done.prompt] == answer.token_ids}
        receipts += len(done.digests) != 1 or done.digests[0] not in digests
        wrong += not whose & set(done.digests)
        others += bool(whose) and not whose & set(done.digests)
    return receipts, wrong, others


def late_or_early(life: Life, digests: dict[int, str]) -> int:
    """Answers whose version was not the alias's at any moment between their request and their end."""
    wrong = 0
    numbers = {digest: number for number, digest in digests.items()}
    for done in life.exchanges:
        if done.answer is None:
            continue
        possible = {1} if done.started_s < life.changes[0].done_s else set()
        for change, following in zip(life.changes, [*life.changes[1:], None], strict=True):
            if done.ended_s >= change.called_s and (following is None or done.started_s <= following.done_s):
                possible |= {change.version} if change.version else set(WEIGHTS)
        wrong += any(numbers.get(digest) not in possible for digest in done.digests)
    return wrong


def split_figures(life: Life, digests: dict[int, str]) -> dict[str, float]:
    """share: of the second version, in the sessions' first answers. returned: sessions that asked again.
    moved: that had both.
    """
    asked: dict[str, list[Exchange]] = defaultdict(list)
    for done in life.exchanges:
        if done.ask.session:
            asked[done.ask.session].append(done)
    second = sum(turns[0].digests == (digests[2],) for turns in asked.values())
    moved = sum(len({turn.digests for turn in turns}) > 1 for turns in asked.values())
    return {
        "share": second / SESSIONS,
        "returned": sum(len(turns) > 1 for turns in asked.values()),
        "moved": moved,
    }


def changed_by_the_rollback(life: Life) -> tuple[int, int]:
    """Returns the prompts that were asked before the promotion and after the rollback, and those whose tokens
    differ.
    """
    promoted, rolled_back = life.changes[0].called_s, life.changes[-1].done_s
    before: dict[Prompt, set[Tokens]] = defaultdict(set)
    after: dict[Prompt, set[Tokens]] = defaultdict(set)
    for done in life.exchanges:
        if done.answer is not None and done.ended_s < promoted:
            before[done.prompt].add(done.answer.token_ids)
        elif done.answer is not None and done.started_s > rolled_back:
            after[done.prompt].add(done.answer.token_ids)
    both = before.keys() & after.keys()
    return len(both), sum(before[prompt] != after[prompt] or len(before[prompt]) != 1 for prompt in both)


def handbook_figures(asks: Sequence[HandbookAsk]) -> dict[str, float]:
    """crossed_tokens: cached at a version's very first ask. own_share: cached at its second, of the prompt,
    the least of all.

    differing: handbooks whose tokens, of one version, were not equal at every ask, before the promotion and
    after the rollback.
    """
    tokens: dict[tuple[int, int], set[Tokens]] = defaultdict(set)
    crossed, own = 0, [1.0]
    for ask in asks:
        answer = ask.exchange.answer
        if answer is None:
            continue
        tokens[ask.version, ask.handbook].add(answer.token_ids)
        if ask.turn == 0 and not ask.after_rollback:
            crossed += answer.usage.cached.total
        if ask.turn == 1:
            own.append(answer.usage.cached.total / answer.usage.prompt_tokens)
    return {
        "crossed_tokens": crossed,
        "own_share": min(own),
        "differing": sum(len(answers) > 1 for answers in tokens.values()),
    }


async def run(address: str, folder: Path, quick: bool) -> tuple[Rehearsal, Life]:
    folders = {
        number: variant(name, folder / name, scale=SCALE, probes=not quick)
        for number, name in ADAPTERS.items()
    }
    async with AsyncClient(address) as client:
        report("each prompt of each version, on a quiet memserve")
        rehearsal = await rehearse(client, folders)
        return rehearsal, await live(
            client, folders, rehearsal.prompts, QUICK_RETURNING if quick else RETURNING
        )


def figures_of(rehearsal: Rehearsal, life: Life) -> dict[str, object]:
    """What is printed beside the bars."""
    answered = answered_in(life)
    _, _, others = judged(answered, rehearsal)
    split = split_figures(life, rehearsal.digests)
    span_s = max(done.ended_s for done in life.exchanges) - min(done.started_s for done in life.exchanges)
    return {
        "requests": len(life.exchanges),
        "requests_per_s": len(life.exchanges) / span_s,
        "prompts_that_tell_the_versions_apart": len(rehearsal.prompts),
        "prompt_tokens_cached_in_the_rehearsal": rehearsal.cached_tokens,
        "answers_from_a_cached_prefix": sum(answer.usage.cached.total > 0 for _, answer in answered),
        "answers_under_way_during_a_change": sum(
            any(done.started_s < change.done_s <= done.ended_s for change in life.changes)
            for done, _ in answered
        ),
        "wrong_answers_that_are_the_other_versions": others,
        "gate_under_load_s": life.gate_s,
        **{
            f"{change.name}_to_{change.version or 'both'}_s": change.done_s - change.called_s
            for change in life.changes
        },
        "sessions": SESSIONS,
        "sessions_that_asked_again": split["returned"],
        "share_of_version_2": split["share"],
    }


def bars_of(rehearsal: Rehearsal, life: Life, failures: Sequence[str]) -> list[Bar]:
    receipts, wrong, _ = judged(answered_in(life), rehearsal)
    split = split_figures(life, rehearsal.digests)
    compared, differing = changed_by_the_rollback(life)
    handbooks = handbook_figures(life.handbooks)
    return [
        Bar("failed requests", len(failures), at_most=0),
        Bar("receipts that do not name exactly one of the versions", receipts, at_most=0),
        Bar("answers that are not those of the version on their receipt", wrong, at_most=0),
        Bar(
            "answers of a version that was not the alias's", late_or_early(life, rehearsal.digests), at_most=0
        ),
        Bar(
            "points between the split and its weights",
            abs(split["share"] * 100 - WEIGHTS[2]),
            at_most=SHARE_POINTS,
        ),
        Bar("sessions that did not keep their version", split["moved"], at_most=0),
        Bar(
            "prompts compared before the promotion and after the rollback",
            compared,
            at_least=len(rehearsal.prompts),
        ),
        Bar("prompts answered differently after the rollback", differing, at_most=0),
        Bar("tokens cached at a version's first ask of a handbook", handbooks["crossed_tokens"], at_most=0),
        Bar(
            "share of a handbook that a version's second ask finds cached",
            handbooks["own_share"],
            at_least=OWN_CACHED_AT_LEAST,
        ),
        Bar("handbooks that a version answered differently", handbooks["differing"], at_most=0),
    ]


def main() -> int:
    arguments = parser("module_lifecycle", __doc__).parse_args()
    with running_stack(workers=2) as stack:
        rehearsal, life = asyncio.run(run(stack.address, stack.settings.data / "variants", arguments.quick))
    asked = (*life.exchanges, *(ask.exchange for ask in life.handbooks))
    failures = [done.failure for done in asked if done.answer is None]
    figures = figures_of(rehearsal, life)
    print_table(
        ("", "figure"), [(name.replace("_", " "), f"{figure:.4g}") for name, figure in figures.items()]
    )
    print()
    return finish(
        bars_of(rehearsal, life, failures),
        {**figures, "failures": sorted(set(failures))[:5]},
        arguments.json,
    )


if __name__ == "__main__":
    sys.exit(main())
