"""The settings of the Redis tier are refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from tests.kv.redis_server import RedisServer
from tests.worker.kv.tier import random_host, tier_over


@pytest.mark.parametrize("parameters", [{"redis_uri": "x"}, {"ttl": 1}])
def test_an_unknown_parameter_is_refused_by_name(
    redis_server: RedisServer, parameters: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match=next(iter(parameters))):
        tier_over(random_host(6), redis_server.url, **parameters)


def test_a_missing_parameter_is_refused_by_name() -> None:
    from memserve.worker.kv.tier_settings import RedisTierSettings

    with pytest.raises(ValueError, match="namespace"):
        RedisTierSettings.parse({"redis_url": "redis://localhost"})
