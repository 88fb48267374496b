"""Hostile modules, hostile calls, and KV across versions: the right status with a reason, the store
unchanged, the engines alive.

A real memserve with two workers, through the public API. Every case of `uploads.py`, and calls that ask
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

import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc

from loadtests.harness.figures import Bar, finish, parser, print_table, report
from loadtests.modules.module_hostile.calls import Case, hostile_calls, publish
from loadtests.modules.module_hostile.stack import Fleet, held_by, sound_stack
from loadtests.modules.module_hostile.uploads import hostile_uploads
from loadtests.modules.module_hostile.version_kv import Ask, ask_versions, engine_cached_tokens
from memserve.client import CallFailed, Client
from memserve.demo import MODEL_DIR
from memserve.embedded import Stack
from memserve.model.files import open_model

STATUS_CHARS, SHOWN_CHARS = 25, 110
# Of a prompt, what its own KV must give back: the last tokens are always computed.
OWN_SHARE = 0.95


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a case."""

    case: Case
    right: bool
    """Whether it was refused as it should be."""
    status: str
    reason: str
    changed: bool
    """Whether the store changed."""
    dead: int
    """Processes that have ended, and workers that do not answer."""


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
