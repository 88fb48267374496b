"""The settings of the Redis tier, as vLLM hands them on."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisTierSettings:
    """The tier's part of `kv_connector_extra_config["secondary_tiers"]`."""

    redis_url: str
    namespace: str
    """`CacheNamespace.digest`."""
    codec: str = "raw"
    """As `memserve.kv.values.codecs.chunk_codec` takes it."""
    layout: dict[str, Any] | None = None
    """As `memserve.kv.values.codecs.chunk_codec` takes it."""
    ttl_s: int = 24 * 3600
    """From an entry's last use to its end."""
    cache_quota_bytes: int = 0
    """Of all tenants together; 0 for none."""
    tenant_quota_bytes: int = 0
    """Of each tenant; 0 for none."""
    admit_on_use: int = 1
    """1: a chunk is stored at its first use. 2: at its second."""
    always_load: bool = False
    """Load what is found in Redis even where computing it is quicker."""
    io_timeout_s: float = 0.5
    lookup_timeout_s: float = 0.1
    load_budget_s: float = 2.0
    """How long a request waits for its chunks. Chunks that have not come by then are computed."""
    connect_timeout_s: float = 0.5
    failures_to_open: int = 2
    """Failed calls after which a server is given up for a while."""
    pause_s: float = 1.0
    """How long a server is given up."""
    threads: int = max(1, min(4, (os.cpu_count() or 2) // 2))
    """For loads, and as many for stores. Two to a core are too many: Redis and the engine need theirs."""
    announce: bool = False
    """Publish a KV event of medium "STORAGE" for every chunk that has reached Redis. Nothing announces the
    chunks that Redis evicts or expires.
    """

    @classmethod
    def parse(cls, parameters: Mapping[str, Any]) -> RedisTierSettings:
        """Raises ValueError for a parameter that does not exist or is missing, by name."""
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(parameters) - known):
            raise ValueError(
                f"RedisTier has no parameter {', '.join(unknown)}; it has {', '.join(sorted(known))}"
            )
        if missing := sorted({"redis_url", "namespace"} - set(parameters)):
            raise ValueError(f"RedisTier needs {', '.join(missing)}")
        return cls(**parameters)
