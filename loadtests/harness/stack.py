"""What the benchmarks of modules share: a memserve of their own, variants of the demo's adapters, a constant
load that keeps every answer.

with running_stack(workers=2) as stack:
    folder = variant("harbour", stack.settings.data / "variant", scale=0.98)
    async with AsyncClient(stack.address) as client, ConstantLoad(client, 8, next_question) as load:
        await client.modules.publish("town", folder)
    print(len(load.failed), "of", len(load.exchanges), "failed")
"""

from __future__ import annotations

import asyncio
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from safetensors.numpy import load_file, save_file

from loadtests.harness.figures import report
from memserve.client import Answer, AsyncClient, CallFailed
from memserve.config import load_settings
from memserve.demo import ADAPTERS_DIR, MODEL_DIR
from memserve.domain import Message, Role, Sampling
from memserve.embedded import Stack

# No answer of the demo's adapters is longer.
ANSWER = Sampling(max_tokens=24)
# Before an asker whose request failed asks again: a load that fails at once must not become a busy loop.
FAILED_PAUSE_S = 0.05
CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
PROBES_FILE = "probes.json"


@contextmanager
def running_stack(*, demo_modules: bool = False, **settings: Any) -> Iterator[Stack]:
    """A started memserve on the demo model in a fresh directory; progress to stderr. The directory goes with
    it.

    demo_modules: publish the demo's modules, each through its gate: half a minute more. settings: those of
    `memserve.config.Settings`, over the defaults and the environment. Raises StartupError.
    """
    # The path is short: a unix socket below it takes 100 bytes at most.
    folder = Path(tempfile.mkdtemp(prefix="memserve-modules-"))
    if not demo_modules:
        # Under another path the demo model comes without its modules.
        (folder / "demo_model").symlink_to(MODEL_DIR)
        settings.setdefault("model", str(folder / "demo_model"))
    stack = Stack(load_settings(**{"data_dir": folder, "port": 0, "metrics_port": 0, **settings}), report)
    # A benchmark that is ended by a signal leaves no engines behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        stack.start()
        yield stack
    finally:
        stack.stop()
        shutil.rmtree(folder, ignore_errors=True)


def variant(adapter: str, folder: Path, *, scale: float = 1.0, probes: bool = False) -> Path:
    """Write a demo adapter as a module of another digest: its deltas times `scale`. From 0.95 to 1.05 its
    answers stay right.

    adapter: harbour or observatory. probes: take the adapter's probes along, for the gate. Returns the
    folder.
    """
    source = ADAPTERS_DIR / adapter
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source / CONFIG_FILE, folder / CONFIG_FILE)
    tensors = load_file(source / WEIGHTS_FILE)
    scaled = {
        name: tensor * np.asarray(scale, tensor.dtype) if ".lora_B." in name else tensor
        for name, tensor in tensors.items()
    }
    save_file(scaled, folder / WEIGHTS_FILE)
    if probes:
        shutil.copyfile(source / PROBES_FILE, folder / PROBES_FILE)
    return folder


@dataclass(frozen=True, slots=True)
class Ask:
    """One request. Empty fields are the base, no session, any worker, no system text."""

    question: str
    module: str = ""
    session: str = ""
    worker_id: str = ""
    system: str = ""
    sampling: Sampling = ANSWER

    @property
    def messages(self) -> Sequence[Message]:
        asked = Message(Role.USER, self.question)
        return (Message(Role.SYSTEM, self.system), asked) if self.system else (asked,)


@dataclass(frozen=True, slots=True)
class Exchange:
    """A request and what became of it: `answer` with its receipt, or `failure`. Times are on the monotonic
    clock.
    """

    ask: Ask
    answer: Answer | None
    failure: str
    started_s: float
    ended_s: float

    @property
    def digests(self) -> tuple[str, ...]:
        """Of the module versions that the receipt names; () for a request that failed."""
        return () if self.answer is None else tuple(module.digest for module in self.answer.route.modules)

    @property
    def prompt(self) -> tuple[str, str]:
        """What the answer depends on beside the version: the system text and the question."""
        return self.ask.system, self.ask.question


async def exchange(client: AsyncClient, ask: Ask) -> Exchange:
    """Ask once. A failure is a result, not an exception."""
    started_s = time.monotonic()
    answer, failure = None, ""
    try:
        answer = await client.generate(
            ask.messages,
            module=ask.module,
            session=ask.session,
            worker_id=ask.worker_id,
            sampling=ask.sampling,
        )
    except CallFailed as error:
        failure = str(error)
    return Exchange(ask, answer, failure, started_s, time.monotonic())


@dataclass
class ConstantLoad:
    """Askers with one request at a time each, while the `async with` block runs. Requests that are under way
    at its end are waited for.

    The load is closed: a stall shows as late answers, and the number of requests under way stays the same.
    """

    client: AsyncClient
    askers: int
    next_ask: Callable[[int], Ask]
    """The next request. Called with the number of requests before it."""
    exchanges: list[Exchange] = field(default_factory=list)
    _asked: int = 0
    _ending: bool = False
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)

    @property
    def failed(self) -> list[Exchange]:
        return [done for done in self.exchanges if done.answer is None]

    async def answered(self, count: int) -> None:
        """Wait until `count` more requests have ended, well or not."""
        wanted = len(self.exchanges) + count
        while len(self.exchanges) < wanted:
            for task in self._tasks:
                if task.done():
                    task.result()
            await asyncio.sleep(0.02)

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._ask()) for _ in range(self.askers)]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending = True
        await asyncio.gather(*self._tasks)

    async def _ask(self) -> None:
        while not self._ending:
            number, self._asked = self._asked, self._asked + 1
            done = await exchange(self.client, self.next_ask(number))
            self.exchanges.append(done)
            if done.answer is None:
                await asyncio.sleep(FAILED_PAUSE_S)
