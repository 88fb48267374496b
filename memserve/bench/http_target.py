"""A server that speaks OpenAI's API over HTTP: memserve's own port, or another's."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from memserve.bench.http_connection import Broken, HttpConnections, origin_of
from memserve.bench.rows import Heard, NotAnswered
from memserve.bench.scenario import Scenario
from memserve.bench.workload import Planned
from memserve.client import TlsFiles
from memserve.errors import UsageError

CHAT = "/v1/chat/completions"
REFUSALS = (429, 503)
DONE = b"[DONE]"


class HttpTarget:
    """Asks `POST /v1/chat/completions`, streamed, with the usage at the end."""

    def __init__(
        self, url: str, api_key: str, scenario: Scenario, namespace: str, tls: TlsFiles | None = None
    ) -> None:
        """namespace: to recall from. Empty: none. Raises UsageError."""
        bearer = {"authorization": f"Bearer {api_key}"} if api_key else {}
        self._connections = HttpConnections(origin_of(url, tls), bearer)
        self._scenario = scenario
        self._model = scenario.model
        self._extra = _extra(scenario, namespace)

    async def open(self) -> None:
        """Find the model's name, where the scenario has none. Raises UsageError when nobody answers."""
        if self._model:
            return
        try:
            async with self._connections.request("GET", "/v1/models") as response:
                body = await response.body()
            if response.status != 200:
                raise UsageError("--http", f"/v1/models: {_reason(response.status, {}, body)}")
            self._model = str(json.loads(body)["data"][0]["id"])
        except Broken as error:
            raise UsageError("--http", f"no HTTP server answers: {error}") from None
        except (ValueError, LookupError, TypeError):
            raise UsageError("--http", "/v1/models names no model; name one with --set model") from None

    def close(self) -> None:
        self._connections.close()

    async def ask(self, request: Planned, heard: Heard, clock: Callable[[], float]) -> None:
        refusal: NotAnswered | None = None
        ended = False
        try:
            async with self._connections.request("POST", CHAT, self._body(request)) as response:
                heard.worker = response.headers.get("x-memserve-worker", "")
                if response.status == 200:
                    async for line in response.lines():
                        if line.startswith(b"data:"):
                            ended = _read(line[5:].strip(), heard, clock) or ended
                else:
                    reason = _reason(response.status, response.headers, await response.body())
                    refusal = NotAnswered(reason, refused=response.status in REFUSALS)
        except Broken as error:
            raise NotAnswered(f"connection: {error}") from None
        if refusal is not None:
            raise refusal
        if not ended:
            raise NotAnswered("the stream ended early")

    def _body(self, request: Planned) -> bytes:
        extra = self._extra | ({"session": request.session} if request.session else {})
        if request.module:
            extra["module"] = request.module
        body: dict[str, Any] = {
            "model": self._model,
            "messages": [{"role": turn.role.value, "content": turn.content} for turn in request.messages],
            "max_tokens": request.output_tokens,
            "temperature": 0.0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self._scenario.output.fixed:
            body["ignore_eos"] = True
        # Other servers do not know memserve's object.
        if set(extra) - {"session"}:
            body["memserve"] = extra
        elif request.session:
            body["user"] = request.session
        return json.dumps(body).encode()


def _extra(scenario: Scenario, namespace: str) -> dict[str, Any]:
    """The fields of the body that only memserve has."""
    extra: dict[str, Any] = {}
    if namespace:
        extra["namespaces"] = [namespace]
        if scenario.recall and scenario.recall.limit:
            extra["recall_limit"] = scenario.recall.limit
    if scenario.slo.send:
        slo = scenario.slo
        extra["slo"] = {"ttft_ms": slo.ttft_ms, "tpot_ms": slo.tpot_ms, "refuse_late": slo.refuse_late}
    return extra


def _read(content: bytes, heard: Heard, clock: Callable[[], float]) -> bool:
    """One event. Returns whether it is the last one. Raises NotAnswered."""
    if content == DONE:
        return True
    now_s = clock()
    try:
        event = json.loads(content)
    except ValueError:
        raise NotAnswered("an event that is no JSON") from None
    if not isinstance(event, dict):
        raise NotAnswered("an event that is no object")
    if "error" in event:
        raise NotAnswered(_error_words(event) or "an error in the stream")
    for choice in event.get("choices") or ():
        if (choice.get("delta") or {}).get("content"):
            heard.token_times_s.append(now_s)
    if usage := event.get("usage"):
        heard.prompt_tokens = usage.get("prompt_tokens")
        heard.output_tokens = usage.get("completion_tokens")
        heard.cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")
    return False


def _reason(status: int, headers: Any, body: bytes) -> str:
    """From a bounded set: a reason of memserve's, the error's type, or the status."""
    if reason := headers.get("x-memserve-reason"):
        return str(reason)
    try:
        words = _error_words(json.loads(body))
    except ValueError:
        words = ""
    return f"HTTP {status}{' ' if words else ''}{words}"


def _error_words(body: Any) -> str:
    error = body.get("error") if isinstance(body, dict) else None
    if not isinstance(error, dict):
        return ""
    return str(error.get("code") or error.get("type") or "")[:64]
