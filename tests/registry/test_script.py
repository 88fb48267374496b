"""Scripts in the registry Redis."""

from __future__ import annotations

from memserve.registry.client import answering, close_client, registry_client
from memserve.registry.script import Script
from tests.kv.redis_server import RedisServer

SCRIPT = Script("return {KEYS[1], ARGV[1], ARGV[2]} -- of this test")


async def test_the_text_is_sent_once_and_again_when_the_server_has_forgotten_it(
    redis_server: RedisServer,
) -> None:
    client = registry_client(redis_server.url)
    for _ in range(2):
        await client.script_flush()
        await client.config_resetstat()
        for number in range(3):
            async with answering():
                assert await SCRIPT.run(client, ["k"], ("run", number)) == ["k", "run", str(number)]
        commands = await client.info("commandstats")
        assert commands["cmdstat_eval"]["calls"] == 1
        assert commands["cmdstat_evalsha"]["calls"] == 3
    await close_client(client)
