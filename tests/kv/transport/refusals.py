"""What the check at start says of a cache that will not work."""

from __future__ import annotations

from typing import Any

import pytest

from memserve.errors import StartupError
from memserve.kv.transport.check import check_cache_servers


def refusal(url: str, **arguments: Any) -> str:
    with pytest.raises(StartupError) as refused:
        check_cache_servers(url, timeout_s=2.0, **arguments)
    message = str(refused.value)
    assert "hunter2" not in message and "\n" not in message
    return message
