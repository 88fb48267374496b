"""The upload of a folder with a module: its files, and the messages that carry them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from memserve.client.arguments import strings
from memserve.client.values import Progress
from memserve.client.wire.modules import kind_number
from memserve.domain import ModuleKind
from memserve.domain.kinds import KINDS
from memserve.pb.v1 import module_pb2 as pb

CHUNK_BYTES = 256 * 1024


# A version of any kind may bring its probes.
PROBES_FILE = "probes.json"
# A command for people. It runs in the module's folder, and needs torch and safetensors.
CONVERT = (
    'python -c "import torch, safetensors.torch as s; '
    "s.save_file({k: v.contiguous() for k, v in torch.load('adapter_model.bin', "
    "weights_only=True).items()}, 'adapter_model.safetensors')\""
)


@dataclass(frozen=True, slots=True)
class Upload:
    """A folder that becomes a version."""

    folder: Path
    header: pb.PublishModuleHeader

    @property
    def total_bytes(self) -> int:
        return sum(file.size_bytes for file in self.header.files)

    def parts(self, received: Sequence[int], progress: Progress) -> Iterator[pb.PublishModuleRequest]:
        """The messages of an upload.

        received: for each file, the bytes that the gateway has from an interrupted upload.
        """
        yield pb.PublishModuleRequest(header=self.header)
        done = sum(received)
        progress(done, self.total_bytes)
        for file, offset in zip(self.header.files, received, strict=True):
            with (self.folder / file.file_name).open("rb") as stream:
                stream.seek(offset)
                while content := stream.read(CHUNK_BYTES):
                    yield pb.PublishModuleRequest(
                        chunk=pb.FileChunk(file_name=file.file_name, content=content, offset=offset)
                    )
                    offset += len(content)
                    done += len(content)
                    progress(done, self.total_bytes)


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a version comes from, which is kept with it."""

    sources: str | Sequence[str] = ()
    recipe: str = ""
    notes: str = ""
    parents: str | Sequence[str] = ()


def upload_of(name: str, folder: str | Path, expected_digest: str, origin: Origin) -> Upload:
    """Read every file, and describe them in a header.

    Raises FileNotFoundError when a file is missing, and UsageError.
    """
    folder = Path(folder) if isinstance(folder, str) else folder
    kind = kind_of_folder(folder)
    optional = (*KINDS[kind].optional_files, PROBES_FILE)
    names = [*KINDS[kind].files, *(name for name in optional if (folder / name).is_file())]
    header = pb.PublishModuleHeader(
        name=name,
        kind=kind_number(kind),
        expected_digest=expected_digest,
        files=[_file_of(folder / file_name) for file_name in names],
        sources=strings("sources", origin.sources),
        recipe=origin.recipe,
        notes=origin.notes,
        parents=strings("parents", origin.parents),
    )
    return Upload(folder, header)


def kind_of_folder(folder: Path) -> ModuleKind:
    """The kind whose first required file is in the folder. Raises FileNotFoundError when there is none.

    Of several it is the one with the most required files: a cartridge has the files of a LoRA, and one more.
    """
    possible = [row for row in KINDS.values() if (folder / row.files[0]).is_file()]
    if possible:
        return max(possible, key=lambda row: len(row.files)).kind
    wanted = " or ".join(row.files[0] for row in KINDS.values())
    raise FileNotFoundError(2, f"has no {wanted}: it is no module", str(folder))


def _file_of(path: Path) -> pb.UploadFile:
    pickled = path.with_name(path.name.replace(".safetensors", ".bin"))
    if not path.is_file() and pickled.is_file():
        raise FileNotFoundError(
            2, f"is a pickle, which memserve does not load; convert it with: {CONVERT}", str(pickled)
        )
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return pb.UploadFile(file_name=path.name, size_bytes=path.stat().st_size, sha256=digest)
