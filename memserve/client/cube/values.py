"""What a cube holds, and what became of it at an import."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from memserve.domain import Alias, AliasChange, ItemRefusal, ModuleKind, ModuleVersion
from memserve.errors import UsageError

CubeProgress = Callable[[str, int, int], None]
"""Called with what is done now, how much of it is done, and how much there is to do. 0: not known."""


def silent_cube(doing: str, done: int, total: int) -> None:
    """A CubeProgress that says nothing."""


class CubeRefused(UsageError):
    """A cube is damaged, foreign, not signed as asked, or does not fit the gateway. Nothing was written.

    `field` names the entry that is at fault.
    """


@dataclass(frozen=True, slots=True)
class CubeEntry:
    """A file in a cube."""

    name: str
    size_bytes: int
    """Before it is compressed."""
    sha256: str
    """Of its bytes before they are compressed, hex."""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A version that an export could not take along."""

    reference: str
    digest: str
    why: str


@dataclass(frozen=True, slots=True)
class CubeManifest:
    """`cube.json`."""

    created_s: float
    """Seconds since the epoch."""
    memserve: str
    """The version of the gateway that it came from."""
    model: str
    model_digest: str
    """Of the base model that the modules were made for."""
    embedder: str
    """What the memories were embedded by. Their vectors are not in the cube."""
    namespaces: dict[str, int]
    """Namespace to number of memories, superseded and forgotten ones too."""
    modules: dict[str, tuple[int, ...]]
    """Module to its versions' numbers."""
    left_out: tuple[LeftOut, ...]
    entries: tuple[CubeEntry, ...]
    """All but the manifest and its signature, in the order of the file."""


@dataclass(frozen=True, slots=True)
class CubeAlias:
    """An alias of a module, as it was."""

    alias: Alias
    history: tuple[AliasChange, ...]
    """Oldest first."""


@dataclass(frozen=True, slots=True)
class CubeModule:
    """A module as it was, without its versions: `module.json`."""

    name: str
    kind: ModuleKind
    aliases: tuple[CubeAlias, ...]


@dataclass(frozen=True, slots=True)
class Cube:
    """A cube that was read to its end: every entry is what the manifest says."""

    path: Path
    size_bytes: int
    manifest: CubeManifest
    signer: str
    """The public key that it is signed with, hex. Empty: it is not signed."""
    is_verified: bool
    """The signature was checked with a key that the caller named."""
    modules: tuple[CubeModule, ...]
    versions: tuple[ModuleVersion, ...]
    """By module and number."""

    @property
    def memories(self) -> int:
        return sum(self.manifest.namespaces.values())


@dataclass(frozen=True, slots=True)
class MemoriesOutcome:
    """What an import did with the memories, or would do."""

    new: int = 0
    same: int = 0
    """They were there already, with the same history."""
    refused: int = 0
    """They stay as they are: they have another history here, or break a rule."""
    refusals: tuple[ItemRefusal, ...] = ()
    """The first few."""


@dataclass(frozen=True, slots=True)
class VersionOutcome:
    """What an import did with a version, or would do."""

    reference: str
    """In the cube."""
    is_new: bool
    """False: a version with this content and these probes was there, and stays."""
    here: str
    """Its reference at this gateway. Empty: it would be published."""


@dataclass(frozen=True, slots=True)
class AliasOutcome:
    """What an import did with an alias, or would do."""

    reference: str
    outcome: str
    """set, unchanged, refused, or left: it was not asked for."""
    detail: str = ""
    """Why it was refused."""


@dataclass(frozen=True, slots=True)
class CubeImport:
    """What an import changed. After a dry run: what it would change."""

    dry_run: bool
    memories: MemoriesOutcome = field(default_factory=MemoriesOutcome)
    versions: tuple[VersionOutcome, ...] = ()
    aliases: tuple[AliasOutcome, ...] = ()
    notes: tuple[str, ...] = ()
    """What whoever imports should know."""

    @property
    def is_complete(self) -> bool:
        """Nothing was refused."""
        return not self.memories.refused and all(alias.outcome != "refused" for alias in self.aliases)
