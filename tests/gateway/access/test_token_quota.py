"""Tokens a minute of a tenant, of all gateways together."""

from __future__ import annotations

import pytest

from memserve.client import CallFailed
from memserve.domain import CachedTokens, FinishReason, RefusalReason, Sampling, TextDelta, Usage
from memserve.errors import QuotaExceeded
from memserve.gateway.access.token_quota import Spent, TokenQuota
from tests.gateway.fixtures import StartGateway
from tests.kv.redis_server import RedisServer


async def test_gateways_count_together(redis_server: RedisServer) -> None:
    here, there = TokenQuota(redis_server.url, 100), TokenQuota(redis_server.url, 100)
    async with here.answer("t", 60, 60):
        with pytest.raises(QuotaExceeded, match="tokens a minute of tenant t: the limit of 100") as caught:
            async with there.answer("t", 1, 1):
                pass
        assert 0 < caught.value.retry_after_s <= 120
        async with there.answer("other", 1, 1):
            pass
    await here.close()
    await there.close()


async def test_an_answer_counts_as_long_as_it_was(redis_server: RedisServer) -> None:
    quota = TokenQuota(redis_server.url, 100)
    for _ in range(5):
        async with quota.answer("short", 10, 1000) as spent:
            spent.tokens = 12
    async with quota.answer("short", 10, 1000):
        pass
    with pytest.raises(RuntimeError, match="broken"):
        async with quota.answer("short", 10, 1000):
            raise RuntimeError("broken")
    async with quota.answer("short", 10, 1000) as spent:
        spent.tokens = 60
    with pytest.raises(QuotaExceeded):
        async with quota.answer("short", 1, 1):
            pass
    await quota.close()


async def test_without_the_registry_nothing_is_refused() -> None:
    quota = TokenQuota("redis://127.0.0.1:1", 1)
    for _ in range(3):
        async with quota.answer("t", 10, 10) as spent:
            spent.tokens = 20
    await quota.close()


def test_a_prompt_counts_less_what_was_cached() -> None:
    spent = Spent(100)
    assert spent.tokens == 0, "what never streams a token costs nothing"
    spent.see(TextDelta("a", (1, 2)))
    spent.see(TextDelta("b", (3,)))
    assert spent.tokens == 103
    spent.see(Usage(100, 3, CachedTokens(device=32, redis=16), 1.0, None, True, FinishReason.STOP))
    assert spent.tokens == 55


async def test_a_tenant_over_its_tokens_is_told_when_to_come_again(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(tokens_per_minute_per_tenant=30)
    text = "the gate of the north tower opens at nine " * 4
    await gateway.client.generate(text, sampling=Sampling(max_tokens=2))
    with pytest.raises(CallFailed, match="tokens a minute of tenant default") as caught:
        await gateway.client.generate(text, sampling=Sampling(max_tokens=2))
    assert caught.value.reason is RefusalReason.QUOTA
    assert caught.value.retry_after_s
    with pytest.raises(CallFailed, match="tokens a minute of tenant default"):
        [step async for step in gateway.client.activation.warm(text)]
