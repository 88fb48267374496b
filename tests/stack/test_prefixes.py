"""ActivationService on the whole of memserve: a prefix is warmed on one worker, found by the other, kept and
freed.
"""

from __future__ import annotations

import pytest

from memserve.cli.kv import conversation
from memserve.client import CallFailed, Client
from memserve.embedded import Stack
from memserve.embedded.story import ANSWER, long_prefix

pytestmark = [pytest.mark.stack, pytest.mark.timeout(300)]


def test_a_prefix_is_warmed_for_every_worker_pinned_and_freed(stack: Stack, client: Client) -> None:
    prefix = long_prefix(4242)
    system = next(message.content for message in prefix.messages)
    beginning = conversation("", system)
    first, second = sorted(worker.worker_id for worker in client.status().workers)
    before = client.activation.lookup(beginning)
    assert before.redis_tokens == 0 and {worker.held_tokens for worker in before.workers} == {0}

    steps = list(client.activation.warm(beginning, worker_id=first))
    full = before.prompt_tokens // before.chunk_tokens * before.chunk_tokens
    assert steps[-1].done and steps[-1].stored_tokens == full
    after = client.activation.lookup(beginning)
    assert after.redis_tokens == full
    held = {worker.worker_id: worker for worker in after.workers}
    assert held[first].device_tokens >= full and held[first].held_tokens >= full
    assert held[second].held_tokens == 0

    answer = client.generate(prefix.messages, worker_id=second, sampling=ANSWER)
    assert answer.usage.cached.redis >= 0.9 * full

    usage = client.activation.usage()
    assert (
        usage.stored_bytes > 0
        and usage.cache_quota_bytes > 0
        and usage.cache_stored_bytes >= usage.stored_bytes
    )
    assert client.activation.pin(beginning, 600) == full
    assert client.activation.evict(beginning).removed_chunks == 0
    assert client.activation.unpin(beginning) == full
    evicted = client.activation.evict(beginning)
    assert (evicted.removed_chunks, evicted.pinned_chunks) == (full // before.chunk_tokens, 0)
    assert client.activation.lookup(beginning).redis_tokens == 0


def test_warming_again_stores_what_redis_has_lost_though_the_worker_holds_it(
    stack: Stack, client: Client
) -> None:
    beginning = conversation("", next(message.content for message in long_prefix(4343).messages))
    worker = client.status().workers[0].worker_id
    stored = list(client.activation.warm(beginning, worker_id=worker))[-1].stored_tokens
    client.activation.evict(beginning)
    assert list(client.activation.warm(beginning, worker_id=worker))[-1].stored_tokens == stored > 0


def test_every_worker_shares_kv_and_an_unknown_one_is_refused(client: Client) -> None:
    assert all(worker.shares_kv for worker in client.status().workers)
    with pytest.raises(CallFailed, match="w-nothing"):
        list(client.activation.warm("Hello.", worker_id="w-nothing"))
