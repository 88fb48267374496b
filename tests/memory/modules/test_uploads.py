"""An upload that is cut off goes on where it was, and becomes a module's folder only when every byte is
right.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from memserve.domain import ModuleKind
from memserve.errors import InvalidModule, QuotaExceeded, UploadIncomplete
from memserve.memory.modules.probes import MAX_BYTES as PROBES_MAX_BYTES
from memserve.memory.modules.uploads import MAX_UNFINISHED, Upload, UploadFile, Uploads, sweep_uploads

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
CONTENT = {CONFIG: b'{"r": 4}', WEIGHTS: bytes(range(200))}
SHA = "0" * 64
NOW_S = 2e9  # Later than any file's time.


def announced(content: dict[str, bytes] = CONTENT) -> list[UploadFile]:
    return [UploadFile(name, len(part), hashlib.sha256(part).hexdigest()) for name, part in content.items()]


@pytest.fixture
def uploads(tmp_path: Path) -> Uploads:
    return Uploads(tmp_path, 1000, 20_000)


@pytest.fixture
def upload(uploads: Uploads) -> Iterator[Upload]:
    opened = uploads.open("alice", "tone", ModuleKind.LORA, announced())
    yield opened
    opened.close()


def resumed(
    uploads: Uploads, files: list[UploadFile] | None = None, tenant: str = "alice", name: str = "tone"
) -> Upload:
    return uploads.open(tenant, name, ModuleKind.LORA, files or announced())


def left(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if len(path.relative_to(root).parts) > 1]


def test_an_upload_arrives_in_chunks_and_is_there_whole(upload: Upload) -> None:
    for name, content in CONTENT.items():
        for offset in range(0, len(content), 7):
            upload.append(name, offset, content[offset : offset + 7])
    folder = upload.finish()
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == CONTENT


def test_an_upload_that_was_cut_off_goes_on_where_it_was(uploads: Uploads, upload: Upload) -> None:
    upload.append(WEIGHTS, 0, CONTENT[WEIGHTS][:150])
    with pytest.raises(UploadIncomplete, match="0 of 8 bytes"):
        upload.finish()
    upload.close()
    again = resumed(uploads, announced()[::-1])
    assert again.received() == (150, 0)
    again.append(WEIGHTS, 150, CONTENT[WEIGHTS][150:])
    again.append(CONFIG, 0, CONTENT[CONFIG])
    assert (again.finish() / WEIGHTS).read_bytes() == CONTENT[WEIGHTS]
    again.discard()


@pytest.mark.parametrize("other", ["tenant", "name", "content"])
def test_another_upload_begins_at_nothing(uploads: Uploads, upload: Upload, other: str) -> None:
    upload.append(CONFIG, 0, CONTENT[CONFIG])
    changed = {
        "tenant": lambda: resumed(uploads, tenant="bob"),
        "name": lambda: resumed(uploads, name="else"),
        "content": lambda: resumed(uploads, announced({**CONTENT, WEIGHTS: bytes(200)})),
    }[other]()
    assert changed.received() == (0, 0)
    changed.close()


def test_no_part_of_a_path_comes_from_a_name(tmp_path: Path, uploads: Uploads) -> None:
    upload = uploads.open("../../evil", "../evil", ModuleKind.LORA, announced())
    upload.append(CONFIG, 0, b"{")
    assert list(tmp_path.parent.rglob("*evil*")) == []
    upload.close()


def lora(*files: tuple[str, int, str]) -> list[UploadFile]:
    return [UploadFile(*file) for file in files]


@pytest.mark.parametrize(
    ("files", "field"),
    [
        ([], "header.files"),
        (lora((CONFIG, 1, SHA)), "header.files"),
        (lora((CONFIG, 1, SHA), (WEIGHTS, 1, SHA), (CONFIG, 1, SHA)), "header.files[2].file_name"),
        (
            lora((CONFIG, 1, SHA), (WEIGHTS, 1, SHA), ("adapter_model.bin", 1, SHA)),
            "header.files[2].file_name",
        ),
        (lora((f"../{CONFIG}", 1, SHA), (WEIGHTS, 1, SHA)), "header.files[0].file_name"),
        (lora(("", 1, SHA)), "header.files[0].file_name"),
        (lora((CONFIG, -1, SHA), (WEIGHTS, 1, SHA)), "header.files[0].size_bytes"),
        (lora((CONFIG, 500, SHA), (WEIGHTS, 501, SHA)), "header.files"),
        (
            lora((CONFIG, 1, SHA), (WEIGHTS, 1, SHA), ("probes.json", PROBES_MAX_BYTES + 1, SHA)),
            "header.files[2].size_bytes",
        ),
        (lora((CONFIG, 1, SHA), (WEIGHTS, 1, "")), "header.files[1].sha256"),
        (lora((CONFIG, 1, SHA), (WEIGHTS, 1, "A" * 64)), "header.files[1].sha256"),
    ],
)
def test_a_list_of_files_that_breaks_a_rule_is_refused_before_any_byte(
    tmp_path: Path, files: list[UploadFile], field: str
) -> None:
    with pytest.raises(InvalidModule) as refusal:
        Uploads(tmp_path, 1000, 20_000).open("alice", "tone", ModuleKind.LORA, files)
    assert refusal.value.field == field
    assert left(tmp_path) == []


def test_a_logit_expert_may_bring_an_anti_expert_and_probes(uploads: Uploads) -> None:
    names = [
        "expert_config.json",
        "config.json",
        "model.safetensors",
        "anti_model.safetensors",
        "probes.json",
    ]
    uploads.open(
        "alice", "expert", ModuleKind.LOGIT_EXPERT, [UploadFile(name, 1, SHA) for name in names]
    ).discard()


@pytest.mark.parametrize(
    ("file_name", "offset", "content", "field"),
    [
        ("probes.json", 0, b"x", "chunk.file_name"),
        ("../evil", 0, b"x", "chunk.file_name"),
        (CONFIG, 2, b"1234567", "chunk.content"),
    ],
)
def test_a_chunk_that_does_not_belong_is_refused_and_changes_nothing(
    upload: Upload, file_name: str, offset: int, content: bytes, field: str
) -> None:
    upload.append(CONFIG, 0, b"{ ")
    with pytest.raises(InvalidModule) as refusal:
        upload.append(file_name, offset, content)
    assert refusal.value.field == field
    assert upload.received() == (2, 0)


def test_bytes_that_are_here_already_are_passed_over(upload: Upload) -> None:
    """A publisher that begins anew at another gateway need not know what is there."""
    upload.append(CONFIG, 0, CONTENT[CONFIG][:5])
    upload.append(CONFIG, 0, CONTENT[CONFIG][:3])
    upload.append(CONFIG, 3, CONTENT[CONFIG][3:7])
    assert upload.received() == (7, 0)
    upload.append(CONFIG, 0, CONTENT[CONFIG])
    upload.append(WEIGHTS, 0, CONTENT[WEIGHTS])
    assert (upload.finish() / CONFIG).read_bytes() == CONTENT[CONFIG]


@pytest.mark.parametrize("offset", [3, 9, -2])
def test_a_chunk_of_another_place_says_what_is_here_and_the_upload_goes_on(
    upload: Upload, offset: int
) -> None:
    upload.append(CONFIG, 0, CONTENT[CONFIG][:2])
    with pytest.raises(UploadIncomplete, match="2 of 8 bytes"):
        upload.append(CONFIG, offset, b"x")
    upload.append(CONFIG, 2, CONTENT[CONFIG][2:])
    assert upload.received() == (8, 0)


def test_what_is_here_is_told_while_a_stream_is_at_it(uploads: Uploads, upload: Upload) -> None:
    upload.append(WEIGHTS, 0, CONTENT[WEIGHTS][:150])
    assert uploads.received("alice", "tone", ModuleKind.LORA, announced()) == (0, 150)
    assert uploads.received("alice", "tone", ModuleKind.LORA, announced()[::-1]) == (150, 0)


def test_asking_for_an_upload_that_is_not_here_begins_none(tmp_path: Path, uploads: Uploads) -> None:
    assert uploads.received("bob", "tone", ModuleKind.LORA, announced()) == (0, 0)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InvalidModule):
        uploads.received("bob", "tone", ModuleKind.LORA, [])


def test_a_file_of_another_sha256_is_refused_and_nothing_stays(
    tmp_path: Path, uploads: Uploads, upload: Upload
) -> None:
    upload.append(CONFIG, 0, CONTENT[CONFIG])
    upload.append(WEIGHTS, 0, CONTENT[WEIGHTS][::-1])
    with pytest.raises(InvalidModule, match="sha256") as refusal:
        upload.finish()
    assert refusal.value.field == WEIGHTS
    assert left(tmp_path) == []


def test_two_streams_never_share_an_upload(uploads: Uploads, upload: Upload) -> None:
    with pytest.raises(QuotaExceeded, match="streams of this upload"):
        resumed(uploads)
    upload.close()
    resumed(uploads).close()


def test_a_file_that_a_publisher_has_rewritten_longer_is_sent_anew(uploads: Uploads, upload: Upload) -> None:
    upload.append(CONFIG, 0, CONTENT[CONFIG])
    upload.append(WEIGHTS, 0, CONTENT[WEIGHTS])
    (upload.finish() / CONFIG).write_bytes(b"longer than it was announced")
    upload.close()
    assert uploads.received("alice", "tone", ModuleKind.LORA, announced()) == (0, 200)
    again = resumed(uploads)
    assert again.received() == (0, 200)
    again.close()


def test_one_upload_too_many_takes_the_place_of_the_one_idle_longest(
    tmp_path: Path, uploads: Uploads
) -> None:
    for number in range(MAX_UNFINISHED):
        resumed(uploads, name=f"m{number}").close()
    busy = resumed(uploads, name="m0")
    resumed(uploads, name="one more").close()
    assert len(left(tmp_path)) == MAX_UNFINISHED
    busy.append(CONFIG, 0, CONTENT[CONFIG])
    assert busy.received() == (8, 0)
    busy.close()
    resumed(uploads, tenant="bob").close()


def test_a_tenant_with_a_stream_at_each_upload_gets_no_further_one(uploads: Uploads) -> None:
    opened = [resumed(uploads, name=f"m{number}") for number in range(MAX_UNFINISHED)]
    with pytest.raises(QuotaExceeded, match="unfinished uploads"):
        resumed(uploads, name="one more")
    for upload in opened:
        upload.close()


def test_a_discarded_upload_leaves_nothing_and_can_be_discarded_again(tmp_path: Path, upload: Upload) -> None:
    upload.append(CONFIG, 0, CONTENT[CONFIG])
    upload.discard()
    upload.discard()
    upload.close()
    assert left(tmp_path) == []


def test_the_sweep_removes_what_is_old_and_idle(tmp_path: Path, uploads: Uploads, upload: Upload) -> None:
    resumed(uploads, name="idle").close()
    assert sweep_uploads(tmp_path, NOW_S, NOW_S) == 0
    assert sweep_uploads(tmp_path, 60.0, NOW_S) == 1
    upload.append(CONFIG, 0, CONTENT[CONFIG])
    upload.close()
    assert sweep_uploads(tmp_path, 60.0, NOW_S) == 1
    assert left(tmp_path) == []


def test_a_tenants_unfinished_uploads_have_a_quota_of_bytes_and_idle_ones_make_room(tmp_path: Path) -> None:
    uploads = Uploads(tmp_path, 1000, 2 * 208)
    first, second = resumed(uploads, name="a"), resumed(uploads, name="b")
    with pytest.raises(QuotaExceeded, match="bytes of unfinished uploads: the limit of 416"):
        resumed(uploads, name="c")  # Announced bytes count before they come.
    with pytest.raises(QuotaExceeded, match="streams of this upload"):
        resumed(uploads, name="b")
    resumed(uploads, tenant="bob").close()
    first.append(WEIGHTS, 0, CONTENT[WEIGHTS])
    first.close()
    third = resumed(uploads, name="c")
    assert resumed(uploads, tenant="bob").received() == (0, 0)
    with pytest.raises(QuotaExceeded, match="bytes of unfinished"):
        resumed(uploads, name="a")
    for opened in (second, third):
        opened.discard()
    assert resumed(uploads, name="a").received() == (0, 0), "it was the idle one that made room"
