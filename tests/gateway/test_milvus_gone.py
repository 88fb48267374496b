"""A Milvus server that dies, hangs and comes back under a running gateway: answers go on without passages."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from memserve.client.values import Answer
from memserve.domain import RecallOutcome, RecallPart, RecallSource
from tests.gateway.asking import GREEDY
from tests.gateway.fixtures import StartGateway
from tests.gateway.running import RunningGateway, eventually
from tests.memory.texts.milvus_server import free_port, start_server

QUESTION = "What is the code of Alder?"
BUDGET_S = 0.4
REST_S = 0.8
"""What an answer may take beside its recall, on a machine that does other things."""
BACK_S = 5.0
"""Until recall works once the server takes connections."""
NOT_RECALLED = (RecallOutcome.LATE, RecallOutcome.UNAVAILABLE)


@dataclass
class MilvusServer:
    """In a process of its own."""

    directory: Path
    port: int
    process: subprocess.Popen[bytes]

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def pause(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def start_again(self) -> None:
        self.process = start_server(self.directory, self.port)

    def resume(self) -> None:
        self.process.send_signal(signal.SIGCONT)


@pytest.fixture
def milvus(tmp_path: Path) -> Iterator[MilvusServer]:
    port = free_port()
    server = MilvusServer(tmp_path / "milvus", port, start_server(tmp_path / "milvus", port))
    try:
        yield server
    finally:
        server.kill()


async def timed_answer(gateway: RunningGateway) -> tuple[Answer, float]:
    """And the seconds that it took."""
    started_s = time.monotonic()
    answer = await gateway.client.generate(
        QUESTION, namespaces=["notes"], recall_timeout_ms=int(BUDGET_S * 1000), sampling=GREEDY
    )
    return answer, time.monotonic() - started_s


def texts_part(answer: Answer) -> RecallPart:
    (part,) = [part for part in answer.route.recall if part.source is RecallSource.TEXTS]
    return part


@pytest.mark.parametrize(
    ("stop", "start", "told"),
    [("kill", "start_again", ""), ("pause", "resume", f"no answer within {BUDGET_S} s")],
)
async def test_answers_go_on_without_passages_in_time_and_recall_comes_back(
    start_gateway: StartGateway,
    milvus: MilvusServer,
    caplog: pytest.LogCaptureFixture,
    stop: str,
    start: str,
    told: str,
) -> None:
    gateway = await start_gateway(milvus_uri=f"http://127.0.0.1:{milvus.port}")
    await gateway.client.remember("notes", "The code of Alder is 7731.", memory_id="alder")

    async def recalls() -> bool:
        answer, _ = await timed_answer(gateway)
        return [hit.memory.memory_id for hit in answer.route.passages] == ["alder"]

    await eventually(recalls)
    caplog.clear()
    getattr(milvus, stop)()
    for _ in range(3):
        answer, took_s = await timed_answer(gateway)
        assert answer.text
        assert took_s < BUDGET_S + REST_S
        assert answer.route.passages == ()
        assert answer.route.recall_outcome in NOT_RECALLED
        assert texts_part(answer).outcome is answer.route.recall_outcome
        assert texts_part(answer).detail.startswith(f"the vector store does not answer ({told}")
        assert str(milvus.port) not in texts_part(answer).detail, "a tenant need not know where Milvus is"
        assert list(gateway.workers[0].requests[-1].token_ids) == gateway.token_ids(QUESTION)
    assert caplog.text.count("answering without passages") == 1, "not for each request"
    assert not (await gateway.client.status()).vector_store_ok
    getattr(milvus, start)()
    started_s = time.monotonic()
    await eventually(recalls)
    assert time.monotonic() - started_s < BACK_S
    assert (await gateway.client.status()).vector_store_ok
