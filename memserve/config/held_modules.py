"""How many modules an engine holds, and of which size."""

from __future__ import annotations

from pydantic import BaseModel, Field

MIB = 1 << 20


class HeldModuleSettings(BaseModel):
    """Of the modules in an engine."""

    max_loras: int = Field(
        4, ge=0, le=64, description="Adapters in one engine's batch at the same time. 0: none are served."
    )
    max_cpu_loras: int = Field(16, ge=1, le=4096, description="Adapters that an engine keeps loaded.")
    max_lora_rank: int = Field(
        16,
        ge=1,
        le=512,
        description="Largest adapter rank. vLLM takes 1, 8, 16, 32, 64, 128, 256, 320 and 512.",
    )
    max_experts: int = Field(
        2, ge=0, le=16, description="Logit experts that an engine keeps loaded. 0: none are served."
    )
    max_cartridges: int = Field(
        8,
        ge=0,
        le=1024,
        description="Cartridges that an engine keeps in its host memory. 0: none are served.",
    )
    max_soft_prompts: int = Field(
        8,
        ge=0,
        le=1024,
        description="Soft prompts that an engine keeps in its host memory. 0: none are served, and the "
        "engine takes no embeddings.",
    )
    prefix_host_bytes: int = Field(
        512 * MIB,
        ge=MIB,
        description="Host memory that an engine's cartridges take together, and as much its soft prompts.",
    )
