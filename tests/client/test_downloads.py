"""A download that is not what it was announced as is refused, whatever is wrong with it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import pytest

from memserve.client import CallFailed
from memserve.client.downloads import Download
from memserve.pb.v1 import module_pb2 as pb

A, B = b"content of a", b"and of b"


def listed(name: str, content: bytes) -> pb.UploadFile:
    return pb.UploadFile(file_name=name, size_bytes=len(content), sha256=hashlib.sha256(content).hexdigest())


def head(*files: pb.UploadFile) -> pb.ReadVersionResponse:
    return pb.ReadVersionResponse(content=pb.VersionContent(files=files))


def chunk(name: str, content: bytes, offset: int = 0) -> pb.ReadVersionResponse:
    return pb.ReadVersionResponse(chunk=pb.FileChunk(file_name=name, content=content, offset=offset))


HEAD = head(listed("a.json", A), listed("b.json", B))
WHOLE = [HEAD, chunk("a.json", A[:4]), chunk("a.json", A[4:], 4), chunk("b.json", B)]


def run(responses: Sequence[pb.ReadVersionResponse]) -> list[object]:
    download = Download()
    taken: list[object] = [download.take(response) for response in responses]
    download.end()
    return taken


def test_a_whole_download_is_taken() -> None:
    assert len(run(WHOLE)) == 4
    assert len(run([head(listed("empty.json", b""), listed("b.json", B)), chunk("b.json", B)])) == 2


@pytest.mark.parametrize(
    ("responses", "why"),
    [
        ([], "ended early"),
        ([HEAD], "ended early"),
        (WHOLE[:-1], "ended early"),
        (WHOLE[1:], "without its list"),
        ([head()], "without its list"),
        ([head(listed("a.json", A), listed("a.json", A))], "without its list"),
        ([head(*(listed(f"a{number}.json", A) for number in range(65)))], "without its list"),
        ([head(listed("../a", A))], "no file of a module"),
        ([head(pb.UploadFile(file_name="a.json", size_bytes=-1, sha256="0" * 64))], "no file of a module"),
        ([head(pb.UploadFile(file_name="a.json", size_bytes=1, sha256="x"))], "no file of a module"),
        ([*WHOLE, WHOLE[-1]], "more bytes"),
        ([HEAD, HEAD], "second head"),
        ([HEAD, WHOLE[3]], "did not come"),
        ([HEAD, chunk("a.json", A, 1)], "did not come"),
        ([HEAD, chunk("a.json", b"")], "did not come"),
        ([HEAD, chunk("a.json", A + b"x")], "more bytes"),
        ([HEAD, chunk("a.json", A.upper()), WHOLE[3]], "another sha256"),
        ([*WHOLE[:3], chunk("b.json", B.upper())], "another sha256"),
    ],
)
def test_a_download_that_is_not_what_was_announced_is_refused(
    responses: Sequence[pb.ReadVersionResponse], why: str
) -> None:
    with pytest.raises(CallFailed, match="DATA_LOSS") as failed:
        run(responses)
    assert why in failed.value.detail
