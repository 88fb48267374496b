"""What becomes of what memserve makes of memories."""

from __future__ import annotations

from pydantic import BaseModel, Field, field_validator

from memserve.domain.names import is_name

EVERY_TENANT = "*"


class DistillingSettings(BaseModel):
    """Distilled versions."""

    # What is made of memories
    promote_distilled: str = Field(
        "",
        description="Tenants, separated by commas, whose distilled versions are promoted to `live` by "
        "themselves when they have passed the gate; `*` for all. Empty: none, they stay candidates.",
    )

    @field_validator("promote_distilled")
    @classmethod
    def _tenants(cls, text: str) -> str:
        for name in _named(text):
            if name != EVERY_TENANT and not is_name(name):
                raise ValueError(f"{name!r} is no tenant's name")
        return text

    def promotes_distilled(self, tenant: str) -> bool:
        """Whether the tenant's distilled versions are promoted by themselves."""
        return not {tenant, EVERY_TENANT}.isdisjoint(_named(self.promote_distilled))


def _named(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")] if text else []
