"""The parts of vLLM that memserve uses without vLLM documenting them are still in the installed vLLM.

An upgrade of vLLM begins here. A test that fails names the part that has gone and, in its id, the function of
`memserve/worker/kv/vllm_internals.py` that uses it.
"""

from __future__ import annotations

import ast
import fnmatch
import importlib
import inspect
import re
import textwrap
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from memserve.config import Settings
from memserve.worker.kv import vllm_internals

FUNCTIONS: list[Callable[..., Any]] = [
    value
    for value in vars(vllm_internals).values()
    if inspect.isfunction(value) and value.__module__ == vllm_internals.__name__
]
PART = re.compile(r"(?P<file>[\w/]+\.py)\b|`(?P<name>\w+(?:\.\w+)?)`")


def parts(function: Callable[..., Any]) -> list[tuple[str, str]]:
    """Files of vLLM and names in them, as a function's docstring ends."""
    named: list[tuple[str, str]] = []
    file = ""
    for part in PART.finditer(inspect.getdoc(function) or ""):
        if part["file"]:
            file = part["file"]
        elif file:
            named.append((file, part["name"]))
    return named


def in_vllm(file: str, name: str) -> bool:
    """Whether the file has a function or a class of that name; of "Class.attribute", the attribute too."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # vLLM imports what torch has deprecated
        module = importlib.import_module("vllm." + file.removesuffix(".py").replace("/", "."))
    owner, _, attribute = name.partition(".")
    value = getattr(module, owner, None)
    if value is None or value.__module__ != module.__name__:
        return False
    return not attribute or attribute in attributes(value)


def attributes(cls: type) -> set[str]:
    """Names that a class or its objects have. What is set on `self` only is read from the source."""
    names = set(dir(cls))
    for base in cls.__mro__:
        names |= set(vars(base).get("__annotations__", ()))
        if base.__module__.startswith("vllm."):
            names |= set(set_on_self(base))
    return names


def set_on_self(cls: type) -> Iterator[str]:
    for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(cls)))):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__name__)
def test_every_part_that_a_function_uses_is_in_vllm(function: Callable[..., Any]) -> None:
    assert parts(function), "its docstring must end with the file and the name of what it uses"
    assert [part for part in parts(function) if not in_vllm(*part)] == []


@pytest.mark.parametrize("part", vllm_internals.INHERITED)
def test_every_part_that_a_subclass_builds_on_is_in_vllm(part: str) -> None:
    file, _, name = part.partition(":")
    assert in_vllm(file, name)


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("v1/kv_offload/base.py", "ReqContext._no_such_positions"),
        ("v1/kv_offload/base.py", "NoSuchContext"),
        ("v1/kv_offload/cpu/manager.py", "ReqContext"),  # of another file
    ],
)
def test_a_part_that_has_gone_is_noticed(file: str, name: str) -> None:
    assert not in_vllm(file, name)


def test_nothing_else_of_the_worker_reads_an_underscored_name_of_vllm() -> None:
    """Such a name is set in its own file, or is a method of memserve's, or is listed in INHERITED."""
    folder = Path(vllm_internals.__file__).parents[1]
    trees = {
        path.relative_to(folder): list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        for path in sorted(folder.rglob("*.py"))
        if path.name != "vllm_internals.py"
    }
    listed = {part.rpartition(".")[2] for part in vllm_internals.INHERITED}
    methods = {
        node.name
        for nodes in trees.values()
        for node in nodes
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    read = [
        f"{path}:{node.lineno} {ast.unparse(node)}"
        for path, nodes in trees.items()
        for node in nodes
        if isinstance(node, ast.Attribute)
        and re.match(r"_[a-z]", node.attr)
        and ast.unparse(node) != "os._exit"
        and node.attr not in {*listed, *methods, *own_names(nodes)}
    ]
    assert read == []


def own_names(nodes: Iterable[ast.AST]) -> Iterator[str]:
    """Attributes that a file sets, and fields that it declares."""
    for node in nodes:
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id


# The functions, over vLLM's own objects where these need no engine


def test_positions_are_those_that_the_scheduler_has_set() -> None:
    from vllm.v1.kv_offload.base import OffloadKey, ReqContext

    context = ReqContext("r")
    keys = [OffloadKey(bytes([number])) for number in (2, 1)]
    for number, key in enumerate(keys, start=1):
        context.set_offload_key_position(key, 64 * number)
    assert list(vllm_internals.offload_key_positions(context).items()) == [(keys[0], 64), (keys[1], 128)]


def test_a_chunk_is_known_missing_once_its_look_up_was_answered() -> None:
    from vllm.v1.kv_offload.base import OffloadKey, ReqContext
    from vllm.v1.kv_offload.tiering.async_lookup import AsyncLookupManager

    class NothingIsThere(AsyncLookupManager):  # type: ignore[misc]
        def batch_lookup(self, keys: list[OffloadKey], req_context: ReqContext) -> list[bool]:
            return [False] * len(keys)

    lookups, key = NothingIsThere("test"), OffloadKey(b"key")
    assert not vllm_internals.is_known_missing(lookups, key)
    lookups.lookup(key, ReqContext("r"))
    assert not vllm_internals.is_known_missing(lookups, key)
    lookups.flush()
    lookups.shutdown()
    lookups.drain_results()
    assert vllm_internals.is_known_missing(lookups, key)


def test_a_chunk_of_host_memory_has_a_place_before_it_is_there() -> None:
    from vllm.v1.kv_offload.base import OffloadKey, ReqContext
    from vllm.v1.kv_offload.cpu.manager import CPUOffloadingManager

    manager, key, context = CPUOffloadingManager(num_chunks=2), OffloadKey(b"key" + bytes(4)), ReqContext("r")
    assert vllm_internals.host_chunk(manager, key) is None
    prepared = manager.prepare_store([key], context)
    assert prepared is not None
    chunk = vllm_internals.host_chunk(manager, key)
    assert chunk is not None
    assert (list(prepared.store_spec.chunk_ids), chunk.ref_cnt) == ([chunk.chunk_id], -1)
    manager.complete_store([key], context)
    assert chunk.ref_cnt == 0


def test_the_second_to_map_a_region_has_not_created_it() -> None:
    from vllm.v1.kv_offload.cpu.shared_offload_region import SharedOffloadRegion

    engine_id = uuid.uuid4().hex
    created, opened = (
        SharedOffloadRegion(
            engine_id=engine_id, num_chunks=1, rank=rank, kv_bytes_per_chunk=4096, cpu_page_size=4096
        )
        for rank in (None, 0)
    )
    file = vllm_internals.region_file(created)
    try:
        assert [vllm_internals.has_created(region) for region in (created, opened)] == [True, False]
        assert file == vllm_internals.region_file(opened)
        assert str(file.parent) == "/dev/shm"
        assert fnmatch.fnmatch(file.name, vllm_internals.HOST_REGION_FILES)
        vllm_internals.leave_file_alone(created)
        for region in (created, opened):
            region.cleanup()
        assert file.exists()
    finally:
        file.unlink(missing_ok=True)


def test_adapters_are_in_the_order_of_their_last_use() -> None:
    from vllm.lora.model_manager import AdapterLRUCache

    caches = [AdapterLRUCache(3, lambda lora_id: None) for _ in range(2)]
    manager = SimpleNamespace(_registered_adapters=caches[0], _active_adapters=caches[1])
    loras: Any = SimpleNamespace(_adapter_manager=manager)
    for lora_id in (1, 2, 3):
        caches[0][lora_id] = object()
    caches[1][2] = object()
    assert vllm_internals.adapters_in_memory(loras) == [1, 2, 3]
    assert vllm_internals.adapters_in_slots(loras) == [2]
    vllm_internals.count_adapter_as_used(loras, 1)
    assert vllm_internals.adapters_in_memory(loras) == [2, 3, 1]


def test_vllm_has_the_environment_variables_that_the_engine_is_started_with() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Ray
        from vllm import envs

        from memserve.worker.replica import engine_environment

    variables = {name for name in engine_environment(Settings()) if name.startswith("VLLM_")}
    assert variables <= set(envs.environment_variables)
