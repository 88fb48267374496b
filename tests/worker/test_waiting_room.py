"""The waiting room of a worker, on the real clock. The engine is counted, not run."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from memserve.domain import Priority, RefusalReason, Sampling
from memserve.domain.worker_calls import WorkerRequest
from memserve.errors import Overloaded
from memserve.policy.routing import engine_load
from memserve.policy.routing.costs import EngineCosts
from memserve.policy.routing.engine_load import EngineLoad
from memserve.worker import waiting_room
from memserve.worker.waiting_room import EngineRoom

COSTS = EngineCosts(step_s=1e-3, token_s=1e-3, context_s=0.0, answer_s=0.0, kv_token_s=0.0, step_limit_s=1.0)
LIMIT_S = 10.0
numbers = itertools.count()


def room_of(seats: int = 4, kv_tokens: int = 100_000, wait_s: float = 60.0) -> EngineRoom:
    return EngineRoom(EngineLoad(COSTS, seats, kv_tokens), ttft_s=1.0, wait_s=wait_s)


def asks(tokens: int = 10, tenant: str = "t", **fields: object) -> WorkerRequest:
    return WorkerRequest(
        f"r{next(numbers)}",
        [1] * tokens,
        tenant,
        "salt",
        Sampling(max_tokens=8),
        **fields,  # type: ignore[arg-type]
    )


class Engine:
    """Begins what the room lets in, and holds it until it is told to go on."""

    def __init__(self, room: EngineRoom) -> None:
        self.room = room
        self.begun: list[str] = []
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._may_end: dict[str, asyncio.Event] = {}

    def ask(self, name: str, request: WorkerRequest) -> asyncio.Task[None]:
        self._may_end[name] = asyncio.Event()
        self._tasks[name] = asyncio.create_task(self._run(name, request))
        return self._tasks[name]

    async def _run(self, name: str, request: WorkerRequest) -> None:
        async with self.room.turn(request):
            self.begun.append(name)
            await self._may_end[name].wait()
            self.room.advanced(request.request_id, 1)

    def end(self, name: str) -> None:
        self._may_end[name].set()

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(LIMIT_S):
            while not holds():
                await asyncio.sleep(0.005)


@asynccontextmanager
async def engine(room: EngineRoom) -> AsyncIterator[Engine]:
    running = Engine(room)
    yield running
    for task in running._tasks.values():
        task.cancel()
    await asyncio.gather(*running._tasks.values(), return_exceptions=True)
    assert len(room) == 0
    assert len(room.load) == 0


async def test_requests_wait_while_the_engine_has_prompts_and_go_by_deadline() -> None:
    async with engine(room_of()) as running:
        running.ask("long", asks(tokens=5000))
        await running.until(lambda: running.begun == ["long"])
        running.ask("later", asks(first_token_s=9.0))
        running.ask("sooner", asks(first_token_s=6.0))
        running.ask("high", asks(first_token_s=9.0, priority=Priority.HIGH))
        await running.until(lambda: len(running.room) == 3)
        running.end("long")
        await running.until(lambda: len(running.begun) == 4)
        assert running.begun == ["long", "high", "sooner", "later"]


async def test_what_cannot_be_in_time_is_refused_at_once_and_told_when_to_come_again() -> None:
    async with engine(room_of()) as running:
        running.ask("long", asks(tokens=5000))
        await running.until(lambda: running.begun == ["long"])
        began_s = time.monotonic()
        with pytest.raises(Overloaded) as refusal:
            await running.ask("hopeless", asks(first_token_s=1.0, refuse_late=True))
        assert time.monotonic() - began_s < 0.9
        assert refusal.value.reason == RefusalReason.LATE
        assert 4.0 < refusal.value.retry_after_s < 6.0
        running.ask("would rather be late", asks(first_token_s=1.0))
        await running.until(lambda: len(running.room) == 1)


async def test_what_something_more_important_makes_late_is_refused_then() -> None:
    async with engine(room_of()) as running:
        running.ask("long", asks(tokens=5000))
        await running.until(lambda: running.begun == ["long"])
        waits = running.ask("waits", asks(tokens=1000, first_token_s=8.0, refuse_late=True))
        await running.until(lambda: len(running.room) == 1)
        running.ask("high", asks(tokens=4000, priority=Priority.HIGH))
        with pytest.raises(Overloaded) as refusal:
            await waits
        assert refusal.value.reason == RefusalReason.GAVE_WAY


async def test_a_request_that_is_not_to_wait_begins_or_is_refused() -> None:
    async with engine(room_of()) as running:
        running.ask("begins", asks(tokens=5000, do_not_queue=True))
        await running.until(lambda: running.begun == ["begins"])
        with pytest.raises(Overloaded) as refusal:
            await running.ask("waits", asks(do_not_queue=True))
        assert refusal.value.reason == RefusalReason.WOULD_WAIT


async def test_a_tenant_alone_leaves_a_seat_and_half_of_them_to_another() -> None:
    async with engine(room_of(seats=8)) as running:
        for number in range(9):
            running.ask(f"a{number}", asks(tenant="a"))
        await running.until(lambda: len(running.begun) == 7)
        running.ask("b", asks(tenant="b"))
        await running.until(lambda: "b" in running.begun)
        for number in range(3):
            running.end(f"a{number}")
        await running.until(lambda: len(running.room.load) == 5)
        await asyncio.sleep(0.2)
        assert len(running.room) == 2, "a has four of eight seats while b is there"


async def test_no_prompt_goes_where_the_memory_has_no_room_for_it() -> None:
    async with engine(room_of(kv_tokens=100)) as running:
        running.ask("first", asks(tokens=60))
        running.ask("no room", asks(tokens=60))
        running.ask("fits", asks(tokens=10, first_token_s=9.0))
        await running.until(lambda: running.begun == ["first", "fits"])
        running.end("first")
        running.end("fits")
        await running.until(lambda: "no room" in running.begun)


async def test_a_caller_that_goes_away_leaves_no_trace() -> None:
    async with engine(room_of()) as running:
        running.ask("long", asks(tokens=5000))
        await running.until(lambda: running.begun == ["long"])
        gone = running.ask("gone", asks())
        await running.until(lambda: len(running.room) == 1)
        gone.cancel()
        await running.until(lambda: len(running.room) == 0)
        running._tasks["long"].cancel()
        await running.until(lambda: len(running.room.load) == 0)


async def test_memserves_own_questions_give_way_to_users() -> None:
    async with engine(room_of()) as running:
        running.ask("user", asks(tokens=100))
        running.ask("own", asks(priority=Priority.BACKGROUND))
        await running.until(lambda: running.begun == ["user"])
        await asyncio.sleep(0.2)
        assert running.begun == ["user"], "beside a user's prompt none begins"
        running.ask("user 2", asks())
        running.end("user")
        running.end("user 2")
        await running.until(lambda: "own" in running.begun)
        running.ask("own 2", asks(priority=Priority.BACKGROUND))
        await asyncio.sleep(0.2)
        assert running.begun == ["user", "user 2", "own"], "one at a time while users ask"
        running.end("own")
        await running.until(lambda: running.begun[-1] == "own 2")


async def test_without_users_memserves_own_questions_go_together() -> None:
    async with engine(room_of(seats=32)) as running:
        for number in range(30):
            running.ask(f"own {number}", asks(priority=Priority.BACKGROUND))
        await running.until(lambda: len(running.begun) == 24)
        await asyncio.sleep(0.1)
        assert len(running.begun) == 24, "a quarter of the seats is kept for users"


async def test_a_tenant_that_fills_the_room_is_refused_and_another_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(waiting_room, "WAITING_MAX", 8)
    async with engine(room_of(wait_s=1e6)) as running:
        running.ask("long", asks(tokens=5000, tenant="a"))
        await running.until(lambda: running.begun == ["long"])
        for number in range(7):
            running.ask(f"a{number}", asks(tenant="a", priority=Priority.LOW))
        await running.until(lambda: len(running.room) == 7)
        with pytest.raises(Overloaded) as refusal:
            await running.ask("too many", asks(tenant="a"))
        assert refusal.value.reason == RefusalReason.QUEUE_FULL
        for number in range(2):
            running.ask(f"b{number}", asks(tenant="b"))
        await running.until(lambda: sum(task.done() for task in running._tasks.values()) == 2)
        refused = [task.exception() for task in running._tasks.values() if task.done()]
        reasons = [each.reason for each in refused if isinstance(each, Overloaded)]
        assert reasons == [RefusalReason.QUEUE_FULL] * 2, "one of the low ones has made room"
        assert len(running.room) == 8


async def test_a_worker_that_leaves_hands_back_what_has_not_begun() -> None:
    async with engine(room_of()) as running:
        running.ask("begun", asks(tokens=5000))
        waits = running.ask("waits", asks())
        await running.until(lambda: len(running.room) == 1)
        running.room.leave()
        with pytest.raises(Overloaded) as refusal:
            await waits
        assert refusal.value.reason == RefusalReason.LEAVING
        with pytest.raises(Overloaded):
            await running.ask("comes later", asks())
        running.end("begun")
        await running.until(lambda: len(running.room.load) == 0)


async def test_the_report_has_the_waiting_seconds_by_deadline() -> None:
    async with engine(room_of()) as running:
        running.ask("long", asks(tokens=5000))
        await running.until(lambda: running.begun == ["long"])
        running.ask("waits", asks(tokens=1000, first_token_s=8.0))
        await running.until(lambda: len(running.room) == 1)
        waiting = running.room.waiting(time.monotonic())
        assert waiting.total_s == pytest.approx(1.0, rel=0.1)
        assert waiting.before_s(1, time.monotonic() + 6.0) == 0.0
        assert waiting.before_s(1, time.monotonic() + 9.0) == pytest.approx(1.0, rel=0.1)


async def test_an_idle_worker_forgets_a_stall(monkeypatch: pytest.MonkeyPatch) -> None:
    room = room_of()
    for number in range(20):
        key = f"stalled {number}"
        room.load.began(key, 0.0, tenant="t", band=1, cached_tokens=0, prompt_tokens=100, output_tokens=1)
        room.load.advanced(key, 100.0 * (number + 1), 1)
        room.load.ended(key, 100.0 * (number + 1))
    room.load._since_s = time.monotonic()
    long = asks(tokens=2000, first_token_s=3.0, refuse_late=True)
    async with engine(room) as running:
        with pytest.raises(Overloaded, match="predicted"):
            await running.ask("refused", long)
        monkeypatch.setattr(engine_load, "FORGOTTEN_S", 0.0)
        running.ask("let in", asks(tokens=2000, first_token_s=3.0, refuse_late=True))
        await running.until(lambda: running.begun == ["let in"])
