"""One simulated worker: a waiting room, an engine that batches continuously, and its caches.

The engine does not go step by step. Between two changes of its batch all steps are alike, and their time has
a closed form; so a request costs about three events.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter, OrderedDict, deque
from collections.abc import Iterator

from loadtests.simulator.caches import DeviceCache, Holders, LruTier
from loadtests.simulator.jobs import ADAPTER, Ended, Job, Machine, Report
from memserve.bench.trace import BLOCK_TOKENS
from memserve.policy.routing.forecast import Held, tokens_to_fetch
from memserve.policy.routing.load import WaitingTime, WorkerLoad
from memserve.policy.routing.waiting_room import Waiting, WaitingRoom

WINDOW_S = 0.25
"""The engine gets the next request when it has less than this to compute."""
RATE_MEMORY = 0.95


class SimulatedWorker:
    """`next_s` says when it wants to be advanced."""

    def __init__(
        self, number: int, machine: Machine, holders: Holders, redis: LruTier, *, rooms: bool
    ) -> None:
        """rooms: whether requests wait in a waiting room, or are pushed into the engine's own queue."""
        self.name = f"w{number}"
        self.next_s = math.inf
        self.machine = machine
        self._bit = 1 << number
        self._holders = holders
        self._redis = redis
        self.room: WaitingRoom[Job] | None = WaitingRoom() if rooms else None
        self._device = DeviceCache(machine.device_blocks, self._left_device)
        self._host = LruTier(machine.host_blocks, self._left_host)
        self._queue: deque[Job] = deque()
        self._prefilling: deque[Job] = deque()
        self._answers: list[tuple[int, int, Job]] = []
        self._kv_tokens = 0
        self._step = 0
        # The segment under way: when it began, its steps, and the prefill that it does.
        self._from_s, self._steps, self._prefill_s = 0.0, 0, 0.0
        self._fetch_free_s = 0.0
        self._released, self._released_in_s, self._released_at_s = 0.0, 0.0, 0.0
        self._slots: OrderedDict[str, None] = OrderedDict()
        self._busy: Counter[str] = Counter()
        self._report: Report | None = None
        self.jobs: dict[int, Job] = {}
        """All that it has, by number."""

    def report(self, now_s: float) -> Report:
        """Its load as it would report it. The same object until something changes."""
        if self._report is None:
            waiting = WaitingTime(now_s)
            in_engine = (*self._prefilling, *self._queue)
            tokens = sum(job.arrival.prompt_tokens - job.cached_tokens for job in in_engine)
            busy = set(self._busy)
            busy.update(job.arrival.adapter for job in self._queue if job.arrival.adapter)
            for item in self._items():
                waiting.add(item.band, item.deadline_s, item.own_s)
                tokens += item.tokens
                if item.what.arrival.adapter:
                    busy.add(item.what.arrival.adapter)
            load = WorkerLoad(
                worker=self.name,
                at_s=now_s,
                costs=self.machine.costs,
                waiting=waiting,
                prefill_s=self._prefill_left_s(now_s),
                answers=len(self._answers),
                kv_tokens=self._kv_tokens,
                free_tokens=self._device.free_blocks * BLOCK_TOKENS,
                released_tokens_per_s=self._released / self._released_in_s if self._released_in_s else 0.0,
                fetch_free_s=self._fetch_free_s,
                fetch_tokens_per_s=self.machine.fetch_tokens_per_s,
                requests=len(self.jobs),
                queued_tokens=tokens,
            )
            self._report = Report(load, frozenset(self._slots), busy)
        return self._report

    def offer(self, job: Job, now_s: float) -> Ended:
        """A gateway sends a request."""
        ended = Ended()
        self._report = None
        self.jobs[job.number] = job
        job.offers += 1
        job.offered_s = now_s
        self._plan_fetch(job, now_s)
        self._price(job, now_s)
        if self.room is None:
            self._queue.append(job)
        else:
            arrival = job.arrival
            item = Waiting(
                what=job,
                tenant=arrival.tenant,
                band=arrival.band,
                deadline_s=job.deadline_s,
                own_s=job.own_s,
                tokens=arrival.prompt_tokens - job.cached_tokens,
                arrived_s=now_s,
                mark=job.number,
            )
            self._drop(self.room.offer(item, now_s, self._engine_s(now_s)), ended)
        if job.number in self.jobs and job.fetch_blocks:
            seconds = job.fetch_blocks * BLOCK_TOKENS / self.machine.fetch_tokens_per_s
            self._fetch_free_s = job.fetch_from_s + seconds
        self._interrupt(now_s, ended)
        return ended

    def advance(self, now_s: float) -> Ended:
        """The segment under way is over."""
        ended = Ended()
        self._report = None
        self._complete(now_s, ended)
        self._begin(now_s, ended)
        return ended

    def die(self) -> list[Job]:
        """Its KV is lost. Returns the requests that it had."""
        for block in [block for block, mask in self._holders.masks.items() if mask & self._bit]:
            self._holders.drop(block, self._bit)
        return list(self.jobs.values())

    # The engine.

    def _complete(self, now_s: float, ended: Ended) -> None:
        """Apply the segment that ends now."""
        if not self._steps:
            return
        self._step += self._steps
        self._kv_tokens += len(self._answers) * self._steps
        done_s, self._steps = self._prefill_s, 0
        while self._prefilling and done_s >= 0:
            job = self._prefilling[0]
            if job.left_s > done_s + 1e-9:
                job.left_s -= done_s
                break
            done_s -= job.left_s
            self._prefilling.popleft()
            self._first_token(job, now_s, ended)
        answers = self._answers
        while answers and answers[0][0] <= self._step:
            self._finish(heapq.heappop(answers)[2], now_s, ended)

    def _first_token(self, job: Job, now_s: float, ended: Ended) -> None:
        job.first_s = now_s
        blocks = job.full_blocks
        for block in self._device.publish(blocks[job.hits :]):
            self._holders.add(block, self._bit)
        if self.machine.host_blocks:
            for block in blocks:
                self._holders.add(block, self._bit)
            self._host.put(blocks)
        self._redis.put(blocks)
        self._kv_tokens += job.arrival.prompt_tokens + 1
        end = self._step + job.arrival.output_tokens - 1
        heapq.heappush(self._answers, (end, job.number, job))

    def _finish(self, job: Job, now_s: float, ended: Ended) -> None:
        arrival = job.arrival
        tokens = arrival.prompt_tokens + arrival.output_tokens
        self._kv_tokens -= tokens
        self._device.release(job.full_blocks, job.total_blocks - len(job.full_blocks))
        self._released = RATE_MEMORY * self._released + tokens
        self._released_in_s = RATE_MEMORY * self._released_in_s + now_s - self._released_at_s
        self._released_at_s = now_s
        if arrival.adapter:
            self._busy[arrival.adapter] -= 1
            if not self._busy[arrival.adapter]:
                del self._busy[arrival.adapter]
        del self.jobs[job.number]
        ended.finished.append(job)

    def _begin(self, now_s: float, ended: Ended) -> None:
        """Let requests in, and begin the next segment."""
        self._dispatch(now_s, ended)
        self._admit(now_s)
        answers, prefilling = len(self._answers), self._prefilling
        if not answers and not prefilling:
            self.next_s = self._wake_s(now_s)
            return
        costs = self.machine.costs
        fixed_s = costs.fixed_s(answers, self._kv_tokens)
        steps = self._answers[0][0] - self._step if answers else 1 << 30
        if prefilling:
            room_s = max(costs.step_limit_s - fixed_s, 0.05 * costs.step_limit_s)
            steps = max(1, min(steps, math.ceil(prefilling[0].left_s / room_s - 1e-9)))
            left_s = sum(job.left_s for job in prefilling)
            self._prefill_s = min(steps * room_s, left_s)
        else:
            self._prefill_s = 0.0
            if (wake_s := self._wake_s(now_s)) < math.inf:
                steps = max(1, min(steps, math.ceil((wake_s - now_s) / fixed_s)))
        growth_s = costs.kv_token_s * answers * steps * (steps - 1) / 2
        self._from_s, self._steps = now_s, steps
        self.next_s = now_s + steps * fixed_s + growth_s + self._prefill_s

    def _interrupt(self, now_s: float, ended: Ended) -> None:
        """A request has come. A segment without prefill ends at its next step; with prefill it goes on."""
        if not self._steps:
            self._begin(now_s, ended)
        elif not self._prefill_s and self._steps > 1 and (self._queue or self.room):
            step_s = (self.next_s - self._from_s) / self._steps
            done = min(self._steps, math.floor((now_s - self._from_s) / step_s) + 1)
            self._steps, self.next_s = done, self._from_s + done * step_s

    def _wake_s(self, now_s: float) -> float:
        """An engine that idles goes on when what a request waits for has come from Redis."""
        ready = [self._ready_s(job) for job in self._queue]
        if self.room is not None:
            ready += [self._ready_s(item.what) for item in self._items()]
        return min((max(at_s, now_s + 1e-3) for at_s in ready), default=math.inf)

    def _admit(self, now_s: float) -> None:
        """From the engine's queue into its batch: in order, but for those that lack a slot or wait for KV."""
        passed: list[Job] = []
        while self._queue and len(self._answers) + len(self._prefilling) < self.machine.sequences:
            job = self._queue.popleft()
            adapter = job.arrival.adapter
            lacks_slot = bool(adapter) and adapter not in self._busy and len(self._busy) >= self.machine.slots
            if lacks_slot or (self._ready_s(job) > now_s and (self._prefilling or self._queue or passed)):
                passed.append(job)
                continue
            self._price(job, now_s)
            blocks = job.full_blocks
            job.hits = next((n for n, block in enumerate(blocks) if block not in self._device), len(blocks))
            if not self._device.reserve(blocks[: job.hits], job.total_blocks):
                passed.append(job)
                break
            job.left_s = self.machine.costs.prefill_s(job.cached_tokens, job.arrival.prompt_tokens)
            if adapter:
                job.left_s += self._take_slot(adapter)
            self._prefilling.append(job)
        self._queue.extendleft(reversed(passed))

    def _take_slot(self, adapter: str) -> float:
        """Returns the seconds of loading."""
        self._busy[adapter] += 1
        loaded = adapter in self._slots
        self._slots[adapter] = None
        self._slots.move_to_end(adapter)
        while len(self._slots) > self.machine.slots:
            del self._slots[next(each for each in self._slots if each not in self._busy)]
        return 0.0 if loaded else ADAPTER.load_s

    # The waiting room.

    def _dispatch(self, now_s: float, ended: Ended) -> None:
        room = self.room
        while room and self._engine_s(now_s) < WINDOW_S:
            idle = not self._prefilling and not self._queue
            item, late = room.take(now_s, self._engine_s(now_s), lambda item: self._may_go(item, now_s, idle))  # noqa: B023
            self._drop(late, ended)
            if item is None:
                return
            self._queue.append(item.what)

    def _may_go(self, item: Waiting[Job], now_s: float, idle: bool) -> bool:
        job = item.what
        adapter = job.arrival.adapter
        if adapter and adapter not in self._busy and len(self._busy) >= self.machine.slots:
            return False
        if self._ready_s(job) > now_s and not idle:
            return False
        self._price(job, now_s)
        item.own_s = job.own_s
        return True

    def _drop(self, items: list[Waiting[Job]], ended: Ended) -> None:
        for item in items:
            job = item.what
            del self.jobs[job.number]
            ended.refused.append(job)

    def _items(self) -> Iterator[Waiting[Job]]:
        return iter(self.room) if self.room is not None else iter(())

    # What a request costs here.

    def _plan_fetch(self, job: Job, now_s: float) -> None:
        """Which blocks come from Redis while the request waits."""
        arrival, full = job.arrival, job.full_blocks
        job.fetch_blocks = 0
        held = self._held(full)
        shared = held + self._redis.leading(full[held:])
        if shared <= held:
            return
        wait_s = self._engine_s(now_s)
        if self.room is not None:
            wait_s += sum(
                item.own_s
                for item in self._items()
                if (item.band, item.deadline_s) < (arrival.band, job.deadline_s)
            )
        load = self.report(now_s).load
        self._report = None
        tokens, _ = tokens_to_fetch(load, Held(held * BLOCK_TOKENS, shared * BLOCK_TOKENS), wait_s, now_s)
        job.fetch_to = tokens // BLOCK_TOKENS
        job.fetch_blocks = job.fetch_to - held
        job.fetch_from_s = max(now_s, self._fetch_free_s)

    def _price(self, job: Job, now_s: float) -> None:
        """What it would compute if it began now, or when its blocks have come."""
        costs, prompt = self.machine.costs, job.arrival.prompt_tokens
        blocks = self._held(job.full_blocks)
        if job.fetch_blocks:
            blocks = max(blocks, job.fetch_to - self._missing(job, now_s))
        job.cached_tokens = min(blocks * BLOCK_TOKENS, (prompt - 1) // BLOCK_TOKENS * BLOCK_TOKENS)
        job.alone_s = costs.prefill_s(job.cached_tokens, prompt)
        if job.arrival.adapter and job.arrival.adapter not in self._slots:
            job.alone_s += ADAPTER.load_s
        job.own_s = costs.drain_s(job.alone_s, len(self._answers), self._kv_tokens)

    def _held(self, blocks: tuple[int, ...]) -> int:
        """Leading blocks in the device's memory or the host's."""
        device, host = self._device, self._host
        for depth, block in enumerate(blocks):
            if block not in device and block not in host:
                return depth
        return len(blocks)

    def _missing(self, job: Job, now_s: float) -> int:
        """Blocks that are still to come. While the engine is busy, the request waits for them."""
        if self._prefilling or now_s <= job.offered_s:
            return 0
        rate = self.machine.fetch_tokens_per_s / BLOCK_TOKENS
        return max(0, min(job.fetch_blocks, math.ceil(job.fetch_blocks - (now_s - job.fetch_from_s) * rate)))

    def _ready_s(self, job: Job) -> float:
        if not job.fetch_blocks:
            return 0.0
        return job.fetch_from_s + job.fetch_blocks * BLOCK_TOKENS / self.machine.fetch_tokens_per_s

    def _prefill_left_s(self, now_s: float) -> float:
        """Of the prompts in the batch, and of those in the engine's queue."""
        left_s = sum(job.left_s for job in self._prefilling) + sum(job.alone_s for job in self._queue)
        if self._steps and self._prefill_s:
            left_s -= self._prefill_s * min(1.0, (now_s - self._from_s) / (self.next_s - self._from_s))
        return max(left_s, 0.0)

    def _engine_s(self, now_s: float) -> float:
        """How long the engine is busy with the prompts that it has."""
        prefill_s = self._prefill_left_s(now_s)
        return self.machine.costs.drain_s(prefill_s, len(self._answers), self._kv_tokens)

    def _left_device(self, block: int) -> None:
        if block not in self._host:
            self._holders.drop(block, self._bit)

    def _left_host(self, block: int) -> None:
        if block not in self._device:
            self._holders.drop(block, self._bit)
