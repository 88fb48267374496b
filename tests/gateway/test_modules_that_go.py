"""Modules that go while a request is under way."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import pytest

from memserve.domain import (
    GenerationRequest,
    Message,
    ModuleFit,
    ModuleUse,
    RecallOutcome,
    RecallPart,
    RecallSource,
    Role,
    Route,
)
from memserve.domain.worker_calls import PLACEHOLDER_TOKEN
from memserve.errors import InvalidField
from memserve.gateway.assembly import services_of
from memserve.gateway.recall_preview import RecallPreviews
from memserve.gateway.steps.recall import NO_ROOM, Recalled
from tests.gateway.asking import GREEDY, published
from tests.gateway.fixtures import StartGateway
from tests.gateway.running import until
from tests.gateway.test_cartridges import TOKENS, cartridge

HELLO = GenerationRequest((Message(Role.USER, "hello"),), GREEDY)
FIT = ModuleFit("gone", 1, "0" * 64, 0.9, "it knows", chosen=True)


@dataclass
class ScriptedRecall:
    """Gives what it is told to, once it may."""

    recalled: Recalled
    may_end: asyncio.Event = field(default_factory=asyncio.Event)
    is_asked: bool = False

    async def __call__(self, request: GenerationRequest, tenant: str) -> Recalled:
        self.is_asked = True
        await self.may_end.wait()
        return self.recalled


async def test_a_version_is_in_use_while_its_request_recalls(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    gateway = await start_gateway()
    await published(gateway, tmp_path)
    version = await gateway.parts.modules.version("default", "tone", 1)
    recall = ScriptedRecall(Recalled(RecallOutcome.EMPTY))
    pipeline = replace(services_of(gateway.parts, gateway.access).pipeline, recall=cast(Any, recall))
    tenant = gateway.access.tenant("")
    asked = replace(HELLO, modules=(ModuleUse("tone"),))
    answering = asyncio.create_task(_events(pipeline.generate(asked, tenant, None)))
    await until(lambda: recall.is_asked)
    assert version.digest in gateway.parts.uses
    recall.may_end.set()
    await answering
    assert version.digest not in gateway.parts.uses


async def test_a_chosen_module_that_is_gone_is_left_out(start_gateway: StartGateway) -> None:
    gateway = await start_gateway()
    part = RecallPart(RecallSource.MODULES, RecallOutcome.FOUND, 1.0, 1)
    recall = ScriptedRecall(Recalled(RecallOutcome.NOT_ASKED, parts=(part,), module_fits=(FIT,)))
    recall.may_end.set()
    pipeline = replace(services_of(gateway.parts, gateway.access).pipeline, recall=cast(Any, recall))
    tenant = gateway.access.tenant("")
    asked = replace(HELLO, choose_module=True)
    route, *_ = await _events(pipeline.generate(asked, tenant, time.monotonic() + 20))
    assert isinstance(route, Route) and route.modules == ()
    for told in (route, await RecallPreviews(pipeline).preview(asked, tenant)):
        [fit] = told.module_fits
        assert not fit.chosen and "deleted" in fit.reason
    assert route.recall[0].outcome is RecallOutcome.EMPTY and route.recall[0].given == 0


async def test_a_chosen_module_that_leaves_no_room_is_left_out(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    """What a caller has not asked for costs no answer; what a caller names is refused with the reason."""
    gateway = await start_gateway(max_context_tokens=160)
    version = await cartridge(gateway, tmp_path, "book")
    chosen = replace(FIT, name="book", digest=version.digest)
    recall = ScriptedRecall(Recalled(RecallOutcome.NOT_ASKED, module_fits=(chosen,)))
    recall.may_end.set()
    pipeline = replace(services_of(gateway.parts, gateway.access).pipeline, recall=cast(Any, recall))
    tenant = gateway.access.tenant("")
    long = (Message(Role.USER, "the gate of the north tower opens " * 9),)
    asked = replace(HELLO, messages=long, choose_module=True)
    room = 160 - len(gateway.token_ids(long[0].content))
    assert GREEDY.max_tokens <= room < TOKENS
    route, *_ = await _events(pipeline.generate(asked, tenant, time.monotonic() + 20))
    for told in (route, await RecallPreviews(pipeline).preview(asked, tenant)):
        [fit] = told.module_fits
        assert not fit.chosen and fit.reason == NO_ROOM
    assert route.modules == () and gateway.workers[0].requests[-1].token_ids[0] != PLACEHOLDER_TOKEN
    named = replace(asked, choose_module=False, modules=(ModuleUse("book"),))
    recall.recalled = Recalled(RecallOutcome.NOT_ASKED)
    with pytest.raises(InvalidField, match=r"(after|make) a prompt of"):
        await _events(pipeline.generate(named, tenant, time.monotonic() + 20))


async def _events(stream: Any) -> list[Any]:
    return [event async for event in stream]
