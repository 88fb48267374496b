"""A memory that an answer used, and that is erased, stands nowhere afterwards: all of memserve is searched.

`loadtests.memory_erasure` searches more kinds of memories and a gateway that is killed, without workers.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import redis

from loadtests.harness.stack import variant
from loadtests.texts.memory_erasure.scanning import Scan
from loadtests.texts.memory_erasure.secrets import Secret, draw_secret
from memserve.client import CallFailed, Client, ErasureState, ModuleVersion
from memserve.domain import Sampling
from memserve.embedded import Stack
from tests.stack.fixtures import eventually
from tests.stack.otlp import OtlpReceiver

pytestmark = [pytest.mark.stack, pytest.mark.timeout(300)]

NAMESPACE = "erased"
OTHERS = 20
QUESTION = "Who is the captain, in one word?"


def searched(stack: Stack, client: Client, traces: OtlpReceiver, secret: Secret) -> Scan:
    """All files of the data directory, both Redis, an export, and the spans that were sent."""
    scan = Scan(secret.needles)
    scan.folder(stack.settings.data, secret.words)
    for name, url in (("registry", stack.settings.redis_url), ("cache", stack.settings.cache_redis_url)):
        with redis.Redis.from_url(url.get_secret_value()) as server:
            scan.server(name, server)
    scan.redis_files("registry", stack.settings.data / "registry")
    scan.look("an export", "\n".join(client.export_memories()).encode())
    scan.look("the spans", "\n".join(traces.attributes()).encode())
    return scan


def known_by_a_module(client: Client, folder: Path) -> ModuleVersion:
    """A version that says that it was distilled from the memory, and answers."""
    # Of no other module's content: an erasure takes equal contents along.
    version = client.modules.publish(
        "known", variant("harbour", folder / "known", scale=1.02), sources=[f"memory:{NAMESPACE}/a@1"]
    )
    client.modules.promote("known", version.version)
    return version


def test_an_erased_memory_is_nowhere_after_an_answer_used_it(
    stack: Stack, client: Client, traces: OtlpReceiver, tmp_path: Path
) -> None:
    secret = draw_secret(random.Random(19))
    for number in range(OTHERS):
        client.remember(NAMESPACE, f"Pump {number} stands by gate {number * 7}.", memory_id=f"other{number}")
    client.remember(
        NAMESPACE, f"{secret.text} " * 6, memory_id="a", keywords=[secret.keyword], source=secret.source
    )
    answer = client.generate(
        QUESTION,
        namespaces=NAMESPACE,
        recall_limit=OTHERS + 1,
        recall_timeout_ms=30_000,
        keep_prompt=True,
        sampling=Sampling(max_tokens=4),
    )
    assert "a" in [hit.memory.memory_id for hit in answer.route.passages]
    request_id = answer.route.request_id
    eventually(lambda: client.explain_answer(request_id).answer is not None, timeout_s=20)
    kept = client.explain_answer(request_id, leave_one_out=True).answer
    assert kept is not None and kept.prompt is not None
    assert secret.text in kept.prompt.text
    eventually(lambda: client.activation.usage().chunks > 0, timeout_s=30)
    knows = known_by_a_module(client, tmp_path)
    by_module = client.generate(QUESTION, module="known", sampling=Sampling(max_tokens=4))
    assert [used.digest for used in by_module.route.modules] == [knows.digest]

    # A search that finds nothing before the erasure proves nothing.
    before = " ".join(searched(stack, client, traces, secret).found)
    for place in (
        "memserve:answers",
        "rows",
        "registry, read from its files",
        "an export",
    ):
        assert place in before
    erased = client.lineage.erase(NAMESPACE, "a", reason="asked")
    places = {place.place: place for place in erased.places}
    assert (erased.state, erased.retired) == (ErasureState.DONE, ("known@1",))
    assert places["engines"].removed > 0 and places["modules"].removed == places["aliases"].removed == 1
    assert not list(stack.settings.data.rglob(f"*{knows.digest}*"))
    with pytest.raises(CallFailed):
        client.generate(QUESTION, module="known@1", sampling=Sampling(max_tokens=4))
    checked = client.lineage.check_erasure(erased.erasure_id)
    assert [place for place in checked.places if place.removed] == []
    after = searched(stack, client, traces, secret)
    assert after.found == []
    assert after.files > OTHERS and after.values > OTHERS
    assert places["index"].removed == 1
    assert places["answers"].removed == 1
    assert places["kv"].removed > 0
    assert places["uses"].removed == 1
    assert client.explain_answer(request_id).answer is None
    with pytest.raises(CallFailed, match="a"):
        client.get_memory(NAMESPACE, "a")
    assert client.namespaces()[NAMESPACE] == OTHERS
