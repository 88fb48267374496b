"""The registry's append-only file, which has overwritten values until it is written anew."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from memserve.registry.client import answering

TIMEOUT_S = 5.0


async def rewritten(redis: Any, timeout_s: float) -> str:
    """Have Redis write its append-only file anew, so that overwritten values leave it.

    Returns "" when it is done, else one line for a person: why not, or that it goes on.
    """
    deadline_s = time.monotonic() + timeout_s
    async with answering(TIMEOUT_S):
        now = await redis.info("persistence")
        if not now.get("aof_enabled"):
            return ""
        try:
            if not now["aof_rewrite_in_progress"]:
                await redis.bgrewriteaof()
                begun = True
            else:
                begun = False  # that one may have begun before the value left
        except Exception as error:
            return f"the registry does not write its append-only file anew: {str(error)[:120]}"
    while time.monotonic() < deadline_s:
        await asyncio.sleep(0.1)
        async with answering(TIMEOUT_S):
            now = await redis.info("persistence")
            if now["aof_rewrite_in_progress"] or now.get("aof_rewrite_scheduled"):
                continue
            if begun:
                failed = now["aof_last_bgrewrite_status"] != "ok"
                return "the registry could not write its append-only file anew" if failed else ""
            await redis.bgrewriteaof()
            begun = True
    return f"the registry still writes its append-only file anew after {timeout_s:g} s"
