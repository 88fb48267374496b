"""Who may use a digest while its content is put or removed: claims of publishers, and blocks of a sweep."""

from __future__ import annotations

from collections.abc import Sequence

from memserve.memory.modules.registry.scripts import RegistryScripts

DIGESTS_AT_ONCE = 1000


class ClaimRecords(RegistryScripts):
    """Claims and blocks, by digest. In Redis and in errors a blocked digest is "condemned"."""

    async def referenced(self, digest: str) -> bool:
        """Whether a version of anybody has this digest, of its content or of its probes."""
        return bool(await self._look("referenced", digest=digest))

    async def of_tenant(self, tenant: str, digests: Sequence[str]) -> dict[str, str]:
        """Those of these digests that a version of the tenant has, each with a version's name@number."""
        of_tenant: dict[str, str] = {}
        for start in range(0, len(digests), DIGESTS_AT_ONCE):
            part = digests[start : start + DIGESTS_AT_ONCE]
            found = await self._look("of_tenant", tenant=tenant, digests=",".join(part))
            of_tenant.update(zip(found[::2], found[1::2], strict=True))
        return of_tenant

    async def claim(self, digests: Sequence[str], token: str, seconds: float) -> None:
        """Keep digests from being blocked for so long: what has them is being stored, to be published then.
        Ends by itself.

        Raises DigestCondemned.
        """
        await self._change("claim", token=token, seconds=seconds, digests=",".join(digests))

    async def unclaim(self, digests: Sequence[str], token: str) -> None:
        """End the claim without having published."""
        await self._change("unclaim", token=token, digests=",".join(digests))

    async def block_publishing(self, digest: str, token: str, seconds: float) -> bool:
        """Keep the digest from being published for so long, so that what has it can be removed. Ends by
        itself.

        Returns False where a version references it, a publisher claims it, or another token has blocked it.
        """
        [is_blocked] = await self._change("block_publishing", digest=digest, token=token, seconds=seconds)
        return bool(is_blocked)

    async def allow_publishing(self, digest: str, token: str) -> None:
        """Let the digest be published again, where this token has blocked it."""
        await self._change("allow_publishing", digest=digest, token=token)
