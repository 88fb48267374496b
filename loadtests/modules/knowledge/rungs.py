"""The rungs that hold the same facts, and what a request for each of them says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

NAMESPACE = "facts"
RECALL_MS = 500


@dataclass(frozen=True, slots=True)
class Rung:
    """A way to keep facts and to answer from them."""

    name: str
    tenant: str
    """Its facts are this tenant's. No rung finds what another one has computed."""
    module: str = ""
    """That a request names. Empty: none."""
    recalls: bool = False
    pins: bool = False
    """Whether the memories are pinned, and so a warm prefix."""

    def options(self, *, reads: bool) -> Mapping[str, Any]:
        """Of `Client.generate`. reads: the question brings its own passages, and recalls nothing."""
        named: dict[str, Any] = {"modules": f"{self.module}@1"} if self.module else {}
        if not self.recalls or reads:
            return named
        return {**named, "namespaces": NAMESPACE, "recall_timeout_ms": RECALL_MS}


NOTHING = Rung("nothing", "nothing")
RECALL = Rung("text by recall", "recall", recalls=True)
PINNED = Rung("text, warm prefix", "pinned", recalls=True, pins=True)
CARTRIDGE = Rung("cartridge", "taught", module="cartridge")
LORA = Rung("LoRA", "taught", module="lora")
LORA_RECALL = Rung("LoRA + recall", "taught", module="lora", recalls=True)
EXPERT = Rung("logit expert", "taught", module="expert")
RUNGS = (NOTHING, RECALL, PINNED, CARTRIDGE, LORA, LORA_RECALL, EXPERT)
TENANTS = tuple(dict.fromkeys(rung.tenant for rung in RUNGS))


@dataclass(slots=True)
class Costs:
    """What a rung takes beside its answers. None: it has no such thing."""

    resident_bytes: float | None = None
    make_s: float | None = None
    """Until the first question can be asked, on the wall clock."""
    make_cpu_s: float | None = None
    change_s: float | None = None
    """Until one changed fact is answered by this rung."""
    erase_s: float | None = None
    """Until one fact is answered by this rung no more."""
    notes: list[str] = field(default_factory=list)
