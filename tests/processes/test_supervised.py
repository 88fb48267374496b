"""What loops goes on whatever its step raises, says so without flooding, is counted, and is the only kind of
loop that there is.
"""

from __future__ import annotations

import ast
import asyncio
import logging
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from memserve.errors import NothingToRollBack, RegistryUnavailable
from memserve.processes.supervised import (
    LOG_EVERY_S,
    LONGEST_PAUSE_S,
    Background,
    _Failures,
    repeat,
    repeating_thread,
)

PACKAGE = Path(__file__).parents[2] / "memserve"

# Tasks and threads that are no endless loops, by file and function: why nobody need supervise them.
ALLOWED = {
    ("processes/supervised.py", "repeating_thread"): "the supervised thread itself",
    (
        "metrics/port.py",
        "serve_metrics",
    ): "the standard library's server, which answers each call in a thread of its own and survives each",
    ("api/grpc/call.py", "_give_up"): "ends one call; whatever it raises says that the call has ended",
    ("api/grpc/connections.py", "leave"): "gRPC's own stop, awaited at the end",
    ("api/http/server.py", "serve"): "uvicorn's server, awaited by `stop`",
    ("api/http/stream.py", "connected"): "waits until the caller goes away, and ends with the call",
    (
        "gateway/modules/gate.py",
        "ask",
    ): "lanes of a TaskGroup, which waits for them and raises what they raise",
    ("gateway/scoring.py", "score_all"): "of a TaskGroup, as those of the gate",
    ("processes/supervised.py", "begin"): "work in the background, kept until it ends; a failure is said",
    (
        "gateway/steps/recall.py",
        "__call__",
    ): "of a TaskGroup: the request ends with the first one that fails",
    (
        "memory/texts/visible.py",
        "begin_mending",
    ): "ends when the local index is whole; settling, a supervised loop, begins it "
    "again where it has ended before",
    ("memory/texts/grouping.py", "grouped"): "awaited: the next item of a stream, and ended with it",
    ("gateway/modules/progress.py", "with_steps"): "awaited: its end is the stream's",
    (
        "worker/modules/room.py",
        "_ensure",
    ): "one load, awaited by whoever waits for the module; its exception is taken by `_loaded`",
    (
        "worker/kv/connector.py",
        "exit_with_parent",
    ): "compares two numbers until they differ, then ends the process; nothing in it can raise",
    ("kv/transport/server.py", "failed"): "tries one server until it answers; every exception is no answer",
    (
        "worker/fleet/generations.py",
        "_leave",
    ): "ends one generation of workers, whatever goes wrong while its answers finish",
    (
        "memory/texts/memory.py",
        "open",
    ): "settling's run, which catches, counts (memserve_journal_*) and backs off by itself; purges, which "
    "catch what a store or the registry raises, and come again in an hour",
    (
        "memory/texts/milvus_lite.py",
        "__init__",
    ): "ends with Milvus Lite's process, whatever happens, and fails every call that waits for an answer; "
    "settling, a supervised loop, starts another one",
    (
        "memory/texts/encoders/cached.py",
        "_ask",
    ): "takes turns until none of a tenant's texts waits; what ends it early is every waiting call's answer",
    (
        "memory/texts/writing.py",
        "write",
    ): "one write, awaited; what it raises is taken by `_ended`",
    ("worker/worker.py", "close"): "the worker's end, which every caller of `close` awaits",
    ("bench/generator.py", "run"): "waits for Ctrl-C, and is cancelled with the run",
    ("bench/generator.py", "_send"): "one request, whose every end is a row; `run` waits for it",
    ("memory/texts/reembedding.py", "_unbroken"): "awaited, also by a caller that is cancelled",
    ("memory/texts/settling.py", "apply"): "one write, replayed from the journal when it fails",
    (
        "embedded/part.py",
        "begin",
    ): "keeps one part of a stack running, whatever the exception; what starts children is a thread of "
    "its own",
}


class Fault(Exception):
    """Of a step."""


async def test_a_step_that_raises_is_said_and_taken_again(caplog: pytest.LogCaptureFixture) -> None:
    taken: list[str] = []
    counted: Counter[str] = Counter()
    done = asyncio.Event()

    async def step() -> None:
        taken.append("step")
        if len(taken) < 4:
            raise Fault("of its own")
        done.set()

    task = asyncio.create_task(repeat("the_step", step, 0.001, lambda loop: counted.update([loop])))
    async with asyncio.timeout(10):
        await done.wait()
    assert counted == {"the_step": 3}
    assert [record.getMessage() for record in caplog.records] == ["the loop 'the_step' failed; it goes on"], (
        "said once, not three times"
    )
    assert "Fault: of its own" in caplog.text
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_somebody_elses_cancellation_does_not_end_a_loop() -> None:
    taken = asyncio.Queue[int]()

    async def step() -> None:
        taken.put_nowait(1)
        waited_for: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waited_for.cancel()  # as gRPC does with the calls of a channel that closes
        await waited_for

    task = asyncio.create_task(repeat("the_step", step, 0.001))
    async with asyncio.timeout(10):
        for _ in range(3):
            await taken.get()
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()


async def test_a_loop_ends_when_it_is_cancelled_in_its_step_and_in_its_pause() -> None:
    for pause_s, inside in ((0.0, asyncio.Event().wait), (60.0, asyncio.Event().is_set)):

        async def step(inside: object = inside) -> None:
            result = inside()  # type: ignore[operator]
            if asyncio.iscoroutine(result):
                await result

        task = asyncio.create_task(repeat("the_step", step, pause_s))
        await asyncio.sleep(0.01)
        task.cancel()
        _, going_on = await asyncio.wait([task], timeout=10)
        assert not going_on


def test_a_thread_whose_step_raises_goes_on_until_it_is_closed() -> None:
    closing, third = threading.Event(), threading.Event()
    taken: list[int] = []

    def step() -> None:
        taken.append(1)
        if len(taken) == 3:
            third.set()
        raise Fault("of its own")

    thread = repeating_thread("the_step", step, 0.001, closing)
    assert third.wait(10)
    closing.set()
    thread.join(10)
    assert not thread.is_alive()


def test_failures_in_a_row_pause_longer_and_a_success_ends_that() -> None:
    failures = _Failures("the_step", 0.25, lambda loop: None)
    pauses = []
    for _ in range(8):
        failures.met(Fault(), 0.0)
        pauses.append(failures.pause_s)
    assert pauses == [0.5, 1.0, 2.0, 4.0, *[LONGEST_PAUSE_S] * 4]
    failures.ended()
    assert failures.pause_s == 0.25
    slow = _Failures("the_step", 600.0, lambda loop: None)
    slow.met(Fault(), 0.0)
    assert slow.pause_s == 600.0


def test_a_failure_is_said_again_after_a_while_with_how_often_it_was(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.ERROR)
    failures = _Failures("the_step", 0.25, lambda loop: None)
    for second in range(int(LOG_EVERY_S) + 1):
        failures.met(Fault(f"at {second}"), float(second))
        failures.ended()
    failures.met(ValueError("another"), LOG_EVERY_S)
    messages = [record.getMessage() for record in caplog.records]
    assert messages == [
        "the loop 'the_step' failed; it goes on",
        f"the loop 'the_step' failed, {int(LOG_EVERY_S)} times since this was said last; it goes on",
        "the loop 'the_step' failed; it goes on",
    ]


def test_a_failure_that_is_foreseen_is_said_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    failures = _Failures("the_step", 0.25, lambda loop: None)
    failures.met(RegistryUnavailable("TimeoutError"), 0.0)
    (record,) = caplog.records
    assert (record.levelname, record.exc_info) == ("WARNING", None)
    assert "the loop 'the_step' could not do its work; it goes on: the registry does not answer" in (
        record.getMessage()
    )


async def test_background_work_is_kept_said_when_it_fails_and_ended_at_the_close(
    caplog: pytest.LogCaptureFixture,
) -> None:
    background = Background(max_tasks=2)

    async def fault() -> None:
        raise Fault("of its own")

    async def fact() -> None:
        raise NothingToRollBack("tone", "live", "a fact is no fault")

    for work in (fault(), fact()):
        await asyncio.wait([background.begin("the work", work)])
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == [
        "the work failed"
    ]
    waiting = [background.begin("waiting", asyncio.Event().wait()) for _ in range(2)]
    assert background.is_full
    await background.close()
    assert all(task.cancelled() for task in waiting)
    await asyncio.sleep(0)
    assert not background.is_full


def test_every_task_and_thread_is_supervised_or_awaited() -> None:
    """One that is neither dies silently. A new one goes through memserve.processes.supervised, or is named
    above with the reason.
    """
    found = set(_started())
    unknown = [
        f"{file}:{line} in {function}: {call}"
        for file, function, line, call in found
        if (file, function) not in ALLOWED
    ]
    assert unknown == []
    assert set(ALLOWED) <= {(file, function) for file, function, _, _ in found}, (
        "what is allowed and no longer there"
    )


def test_loops_have_names_that_are_literals() -> None:
    """They label a metric."""
    for _, _, call in _calls():
        if _name(call.func) in ("repeat", "repeating_thread"):
            assert isinstance(call.args[0], ast.Constant), ast.unparse(call)


def _started() -> Iterator[tuple[str, str, int, str]]:
    for file, function, call in _calls():
        if _name(call.func) in ("create_task", "ensure_future", "Thread"):
            first = call.args[0] if call.args else None
            if not (isinstance(first, ast.Call) and _name(first.func) == "repeat"):
                yield file, function, call.lineno, ast.unparse(call)


def _calls() -> Iterator[tuple[str, str, ast.Call]]:
    for file in sorted(PACKAGE.rglob("*.py")):
        if "pb" in file.relative_to(PACKAGE).parts:
            continue
        for function, node in _with_function(ast.parse(file.read_text(encoding="utf-8")), ""):
            if isinstance(node, ast.Call):
                yield str(file.relative_to(PACKAGE)), function, node


def _with_function(node: ast.AST, function: str) -> Iterator[tuple[str, ast.AST]]:
    for child in ast.iter_child_nodes(node):
        inner = (
            child.name
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) and not function
            else function
        )
        yield inner, child
        yield from _with_function(child, inner)


def _name(func: ast.expr) -> str:
    return func.attr if isinstance(func, ast.Attribute) else func.id if isinstance(func, ast.Name) else ""
