"""Parametric memory: modules of knowledge in weights.

The module store has the content of a module under its digest. The registry has the versions and aliases. An
upload is checked against the base model before it becomes a version. A version never changes.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from memserve.domain import Alias, ModuleKind, ModuleVersion, Tenant, TrafficShare
from memserve.domain.names import is_sha256
from memserve.errors import (
    BlobStoreUnavailable,
    InvalidField,
    InvalidModule,
    ModuleNotFound,
    ModuleNotLive,
    OtherBase,
    RegistryUnavailable,
    UnreadableRecord,
)
from memserve.memory.modules.blobs.store import BlobStore
from memserve.memory.modules.kinds.files import BaseModel, CheckedModule
from memserve.memory.modules.kinds.table import PROBES_FILE, check_module_name, files_check
from memserve.memory.modules.probes import Probes, parse_probes
from memserve.memory.modules.registry.scripts import DigestCondemned
from memserve.memory.modules.registry.store import ModuleStore
from memserve.memory.modules.uploads import Upload, UploadFile, Uploads
from memserve.policy.modules.references import Reference, parse_reference
from memserve.policy.modules.traffic import choose_version, share_of
from memserve.turns import FairThreads, leave_one

SOURCES_MAX = 64
SOURCE_MAX_BYTES = 1024
TEXT_MAX_BYTES = 16 * 1024
# A publisher waits while a sweep removes a blob with the same digest, and then puts the blob again. A sweep
# takes milliseconds for a blob.
CONDEMNED_PAUSE_S = 0.2
CONDEMNED_PATIENCE_S = 60.0
# Longer than it takes to put the content and to try it on a worker.
CLAIM_S = 600.0
FILE_THREADS = 3
# The name under which memserve's own work waits for its turn. No tenant has this name.
OWN_WORK = ""
# How many references are remembered with their meaning, for the time when the registry does not answer.
KNOWN_MAX = 10_000

T = TypeVar("T")
Moves = Callable[[ModuleKind, str], Awaitable[bool | None]]
"""Takes a kind and a digest. Returns whether the module changes the logits of the canary prompts.

None: no worker could say.
"""


def check_text(field: str, text: str) -> None:
    """Check the length of a text that a version keeps for people. Raises InvalidField."""
    if len(text.encode()) > TEXT_MAX_BYTES:
        raise InvalidField(field, f"at most {TEXT_MAX_BYTES} bytes")


@dataclass(frozen=True, slots=True)
class Publication:
    """The description of a future version: the header of an upload."""

    name: str
    """The name of the module."""
    kind: ModuleKind
    files: tuple[UploadFile, ...]
    expected_digest: str = ""
    """The digest that the checked content must have. Empty: any."""
    sources: tuple[str, ...] = ()
    """What the module was made from."""
    recipe: str = ""
    """How the module was made."""
    notes: str = ""
    parents: tuple[str, ...] = ()
    """Digests of the versions that a composed version was made from."""

    def __post_init__(self) -> None:
        """Raises InvalidField."""
        check_module_name("header.name", self.name)
        if len(self.sources) > SOURCES_MAX or any(
            not 0 < len(source.encode()) <= SOURCE_MAX_BYTES for source in self.sources
        ):
            raise InvalidField("header.sources", f"at most {SOURCES_MAX} of 1 to {SOURCE_MAX_BYTES} bytes")
        if len(self.parents) > SOURCES_MAX or not all(map(is_sha256, self.parents)):
            raise InvalidField("header.parents", f"at most {SOURCES_MAX} digests of 64 hex digits")
        check_text("header.recipe", self.recipe)
        check_text("header.notes", self.notes)


@dataclass(frozen=True, slots=True)
class Resolved:
    """The meaning of a reference for one request."""

    version: ModuleVersion
    reason: str
    """Why the reference means this version, for a person."""


class FileWork:
    """Threads for the work on modules' files.

    The threads serve nothing else: the checks of a large upload must not delay the requests that need
    threads. The work of one tenant has at most all threads but one.
    """

    def __init__(self, threads: int) -> None:
        self._threads = FairThreads("module-files", threads, share=leave_one)

    async def run(
        self, tenant: str, work: Callable[[], T], undo: Callable[[T], None] = lambda result: None
    ) -> T:
        """Run `work` on a thread and wait for its end.

        A cancelled caller waits too, because no other work may begin with the same files before the end.

        undo: called with the result of `work` when the caller was cancelled and cannot take the result.
        Raises BlobStoreUnavailable for an OSError, such as a full disk or missing rights.
        """
        task = asyncio.wrap_future(await self._threads.begin(tenant, work))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            await asyncio.wait([task])
            if not task.cancelled() and task.exception() is None:
                undo(task.result())
            raise
        except OSError as error:
            raise BlobStoreUnavailable(error.strerror or type(error).__name__) from error

    async def run_own(self, work: Callable[[], T]) -> T:
        """The same as `run`, for memserve's own work."""
        return await self.run(OWN_WORK, work)

    def close(self) -> None:
        self._threads.close()


class ParametricMemory:
    """Publishes versions and resolves references to them. A tenant sees only its own modules."""

    def __init__(
        self, store: ModuleStore, blobs: BlobStore, uploads: Uploads, base: BaseModel, base_digest: str
    ) -> None:
        """base: the model that modules are checked against. Without its shapes nothing can be uploaded.

        base_digest: the digest of the served base model. Empty: not known.
        """
        self.store = store
        self.blobs = blobs
        self._uploads = uploads
        self.base = base
        """The model that modules are checked against."""
        self.base_digest = base_digest
        self.files = FileWork(FILE_THREADS)
        # The least recently used reference is the first.
        self._known: OrderedDict[tuple[str, Reference], tuple[Alias | None, dict[int, ModuleVersion]]] = (
            OrderedDict()
        )

    def open_upload(self, tenant: str, publication: Publication) -> Upload:
        """Begin an upload or go on with it. Blocking. Raises InvalidModule and QuotaExceeded."""
        if not self.base.shapes:
            raise InvalidModule(
                "module",
                "this gateway has no base model weights to check it against; give it the model's directory",
            )
        return self._uploads.open(tenant, publication.name, publication.kind, publication.files)

    async def check_new_version(self, field: str, tenant: str, name: str, kind: ModuleKind) -> None:
        """Refuse a new version that cannot be registered, before the work for it begins.

        field: the field of the request that InvalidField names.
        Raises AuditFull when the audit is full, InvalidField when the module exists with another kind, and
        RegistryUnavailable.
        """
        await self.store.check_audit(tenant)
        module = await self.store.module(tenant, name)
        if module is not None and module.kind != kind:
            raise InvalidField(
                field, f"module {name} is of the kind {module.kind}, and a module has one kind"
            )

    def received(self, tenant: str, publication: Publication) -> tuple[int, ...]:
        """The received bytes of every file of an upload. Blocking. Raises InvalidModule."""
        return self._uploads.received(tenant, publication.name, publication.kind, publication.files)

    async def publish(
        self, tenant: Tenant, publication: Publication, folder: Path, moves: Moves
    ) -> ModuleVersion:
        """Check the files in `folder`, keep them under their digest, and register the module's next version.

        moves: called with the kept content, before the version is registered.
        Raises InvalidModule, InvalidField, BlobStoreUnavailable and RegistryUnavailable.
        """
        checked, probes = await self.files.run(tenant.name, partial(self._checked, publication, folder))
        version = ModuleVersion(
            module=publication.name,
            version=0,
            digest=checked.digest,
            kind=publication.kind,
            base_digest=self.base_digest,
            rank=checked.rank,
            target_modules=checked.target_modules,
            size_bytes=0,
            created_s=time.time(),
            author=tenant.principal,
            sources=publication.sources,
            parents=publication.parents,
            recipe=publication.recipe,
            notes=publication.notes,
            figures=checked.figures,
            probes_digest=probes.digest if probes is not None else "",
            warning=checked.warning,
            prefix_tokens=checked.prefix_tokens,
        )
        deadline_s = time.monotonic() + CONDEMNED_PATIENCE_S
        while True:
            try:
                registered, moved = await self._register(
                    tenant, version, publication, checked, probes, folder, moves
                )
                break
            except DigestCondemned:
                if time.monotonic() > deadline_s:
                    raise RegistryUnavailable("a sweep holds the module's digest") from None
                await asyncio.sleep(CONDEMNED_PAUSE_S)
        if moved and not registered.moves_logits:
            registered = await self.store.keep_moves_logits(
                tenant.name, registered.module, registered.version
            )
        return registered

    async def _register(
        self,
        tenant: Tenant,
        version: ModuleVersion,
        publication: Publication,
        checked: CheckedModule,
        probes: Probes | None,
        folder: Path,
        moves: Moves,
    ) -> tuple[ModuleVersion, bool | None]:
        """Put the content, check that it changes something, and register the version.

        A claim on the digests keeps a sweep from removing the content before the version is registered.

        Returns the registered version and the result of `moves`. Raises DigestCondemned while a sweep removes
        content with this digest.
        """
        token = uuid.uuid4().hex
        await self.store.claim(
            [digest for digest in (version.digest, version.probes_digest) if digest], token, CLAIM_S
        )
        try:
            if probes is not None:
                await self.files.run(tenant.name, partial(self.blobs.put_probes, probes.canonical()))
            announced = {file.file_name: file.sha256 for file in publication.files}
            put = partial(
                self.blobs.put,
                checked.digest,
                folder,
                rewritten=checked.rewritten,
                without=(PROBES_FILE,),
                expected=announced,
            )
            size_bytes = await self.files.run(tenant.name, put)
            moved = await moves(version.kind, version.digest)
            if moved is False:
                raise InvalidModule(
                    "module",
                    "would change nothing: with it and without it the canary prompts get the same logits",
                )
            return await self.store.publish(
                tenant.name, tenant.principal, replace(version, size_bytes=size_bytes), claim=token
            ), moved
        finally:
            # A claim that cannot be taken back now expires after CLAIM_S.
            with contextlib.suppress(RegistryUnavailable):
                await self.store.unclaim(
                    [digest for digest in (version.digest, version.probes_digest) if digest], token
                )

    async def resolve(self, field: str, tenant: str, text: str, key: str) -> Resolved:
        """The version that a reference means for the session `key`.

        While the registry does not answer, the reference keeps its last known meaning.

        field: the field of the request that InvalidField names.
        Raises InvalidField, OtherBase, ModuleNotFound, ModuleNotLive, UnreadableRecord and
        RegistryUnavailable.
        """
        reference = parse_reference(field, text)
        try:
            found = await self.store.resolve(
                tenant, reference.name, alias=reference.alias, number=reference.number
            )
            why = ""
        except RegistryUnavailable:
            found = self._known.get((tenant, reference))
            if found is None:
                raise
            why = ", as the registry said last"
        if found is None:
            self._known.pop((tenant, reference), None)
            raise ModuleNotFound(str(reference) if reference.number else reference.name)
        alias, versions = found
        if reference.number:
            if reference.number not in versions:
                raise UnreadableRecord(str(reference), "the store's log says why")
            self._remember(tenant, reference, found)
            return Resolved(self.served(versions[reference.number]), f"asked for by number{why}")
        targets = (
            tuple(target for target in alias.targets if target.version in versions)
            if alias is not None
            else ()
        )
        if alias is None or not targets:
            raise ModuleNotLive(reference.name, reference.alias)
        self._remember(tenant, reference, found)
        number = choose_version(targets, key)
        part = "" if len(targets) == 1 else f", {share_of(targets, number):.0%} of its traffic"
        return Resolved(
            self.served(versions[number]), f"{reference.alias} at revision {alias.revision}{part}{why}"
        )

    async def version(self, tenant: str, name: str, number: int) -> ModuleVersion:
        """Raises ModuleNotFound and RegistryUnavailable."""
        found = await self.store.version(tenant, name, number)
        if found is None:
            raise ModuleNotFound(f"{name}@{number}")
        return found

    async def heaviest(self, field: str, tenant: str, text: str) -> ModuleVersion:
        """The version that a reference names. For a split alias it is the version with the most traffic.

        The version has all its fields; `resolve` leaves out the sources, recipe, notes and gate report. The
        version may belong to another base model.
        Raises InvalidField, ModuleNotFound, ModuleNotLive, UnreadableRecord and RegistryUnavailable.
        """
        reference = parse_reference(field, text)
        found = await self.store.resolve(
            tenant, reference.name, alias=reference.alias, number=reference.number
        )
        if found is None:
            raise ModuleNotFound(str(reference) if reference.number else reference.name)
        alias, versions = found
        if reference.number:
            return await self.version(tenant, reference.name, reference.number)
        if alias is None or not versions:
            raise ModuleNotLive(reference.name, reference.alias)
        number = max(_present(alias.targets, versions), key=lambda target: target.weight).version
        return await self.version(tenant, reference.name, number)

    async def probes(self, tenant: str, version: ModuleVersion) -> Probes | None:
        """The probes that the gate asks. None: the version has no probes.

        Raises ModuleNotFound, BlobDamaged and BlobStoreUnavailable.
        """
        if not version.probes_digest:
            return None
        return await self.files.run(tenant, lambda: parse_probes(self.blobs.probes(version.probes_digest)))

    def served(self, version: ModuleVersion) -> ModuleVersion:
        """The same version. Raises OtherBase for a version that was made for another base model."""
        if self.base_digest and version.base_digest and version.base_digest != self.base_digest:
            raise OtherBase(version.reference, version.base_digest)
        return version

    def _remember(
        self, tenant: str, reference: Reference, found: tuple[Alias | None, dict[int, ModuleVersion]]
    ) -> None:
        self._known[tenant, reference] = found
        self._known.move_to_end((tenant, reference))
        if len(self._known) > KNOWN_MAX:
            self._known.popitem(last=False)

    def _checked(self, publication: Publication, folder: Path) -> tuple[CheckedModule, Probes | None]:
        probes_file = folder / PROBES_FILE
        probes = parse_probes(probes_file.read_bytes()) if probes_file.is_file() else None
        checked = files_check(publication.kind)(folder, self.base)
        if publication.expected_digest not in ("", checked.digest):
            raise InvalidModule("header.expected_digest", f"the content's digest is {checked.digest}")
        return checked, probes


def _present(targets: Sequence[TrafficShare], versions: dict[int, ModuleVersion]) -> list[TrafficShare]:
    return [target for target in targets if target.version in versions]
