"""What the benchmarks of modules share.

They share a private memserve, variants of the demo's adapters, and a constant load that keeps every answer.

    with running_stack(workers=2) as stack:
        folder = variant("harbour", stack.settings.data / "variant", scale=0.98)
        async with AsyncClient(stack.address) as client, ConstantLoad(client, 8, next_ask) as load:
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

# No answer of the demo's adapters is longer than this.
ANSWER = Sampling(max_tokens=24)
# How long an asker waits after a failed request. A load that fails at once must not become a busy loop.
FAILED_PAUSE_S = 0.05
CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
PROBES_FILE = "probes.json"


@contextmanager
def running_stack(*, demo_modules: bool = False, **settings: Any) -> Iterator[Stack]:
    """A running memserve on the demo model in a fresh directory, which is removed at the end.

    It reports its progress to stderr.

    demo_modules: publish the demo's modules through their gates, which takes half a minute more.
    settings: of `memserve.config.Settings`. They go before the environment and the defaults.
    Raises StartupError.
    """
    # The path is short: a unix socket below it takes 100 bytes at most.
    folder = Path(tempfile.mkdtemp(prefix="memserve-modules-"))
    if not demo_modules:
        # memserve publishes the demo's modules only when the model has the demo model's own path.
        (folder / "demo_model").symlink_to(MODEL_DIR)
        settings.setdefault("model", str(folder / "demo_model"))
    stack = Stack(
        load_settings(**{"data_dir": folder, "port": 0, "http_port": 0, "metrics_port": 0, **settings}),
        report,
    )
    # A benchmark that is ended by a signal leaves no engines behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        stack.start()
        yield stack
    finally:
        stack.stop()
        shutil.rmtree(folder, ignore_errors=True)


def variant(adapter: str, folder: Path, *, scale: float = 1.0, probes: bool = False) -> Path:
    """Write a demo adapter whose deltas are multiplied by `scale`, which gives the module another digest.

    adapter: harbour or observatory.
    scale: from 0.95 to 1.05 the answers stay right.
    probes: copy the adapter's probes too, for the gate.
    Returns the folder.
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
    """One request."""

    question: str
    module: str = ""
    """Empty: the base model."""
    session: str = ""
    """Empty: no session."""
    worker_id: str = ""
    """Empty: any worker."""
    system: str = ""
    """Empty: no system text."""
    sampling: Sampling = ANSWER

    @property
    def messages(self) -> Sequence[Message]:
        asked = Message(Role.USER, self.question)
        return (Message(Role.SYSTEM, self.system), asked) if self.system else (asked,)


@dataclass(frozen=True, slots=True)
class Exchange:
    """A request and its result. Times are on the monotonic clock."""

    ask: Ask
    answer: Answer | None
    """The answer with its receipt. None: the request failed."""
    failure: str
    """The error of a failed request. Empty: the request was answered."""
    started_s: float
    ended_s: float

    @property
    def digests(self) -> tuple[str, ...]:
        """The digests of the module versions that the receipt names. Empty for a failed request."""
        return () if self.answer is None else tuple(module.digest for module in self.answer.route.modules)

    @property
    def prompt(self) -> tuple[str, str]:
        """The system text and the question. The answer depends only on them and on the version."""
        return self.ask.system, self.ask.question


async def exchange(client: AsyncClient, ask: Ask) -> Exchange:
    """Ask once. A failed call is returned as an Exchange too."""
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
    """A load of several askers during the `async with` block. Every asker has one request at a time.

    The end of the block waits for the requests that are under way. The load is closed: in a stall the answers
    are late, and the number of requests under way stays the same.
    """

    client: AsyncClient
    askers: int
    next_ask: Callable[[int], Ask]
    """Returns the next request. Called with the number of requests before it."""
    exchanges: list[Exchange] = field(default_factory=list)
    """The requests that have ended, in the order of their ends."""
    _asked: int = 0
    _ending: bool = False
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)

    @property
    def failed(self) -> list[Exchange]:
        return [done for done in self.exchanges if done.answer is None]

    async def answered(self, count: int) -> None:
        """Wait until `count` more requests have ended, with an answer or a failure."""
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
