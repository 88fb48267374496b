"""Why a module is refused."""

from __future__ import annotations

from memserve.errors.base import MemserveError


class ModuleNotFound(MemserveError):
    """The tenant has no module, version or alias of this name."""

    def __init__(self, reference: str) -> None:
        super().__init__(
            f"module {reference!r} does not exist; `memserve modules list` shows the ones that do"
        )


class ModuleNotLive(MemserveError):
    """The module has no version behind the alias of the request."""

    def __init__(self, name: str, alias: str) -> None:
        super().__init__(
            f"module {name!r} has no alias {alias!r} yet; `memserve modules promote {name} <version>` sets it"
        )


class AliasConflict(MemserveError):
    """An alias is not at the revision that the caller expects: another change came first."""

    def __init__(self, name: str, alias: str, revision: int, expected: int) -> None:
        super().__init__(
            f"{name}@{alias} is at revision {revision}, not {expected}; look at it again and decide anew"
        )


class OtherBase(MemserveError):
    """A version was made for another base model than the served one."""

    def __init__(self, reference: str, base_digest: str) -> None:
        super().__init__(
            f"{reference} was made for another base model ({base_digest[:12]}); publish one for the model "
            "that is served"
        )


class NothingToRollBack(MemserveError):
    """The alias never had another target, or the version that it had before is deleted."""

    def __init__(self, name: str, alias: str, why: str) -> None:
        super().__init__(f"{name}@{alias} cannot be rolled back: {why}")


class VersionInUse(MemserveError):
    """A version cannot be deleted while it is in use."""

    def __init__(self, reference: str, user: str) -> None:
        super().__init__(f"{reference} is in use by {user}; release it there first")


class GateRefused(MemserveError):
    """A version's probes are below the thresholds."""

    def __init__(self, reference: str, figures: str) -> None:
        super().__init__(
            f"the gate refuses {reference}: {figures}; promote with force to override, which is recorded, or "
            "run the gate to ask its probes anew"
        )


class UploadIncomplete(MemserveError):
    """An upload ended before all of its bytes had arrived. The bytes that arrived are kept for a while."""

    def __init__(self, file_name: str, received: int, size: int) -> None:
        super().__init__(
            f"{file_name} has {received} of {size} bytes; send the same upload again, it goes on from there"
        )


class BlobDamaged(MemserveError):
    """The files that the module store has under a digest differ from those that were put there."""

    def __init__(self, digest: str, why: str) -> None:
        super().__init__(
            f"the module store's files of {digest} are damaged ({why}); publish the same content again"
        )


class BlobStoreUnavailable(MemserveError):
    """The module store does not answer, or refuses memserve's credentials."""

    def __init__(self, detail: str) -> None:
        super().__init__(f"the module store does not answer ({detail}); try again")


class AuditFull(MemserveError):
    """The record of a tenant's changes is full. Its events are removed only after export, or with age."""

    def __init__(self, tenant: str, size_bytes: int, limit_bytes: int) -> None:
        super().__init__(
            f"the audit of tenant {tenant} has {size_bytes} of {limit_bytes} bytes; `memserve audit export "
            "FILE --release` makes room"
        )


class DistillationFailed(MemserveError):
    """A distillation has ended without a version."""

    def __init__(self, module: str, reason: str) -> None:
        super().__init__(f"distilling {module} has failed: {reason}")
