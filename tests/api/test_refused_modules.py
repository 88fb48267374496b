"""ModuleService: an upload that is not a sound module for this model gets no name and leaves nothing
behind.
"""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio

from memserve.config import MIB
from memserve.model.files import open_model
from memserve.pb.v1 import module_pb2, module_pb2_grpc
from tests.api.refusals import chunks, header, publish, refused, send_parts
from tests.gateway.lora_files import CONFIG_FILE, LAYER, WEIGHTS_FILE, broken_files, lora_files
from tests.gateway.running import TIMEOUT_S, RunningGateway, eventually, open_gateway

pytestmark = pytest.mark.asyncio(loop_scope="module")

INVALID = grpc.StatusCode.INVALID_ARGUMENT
HOSTILE_NAMES = [
    "",
    "../../etc/passwd",
    "a/b",
    "a' or '1'='1",
    "a\nb",
    "A",
    "é",
    "x" * 65,
    "a\0",
    ".hidden",
    " ",
]
CASES = list(broken_files({f"{LAYER}.weight": (256, 128)}))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(tmp_path_factory: pytest.TempPathFactory, model_dir: Path):  # type: ignore[no-untyped-def]
    """Takes modules of at most 2 MiB."""
    async with open_gateway(
        tmp_path_factory.mktemp("gateway"), model_dir, max_module_bytes=2 * MIB
    ) as running:
        yield running


@pytest.fixture(scope="module")
def shapes(model_dir: Path) -> dict[str, tuple[int, ...]]:
    return open_model(model_dir).tensor_shapes()


def kept(gateway: RunningGateway) -> list[str]:
    """Everything that uploads have left on disk, by path, and what has escaped from there."""
    root = gateway.settings.modules_root
    left = [
        str(file.relative_to(root))
        for part in ("modules", "staging")
        for file in (root / part).rglob("*")
        if file.is_file()
    ]
    # What a cut-off or refused header has announced may be gone on with; content that was refused may not.
    left = [path for path in left if not path.startswith("modules") or path.count("/") > 1]
    return sorted([*left, *map(str, root.parent.parent.rglob("*evil*"))])


async def names(gateway: RunningGateway) -> list[str]:
    return [module.name for module in await gateway.client.modules.all()]


@pytest.mark.parametrize("case", CASES)
async def test_a_broken_module_is_refused_by_what_is_wrong_and_leaves_nothing(
    gateway: RunningGateway, shapes: dict[str, tuple[int, ...]], case: str
) -> None:
    files, field = broken_files(shapes)[case]
    before, on_disk = await names(gateway), kept(gateway)
    refusal = await refused(publish(gateway.channel, "broken", files))
    missing = field in (CONFIG_FILE, WEIGHTS_FILE) and field not in files
    assert (refusal.code, refusal.field) == (INVALID, "header.files" if missing else field)
    assert (await names(gateway), kept(gateway)) == (before, on_disk)


@pytest.mark.parametrize("name", HOSTILE_NAMES)
async def test_a_name_that_breaks_the_rule_is_refused_before_the_files(
    gateway: RunningGateway, shapes: dict[str, tuple[int, ...]], name: str
) -> None:
    on_disk = kept(gateway)
    refusal = await refused(publish(gateway.channel, name, lora_files(shapes)))
    assert (refusal.code, refusal.field) == (INVALID, "header.name")
    assert kept(gateway) == on_disk
    get = module_pb2_grpc.ModuleServiceStub(gateway.channel).GetModule(module_pb2.GetModuleRequest(name=name))
    assert (await refused(get)).field == "name"


SMALL = {CONFIG_FILE: b"{}", WEIGHTS_FILE: b"12345678"}


def listed(**change: Any) -> list[module_pb2.UploadFile]:
    """Files of a header, the first with a change."""
    first = {"file_name": CONFIG_FILE, "size_bytes": 2, "sha256": hashlib.sha256(b"{}").hexdigest(), **change}
    return [
        module_pb2.UploadFile(**first),
        module_pb2.UploadFile(file_name=WEIGHTS_FILE, size_bytes=8, sha256="0" * 64),
    ]


@pytest.mark.parametrize(
    ("parts", "code", "field"),
    [
        ([], INVALID, "part"),
        ([module_pb2.PublishModuleRequest()], INVALID, "part"),
        (chunks(SMALL), INVALID, "part"),
        ([header("twice", SMALL), header("twice", SMALL)], INVALID, "part"),
        ([header("empty-part", SMALL), module_pb2.PublishModuleRequest()], INVALID, "part"),
        ([header("kind", SMALL, kind=module_pb2.MODULE_KIND_UNSPECIFIED)], INVALID, "header.kind"),
        ([header("kind", SMALL, kind=99)], INVALID, "header.kind"),
        ([header("kind", SMALL, kind=module_pb2.MODULE_KIND_LOGIT_EXPERT)], INVALID,
        "header.files[0].file_name"),
        ([header("a", {})], INVALID, "header.files"),
        ([header("a", {CONFIG_FILE: b"{}"})], INVALID, "header.files"),
        ([header("a", {**SMALL, "../../evil": b"x"})], INVALID, "header.files[2].file_name"),
        ([header("a", {**SMALL, "/etc/cron.d/evil": b"x"})], INVALID, "header.files[2].file_name"),
        ([header("a", {**SMALL, "pytorch_model.bin": b"x"})], INVALID, "header.files[2].file_name"),
        ([header("a", {**SMALL, "": b"x"})], INVALID, "header.files[2].file_name"),
        ([header("a", {**SMALL, "n\n" * 5000: b"x"})], INVALID, "header.files[2].file_name"),
        ([header("a", {}, files=[*listed(), *listed()])], INVALID, "header.files[2].file_name"),
        ([header("a", {}, files=listed(size_bytes=-1))], INVALID, "header.files[0].size_bytes"),
        ([header("a", {}, files=listed(sha256="../../etc"))], INVALID, "header.files[0].sha256"),
        ([header("a", {**SMALL, WEIGHTS_FILE: bytes(2 * MIB + 1)})], INVALID, "header.files"),
        ([header("a", SMALL, sources=["x" * 1025])], INVALID, "header.sources"),
        ([header("a", SMALL, notes="x" * 70_000)], INVALID, "header.notes"),
        ([header("b", SMALL), *chunks({"../../evil": b"x"})], INVALID, "chunk.file_name"),
        ([header("b", SMALL), *chunks({CONFIG_FILE: b"123"})], INVALID, "chunk.content"),
        ([header("b", SMALL), *chunks({CONFIG_FILE: b"{}"}), *chunks({CONFIG_FILE: b"{}"})],
        grpc.StatusCode.DATA_LOSS, None),
        ([header("c", SMALL), *chunks({**SMALL, CONFIG_FILE: b"[]"})], INVALID, CONFIG_FILE),
    ],
    ids=["no parts", "an empty part", "no header", "two headers", "an empty later part", "no kind",
    "an unknown kind",
         "another kind's files", "no files", "a file is missing", "path traversal", "an absolute path",
         "another file", "no file name",
         "a file name without end", "a file twice", "a negative size", "no sha256", "too large",
         "a source too long", "notes too long",
         "a chunk of another file", "more than announced", "a chunk twice", "other bytes than announced"],
)  # fmt: skip
async def test_an_upload_that_is_not_header_then_files_is_refused(
    gateway: RunningGateway,
    parts: list[module_pb2.PublishModuleRequest],
    code: grpc.StatusCode,
    field: str | None,
) -> None:
    before, on_disk = await names(gateway), kept(gateway)
    refusal = await refused(send_parts(gateway.channel, parts))
    assert (refusal.code, refusal.field) == (code, field)
    assert await names(gateway) == before
    if code is INVALID:  # what may be gone on with stays
        assert kept(gateway) == on_disk


async def test_another_digest_than_expected_is_refused(
    gateway: RunningGateway, shapes: dict[str, tuple[int, ...]]
) -> None:
    for digest in ("0" * 64, "x", "../../etc", "sha256:" + "0" * 64):
        on_disk = kept(gateway)
        refusal = await refused(
            publish(gateway.channel, "digest", lora_files(shapes), expected_digest=digest)
        )
        assert (refusal.code, refusal.field) == (INVALID, "header.expected_digest")
        assert kept(gateway) == on_disk
    assert "digest" not in await names(gateway)


async def test_a_module_that_changes_no_logits_is_refused(
    gateway: RunningGateway, shapes: dict[str, tuple[int, ...]]
) -> None:
    files = lora_files(shapes, seed=5)
    digest = (await publish(gateway.channel, "moving", files)).version.digest
    gateway.workers[0].changes[digest] = 0.0
    refusal = await refused(publish(gateway.channel, "inert", files))
    assert (refusal.code, refusal.field) == (INVALID, "module")
    assert "change nothing" in refusal.detail
    assert "inert" not in await names(gateway)


async def test_other_content_is_the_next_version_and_the_same_is_the_one_that_is_there(
    gateway: RunningGateway, shapes: dict[str, tuple[int, ...]]
) -> None:
    files = lora_files(shapes, seed=11)
    first = (await publish(gateway.channel, "tone", files)).version
    assert (await publish(gateway.channel, "tone", files, expected_digest=first.digest)).version == first
    second = (await publish(gateway.channel, "tone", lora_files(shapes, seed=12))).version
    assert (first.version, second.version) == (1, 2)
    assert first.digest != second.digest
    assert [version.version for version in await gateway.client.modules.versions("tone")] == [2, 1]


async def test_the_same_module_published_at_once_is_one(
    gateway: RunningGateway, shapes: dict[str, tuple[int, ...]]
) -> None:
    """Streams of one upload take turns: the others are told to come again."""
    files = lora_files(shapes, seed=21)
    answers = await asyncio.gather(
        *(publish(gateway.channel, "together", files) for _ in range(6)), return_exceptions=True
    )
    refusals = [answer for answer in answers if isinstance(answer, grpc.aio.AioRpcError)]
    assert {refusal.code() for refusal in refusals} <= {grpc.StatusCode.RESOURCE_EXHAUSTED}
    assert (await publish(gateway.channel, "together", files)).version.version == 1
    assert not any(path.startswith("staging") and path.endswith(".safetensors") for path in kept(gateway))


async def test_different_content_published_at_once_is_as_many_versions(
    gateway: RunningGateway, shapes: dict[str, tuple[int, ...]]
) -> None:
    answers = await asyncio.gather(
        *(publish(gateway.channel, "race", lora_files(shapes, seed=seed)) for seed in range(31, 35))
    )
    assert sorted(answer.version.version for answer in answers) == [1, 2, 3, 4]
    assert len({answer.version.digest for answer in answers}) == 4


async def test_an_upload_that_is_cut_off_goes_on_where_it_ended(
    gateway: RunningGateway, shapes: dict[str, tuple[int, ...]]
) -> None:
    files = lora_files(shapes, seed=51)
    begin = header("cut-off", files)
    stub = module_pb2_grpc.ModuleServiceStub(gateway.channel)
    call = stub.PublishModule(timeout=TIMEOUT_S)
    await call.write(begin)
    part = chunks(files)[-1]
    half = part.chunk.content[: len(part.chunk.content) // 2]
    await call.write(
        module_pb2.PublishModuleRequest(chunk=module_pb2.FileChunk(file_name=WEIGHTS_FILE, content=half))
    )
    await asyncio.sleep(0.2)
    call.cancel()
    wanted = [0, len(half)]

    async def received() -> bool:
        return (
            list((await stub.GetUpload(module_pb2.GetUploadRequest(header=begin.header))).received_bytes)
            == wanted
        )

    await eventually(received)
    rest = module_pb2.FileChunk(
        file_name=WEIGHTS_FILE, content=part.chunk.content[len(half) :], offset=len(half)
    )
    early = await refused(send_parts(gateway.channel, [begin, module_pb2.PublishModuleRequest(chunk=rest)]))
    assert early.code is grpc.StatusCode.DATA_LOSS
    assert CONFIG_FILE in early.detail
    assert (
        await send_parts(gateway.channel, [begin, *chunks({CONFIG_FILE: files[CONFIG_FILE]})])
    ).version.version == 1


async def test_an_unknown_module_is_not_found(gateway: RunningGateway) -> None:
    get = module_pb2_grpc.ModuleServiceStub(gateway.channel).GetModule(
        module_pb2.GetModuleRequest(name="nobody")
    )
    assert (await refused(get)).code is grpc.StatusCode.NOT_FOUND


async def test_pages_of_modules_follow_each_other_without_gap_or_overlap(
    gateway: RunningGateway, shapes: dict[str, tuple[int, ...]]
) -> None:
    files = lora_files(shapes, seed=41)
    for number in range(5):
        await publish(gateway.channel, f"page-{number}", files)
    every = await names(gateway)
    for size in (1, 2, len(every) - 1, len(every), len(every) + 1):
        paged: list[str] = []
        token = ""
        while True:
            page = await module_pb2_grpc.ModuleServiceStub(gateway.channel).ListModules(
                module_pb2.ListModulesRequest(page_size=size, page_token=token)
            )
            assert 1 <= len(page.modules) <= size
            paged += [module.name for module in page.modules]
            token = page.next_page_token
            if not token:
                break
        assert paged == every


@pytest.mark.parametrize(
    "token", ["!!!!", "a", "é", "AAAA====", "/w==", "//8=", "_w==", "cGFnZS0x cGFnZS0x", "x" * 10_001, "\0"]
)
async def test_a_page_token_that_no_page_gave_is_refused(gateway: RunningGateway, token: str) -> None:
    refusal = await refused(
        module_pb2_grpc.ModuleServiceStub(gateway.channel).ListModules(
            module_pb2.ListModulesRequest(page_token=token)
        )
    )
    assert (refusal.code, refusal.field) == (INVALID, "page_token")


@pytest.mark.parametrize("size", [-1, 1001, -(2**31), 2**31 - 1])
async def test_a_page_size_outside_its_bounds_is_refused(gateway: RunningGateway, size: int) -> None:
    refusal = await refused(
        module_pb2_grpc.ModuleServiceStub(gateway.channel).ListModules(
            module_pb2.ListModulesRequest(page_size=size)
        )
    )
    assert (refusal.code, refusal.field) == (INVALID, "page_size")
