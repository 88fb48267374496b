"""ModuleService: an upload that is not a sound module for this model gets no name and leaves nothing behind."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc
import pytest
import pytest_asyncio

from memserve.config import MIB
from memserve.model_files import open_model
from memserve.pb.v1 import module_pb2, module_pb2_grpc
from tests.gateway.lora_files import CONFIG_FILE, LAYER, WEIGHTS_FILE, broken_files, lora_files
from tests.gateway.refusals import chunks, header, publish, refused, send_parts
from tests.gateway.running import TIMEOUT_S, RunningGateway, open_gateway

pytestmark = pytest.mark.asyncio(loop_scope="module")

INVALID = grpc.StatusCode.INVALID_ARGUMENT
HOSTILE_NAMES = ["", "../../etc/passwd", "a/b", "a' or '1'='1", "a\nb", "A", "é", "x" * 65, "a\0", ".hidden", " "]
CASES = list(broken_files({f"{LAYER}.weight": (256, 128)}))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(tmp_path_factory: pytest.TempPathFactory, model_dir: Path):  # type: ignore[no-untyped-def]
    """Takes modules of at most 2 MiB."""
    async with open_gateway(tmp_path_factory.mktemp("gateway"), model_dir, max_module_bytes=2 * MIB) as running:
        yield running


@pytest.fixture(scope="module")
def shapes(model_dir: Path) -> dict[str, tuple[int, ...]]:
    return open_model(model_dir).tensor_shapes()


def kept(gateway: RunningGateway) -> list[str]:
    """Everything that uploads have left on disk, by path, and what has escaped from there."""
    root = gateway.settings.modules_root
    left = [str(file.relative_to(root)) for part in ("modules", "staging") for file in (root / part).rglob("*")]
    return sorted([*left, *map(str, root.parent.parent.rglob("*evil*"))])


async def names(gateway: RunningGateway) -> list[str]:
    return [module.name for module in await gateway.client.modules()]


@pytest.mark.parametrize("case", CASES)
async def test_a_broken_module_is_refused_by_what_is_wrong_and_leaves_nothing(
    gateway: RunningGateway, shapes: dict[str, tuple[int, ...]], case: str
) -> None:
    files, field = broken_files(shapes)[case]
    before, on_disk = await names(gateway), kept(gateway)
    found = await refused(publish(gateway.channel, "broken", files))
    assert (found.code, found.field) == (INVALID, field)
    assert (await names(gateway), kept(gateway)) == (before, on_disk)


@pytest.mark.parametrize("name", HOSTILE_NAMES)
async def test_a_name_that_breaks_the_rule_is_refused_before_the_files(
    gateway: RunningGateway, shapes: dict[str, tuple[int, ...]], name: str
) -> None:
    on_disk = kept(gateway)
    found = await refused(publish(gateway.channel, name, lora_files(shapes)))
    assert (found.code, found.field) == (INVALID, "header.name")
    assert kept(gateway) == on_disk
    get = module_pb2_grpc.ModuleServiceStub(gateway.channel).GetModule(module_pb2.GetModuleRequest(name=name))
    assert (await refused(get)).field == "name"


@pytest.mark.parametrize(
    ("parts", "field"),
    [
        ([], "part"),
        ([module_pb2.PublishModuleRequest()], "part"),
        (chunks({CONFIG_FILE: b"{}"}), "part"),
        ([header("twice"), header("twice")], "part"),
        ([header("empty-part"), module_pb2.PublishModuleRequest()], "part"),
        ([header("kind", kind=module_pb2.MODULE_KIND_UNSPECIFIED)], "header.kind"),
        ([header("kind", kind=99)], "header.kind"),  # type: ignore[arg-type]
        ([header("only-a-header")], CONFIG_FILE),
        ([header("a"), *chunks({"../../evil": b"x"})], "chunk.file_name"),
        ([header("a"), *chunks({"/etc/cron.d/evil": b"x"})], "chunk.file_name"),
        ([header("a"), *chunks({"pytorch_model.bin": b"x"})], "chunk.file_name"),
        ([header("a"), *chunks({"": b"x"})], "chunk.file_name"),
        ([header("a"), *chunks({"n\n" * 5000: b"x"})], "chunk.file_name"),
        ([header("a"), *chunks({WEIGHTS_FILE: bytes(2 * MIB + 1)})], "chunk.content"),
    ],
    ids=["no parts", "an empty part", "no header", "two headers", "an empty later part", "no kind", "an unknown kind", "no files",
         "path traversal", "an absolute path", "another file", "no file name", "a file name without end", "too large"],
)  # fmt: skip
async def test_an_upload_that_is_not_header_then_files_is_refused(
    gateway: RunningGateway, parts: list[module_pb2.PublishModuleRequest], field: str
) -> None:
    before, on_disk = await names(gateway), kept(gateway)
    found = await refused(send_parts(gateway.channel, parts))
    assert (found.code, found.field) == (INVALID, field)
    assert (await names(gateway), kept(gateway)) == (before, on_disk)


async def test_another_digest_than_expected_is_refused(gateway: RunningGateway, shapes: dict[str, tuple[int, ...]]) -> None:
    for digest in ("0" * 64, "x", "../../etc", "sha256:" + "0" * 64):
        on_disk = kept(gateway)
        found = await refused(publish(gateway.channel, "digest", lora_files(shapes), expected_digest=digest))
        assert (found.code, found.field) == (INVALID, "header.expected_digest")
        assert kept(gateway) == on_disk
    assert "digest" not in await names(gateway)


async def test_a_module_is_published_once_whoever_repeats_it(gateway: RunningGateway, shapes: dict[str, tuple[int, ...]]) -> None:
    files = lora_files(shapes, seed=11)
    first = (await publish(gateway.channel, "tone", files)).module
    assert (await publish(gateway.channel, "tone", files, expected_digest=first.digest)).module == first
    other = await refused(publish(gateway.channel, "tone", lora_files(shapes, seed=12)))
    assert other.code is grpc.StatusCode.ALREADY_EXISTS
    assert first.digest in other.detail
    assert (await gateway.client.get_module("tone")).digest == first.digest


async def test_the_same_module_published_at_once_is_one(gateway: RunningGateway, shapes: dict[str, tuple[int, ...]]) -> None:
    files = lora_files(shapes, seed=21)
    answers = await asyncio.gather(*(publish(gateway.channel, "together", files) for _ in range(6)))
    assert len({answer.module.SerializeToString() for answer in answers}) == 1
    assert (await names(gateway)).count("together") == 1
    assert not any(path.startswith("staging") for path in kept(gateway))


async def test_of_different_modules_published_at_once_under_one_name_one_wins(
    gateway: RunningGateway, shapes: dict[str, tuple[int, ...]]
) -> None:
    results = await asyncio.gather(
        *(publish(gateway.channel, "race", lora_files(shapes, seed=seed)) for seed in range(31, 35)), return_exceptions=True
    )
    won = [result for result in results if not isinstance(result, BaseException)]
    lost = [result for result in results if isinstance(result, grpc.aio.AioRpcError)]
    assert (len(won), len(lost)) == (1, 3)
    assert {error.code() for error in lost} == {grpc.StatusCode.ALREADY_EXISTS}
    assert (await gateway.client.get_module("race")).digest == won[0].module.digest


async def test_an_upload_that_is_given_up_leaves_nothing(gateway: RunningGateway, shapes: dict[str, tuple[int, ...]]) -> None:
    on_disk = kept(gateway)
    call = module_pb2_grpc.ModuleServiceStub(gateway.channel).PublishModule(timeout=TIMEOUT_S)
    await call.write(header("given-up"))
    await call.write(chunks(lora_files(shapes))[0])
    deadline = asyncio.get_running_loop().time() + TIMEOUT_S
    while kept(gateway) == on_disk:
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0.01)
    call.cancel()
    while kept(gateway) != on_disk:
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0.01)
    assert "given-up" not in await names(gateway)


async def test_an_unknown_module_is_not_found(gateway: RunningGateway) -> None:
    get = module_pb2_grpc.ModuleServiceStub(gateway.channel).GetModule(module_pb2.GetModuleRequest(name="nobody"))
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


@pytest.mark.parametrize("token", ["!!!!", "a", "é", "AAAA====", "/w==", "//8=", "_w==", "cGFnZS0x cGFnZS0x", "x" * 10_001, "\0"])
async def test_a_page_token_that_no_page_gave_is_refused(gateway: RunningGateway, token: str) -> None:
    found = await refused(module_pb2_grpc.ModuleServiceStub(gateway.channel).ListModules(module_pb2.ListModulesRequest(page_token=token)))
    assert (found.code, found.field) == (INVALID, "page_token")


@pytest.mark.parametrize("size", [-1, 1001, -(2**31), 2**31 - 1])
async def test_a_page_size_outside_its_bounds_is_refused(gateway: RunningGateway, size: int) -> None:
    found = await refused(module_pb2_grpc.ModuleServiceStub(gateway.channel).ListModules(module_pb2.ListModulesRequest(page_size=size)))
    assert (found.code, found.field) == (INVALID, "page_size")
