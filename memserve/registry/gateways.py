"""Gateways of one registry ask each other what only one of them knows.

A question goes over Redis's publish and subscribe to all that listen, and each answers to the one that asks.
Redis says how many there are, so that nobody waits for a gateway that is gone. Nothing of it is stored.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from memserve.errors import RegistryUnavailable
from memserve.registry.client import answering, close_client, registry_client

log = logging.getLogger("memserve.registry.gateways")

ASKED = "memserve:gateways:asked"
ANSWERS = "memserve:gateways:answers:"
ANSWER_S = 1.0
PING_S = 5.0

Answer = Callable[[dict[str, str]], Any]
"""From a question, as JSON; None for nothing to say. It does not wait."""


@dataclass(frozen=True, slots=True)
class Said:
    """What the other gateways say to a question."""

    answers: tuple[Any, ...]
    """Of those with something to say, in no order."""
    silent: int
    """How many have not answered in time."""


class Gateways:
    """This gateway among the others."""

    def __init__(self, redis_url: str) -> None:
        self.name = uuid.uuid4().hex
        self.listening = asyncio.Event()
        """Whether questions of others arrive here."""
        self._redis = registry_client(redis_url, decode_responses=False)
        self._answers: dict[str, Answer] = {}
        # By the id of a question that this gateway has asked.
        self._waiting: dict[str, asyncio.Queue[Any]] = {}

    def on(self, topic: str, answer: Answer) -> None:
        """Answer questions of this topic from now on."""
        self._answers[topic] = answer

    async def ask(self, topic: str, **question: str) -> Said:
        """Ask all others, and wait ANSWER_S at most. Raises RegistryUnavailable."""
        number = uuid.uuid4().hex
        answers = self._waiting[number] = asyncio.Queue()
        message = json.dumps({"id": number, "by": self.name, "topic": topic, "question": question})
        said: list[Any] = []
        try:
            async with answering():
                await self.listening.wait()
                others = await self._redis.publish(ASKED, message) - 1
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(ANSWER_S):
                    while len(said) < others:
                        said.append(await answers.get())
        finally:
            del self._waiting[number]
        return Said(tuple(answer for answer in said if answer is not None), others - len(said))

    async def listen(self) -> None:
        """Answer until the connection to Redis breaks. The step of a loop."""
        try:
            await self._listen()
        except RegistryUnavailable as error:
            log.warning("other gateways cannot ask this one until the registry answers: %s", error)

    async def _listen(self) -> None:
        heard = self._redis.pubsub()
        own = ANSWERS + self.name
        try:
            async with answering():
                await heard.subscribe(ASKED, own)
            pings = 0
            while pings < 2:
                async with answering(PING_S + ANSWER_S):
                    message = await heard.get_message(timeout=PING_S)
                    if message is None:
                        pings += 1
                        await heard.ping()
                        continue
                pings = 0
                if message["type"] == "subscribe" and message["channel"] == own.encode():
                    self.listening.set()
                elif message["type"] == "message":
                    await self._take(message["channel"], message["data"])
            raise RegistryUnavailable("its publish and subscribe are silent")
        finally:
            self.listening.clear()
            await heard.aclose()

    async def _take(self, channel: bytes, text: bytes) -> None:
        try:
            message = json.loads(text)
            if channel != ASKED.encode():
                if (answers := self._waiting.get(message["id"])) is not None:
                    answers.put_nowait(message["answer"])
                return
            if message["by"] == self.name:
                return
            answer = self._answers.get(message["topic"])
            said = {"id": message["id"], "answer": answer(message["question"]) if answer else None}
            to = ANSWERS + str(message["by"])
        except (LookupError, TypeError, ValueError) as error:
            log.warning("a message of another gateway cannot be read: %s", error)
            return
        async with answering():
            await self._redis.publish(to, json.dumps(said))

    async def close(self) -> None:
        await close_client(self._redis)
