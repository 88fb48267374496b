"""The gateway on a disk that is nearly full: changes are refused by name, reads and answers go on."""

from __future__ import annotations

from pathlib import Path

import grpc

from memserve.disk import DATA_DISK, DiskWatch
from tests.gateway.asking import GREEDY, failure_of
from tests.gateway.fixtures import StartGateway
from tests.gateway.running import until


async def test_a_full_disk_refuses_changes_and_answers_go_on(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    room = [2.0]
    gateway = await start_gateway(disk=DiskWatch({DATA_DISK: tmp_path}, 1, room=lambda *_: room[0]))
    stored = await gateway.client.remember("notes", "The code of Alder is 7731.")
    room[0] = 0.9
    await until(lambda: not gateway.parts.disk.has_room())
    for change in (
        gateway.client.remember("notes", "another"),
        gateway.client.forget("notes", stored.memory_id),
    ):
        refused = await failure_of(change)
        assert refused.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert DATA_DISK in refused.detail and str(tmp_path) not in refused.detail
        assert refused.retry_after_s is not None
    assert len(await gateway.client.search(["notes"], "code of Alder")) == 1
    answer = await gateway.client.generate("hello", namespaces=["notes"], sampling=GREEDY)
    assert len(answer.route.passages) == 1
    room[0] = 2.0
    await until(gateway.parts.disk.has_room)
    assert await gateway.client.forget("notes", stored.memory_id) is None
