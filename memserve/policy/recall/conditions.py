"""Whether a memory's condition holds in a request. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from memserve.domain import Memory, MetadataValue
from memserve.policy.recall.expressions import Expression, Verdict, parse

CONDITIONS_KEPT = 4096
ALWAYS = Verdict(True, "it always applies")


def condition_verdict(memory: Memory, context: Mapping[str, MetadataValue]) -> Verdict:
    """Whether `applies_when` holds, and why not. Without a condition it does."""
    return _parsed(memory.applies_when).evaluate(context) if memory.applies_when else ALWAYS


@lru_cache(maxsize=CONDITIONS_KEPT)
def _parsed(text: str) -> Expression:
    # The text was checked when the memory was written.
    return parse("applies_when", text)
