"""The ladder of knowledge: whether it acts, and what it may take."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

MIB = 1 << 20


class LadderSettings(BaseModel):
    """Of the gateway."""

    knowledge_ladder: Literal["off", "advise", "act"] = Field(
        "off",
        description="Whether namespaces move between text, warm prefix, cartridge and LoRA by how much they "
        "are used. advise: decisions are explained and not carried out. act: they are; a distillation still "
        "ends as a candidate.",
    )
    knowledge_ladder_interval_s: float = Field(
        300.0, ge=1, le=86_400, description="Time between two decisions about a tenant's namespaces."
    )
    knowledge_ladder_bytes: int = Field(
        256 * MIB,
        ge=0,
        description="What a tenant's warm prefixes, cartridges and LoRAs on the ladder may take together.",
    )
    knowledge_ladder_cpu_s: float = Field(
        1800.0,
        ge=0,
        le=86_400,
        description="Processor seconds that the ladder may spend in 24 hours for a tenant on computing "
        "prefixes, training and loading.",
    )
    knowledge_ladder_dwell_s: float = Field(
        21_600.0,
        ge=1,
        le=31_536_000,
        description="How long a namespace stays on a rung that it has come to, and on its first one until "
        "its use has been measured. A change takes it down before, and so does a budget that is over.",
    )
    knowledge_ladder_settle_s: float = Field(
        86_400.0,
        ge=0,
        le=31_536_000,
        description="How long after a change of a memory its namespace does not climb to a cartridge or a "
        "LoRA. To a warm prefix it climbs after a 24th of it.",
    )
