"""The download of a version: what a gateway sends is held against what it announced."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import grpc

from memserve.client.errors import CallFailed
from memserve.client.wire.modules import version_of
from memserve.domain import ModuleVersion
from memserve.domain.names import is_plain_file_name, is_sha256
from memserve.pb.v1 import module_pb2 as pb

FILES_MAX = 64


@dataclass(frozen=True, slots=True)
class ContentFile:
    """A file of a version."""

    file_name: str
    size_bytes: int
    sha256: str
    """hex."""


@dataclass(frozen=True, slots=True)
class VersionContent:
    """A version, and the files that follow."""

    version: ModuleVersion
    files: tuple[ContentFile, ...]


@dataclass(frozen=True, slots=True)
class FilePart:
    """Consecutive bytes of a file."""

    file_name: str
    offset: int
    content: bytes


class Download:
    """The messages of one download, in their order. Raises CallFailed."""

    def __init__(self) -> None:
        self._files: list[ContentFile] | None = None
        self._received, self._sha256 = 0, hashlib.sha256()

    def take(self, response: pb.ReadVersionResponse) -> VersionContent | FilePart:
        if self._files is None:
            return self._begin(response)
        if response.WhichOneof("part") != "chunk":
            raise _lost("a second head came")
        chunk = response.chunk
        self._pass_ended()
        if not self._files:
            raise _lost("more bytes came than were announced")
        file = self._files[0]
        if (chunk.file_name, chunk.offset) != (file.file_name, self._received) or not chunk.content:
            raise _lost(f"{file.file_name} did not come in one piece after the other")
        self._received += len(chunk.content)
        self._sha256.update(chunk.content)
        if self._received > file.size_bytes:
            raise _lost(f"{file.file_name} has more bytes than were announced")
        return FilePart(chunk.file_name, chunk.offset, chunk.content)

    def end(self) -> None:
        """The stream has ended."""
        self._pass_ended()
        if self._files is None or self._files:
            raise _lost("the stream ended early")

    def _begin(self, response: pb.ReadVersionResponse) -> VersionContent:
        content = response.content
        files = [ContentFile(file.file_name, file.size_bytes, file.sha256) for file in content.files]
        names = {file.file_name for file in files}
        if response.WhichOneof("part") != "content" or not 0 < len(names) == len(files) <= FILES_MAX:
            raise _lost("the stream began without its list of files")
        for file in files:
            if not is_plain_file_name(file.file_name) or not is_sha256(file.sha256) or file.size_bytes < 0:
                raise _lost(f"{file.file_name[:80]!r} is no file of a module")
        self._files = files
        return VersionContent(version_of(content.version), tuple(files))

    def _pass_ended(self) -> None:
        """Leave the files behind that have all their bytes."""
        while self._files and self._received == self._files[0].size_bytes:
            if self._sha256.hexdigest() != self._files[0].sha256:
                raise _lost(f"{self._files[0].file_name} came with another sha256 than was announced")
            del self._files[0]
            self._received, self._sha256 = 0, hashlib.sha256()


def _lost(why: str) -> CallFailed:
    return CallFailed(grpc.StatusCode.DATA_LOSS, f"the gateway's answer is damaged: {why}", None, None)
