"""Between bodies of OpenAI's API and domain values."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from memserve.api.http.bodies import Answering, ChatBody, CompletionBody, MemserveBody, RecallBody
from memserve.api.http.tools import AskedTools, calls_body, turn
from memserve.api.rules import check_generation, usual_priority
from memserve.domain import (
    FinishReason,
    GenerationRequest,
    LinkKind,
    MemoryKind,
    Message,
    ModuleKind,
    ModuleUse,
    Priority,
    Role,
    Route,
    Sampling,
    ScoredMemory,
    SearchQuery,
    Slo,
    Tenant,
    TextDelta,
    Usage,
)
from memserve.errors import InvalidField
from memserve.policy.recall.metadata import checked_metadata
from memserve.policy.tool_calls import Call, CallReader

ROLES = {
    "system": Role.SYSTEM,
    "developer": Role.SYSTEM,
    "user": Role.USER,
    "assistant": Role.ASSISTANT,
    "tool": Role.TOOL,
}
ANY_OBJECT = '{"type":"object"}'
BETWEEN = ":"
"""In a model's name, between the base model and a module of the tenant."""


def model_name(base: str, reference: str) -> str:
    return f"{base}{BETWEEN}{reference}"


def chat_request(body: ChatBody, base: str, tenant: Tenant, tools: AskedTools) -> GenerationRequest:
    """base: the served model's name. tools: what the body says of them. Raises InvalidField."""
    if body.max_tokens is not None and body.max_completion_tokens is not None:
        raise InvalidField("max_tokens", "send either this or max_completion_tokens")
    return _request(
        body,
        base,
        tenant,
        messages=tuple(
            turn(place, message, ROLES[message.role]) for place, message in enumerate(body.messages)
        ),
        max_tokens=body.max_completion_tokens or body.max_tokens,
        logprobs=bool(body.logprobs),
        json_schema=tools.json_schema or _schema(body),
        tools=tools.template,
    )


def completion_request(body: CompletionBody, base: str, tenant: Tenant) -> GenerationRequest:
    """Raises InvalidField."""
    prompt = body.prompt if isinstance(body.prompt, str) else body.prompt[0]
    return _request(
        body,
        base,
        tenant,
        messages=(Message(Role.USER, prompt),),
        max_tokens=body.max_tokens,
        logprobs=body.logprobs is not None,
        raw=True,
    )


def _request(
    body: Answering,
    base: str,
    tenant: Tenant,
    *,
    messages: tuple[Message, ...],
    max_tokens: int | None,
    logprobs: bool,
    json_schema: str = "",
    tools: str = "",
    raw: bool = False,
) -> GenerationRequest:
    extra = body.memserve
    model, module = _split(body.model, base)
    min_tokens = body.min_tokens or 0
    if body.ignore_eos:
        if max_tokens is None:
            raise InvalidField("ignore_eos", "needs max_tokens: the answer has so many then")
        min_tokens = max_tokens
    slo = extra.slo
    request = GenerationRequest(
        messages=messages,
        sampling=Sampling(
            max_tokens=max_tokens or 0,
            temperature=1.0 if body.temperature is None else body.temperature,
            top_p=1.0 if body.top_p is None else body.top_p,
            seed=body.seed,
            stop=() if body.stop is None else (body.stop,) if isinstance(body.stop, str) else (*body.stop,),
            logprobs=logprobs,
            min_tokens=min_tokens,
            json_schema=json_schema,
        ),
        model=model,
        tools=tools,
        modules=_modules(module, extra),
        namespaces=tuple(dict.fromkeys(extra.namespaces)),
        recall_limit=extra.recall_limit,
        recall_timeout_s=extra.recall_timeout_ms / 1000,
        search=_search(extra.recall),
        choose_module=extra.recall.choose_module,
        skip_pinned=extra.recall.skip_pinned,
        slo=Slo(slo.ttft_ms, slo.tpot_ms, slo.refuse_late, slo.skip_recall),
        worker_id=extra.worker_id,
        session=extra.session or (body.user or "")[:128],
        priority=Priority(extra.priority) if extra.priority else usual_priority(tenant.highest),
        do_not_queue=extra.do_not_queue,
        keep_prompt=extra.keep_prompt,
        raw=raw,
    )
    check_generation(request)
    return request


def _search(wishes: RecallBody) -> SearchQuery | None:
    """Raises InvalidField. Returns None for no wishes."""
    if wishes == RecallBody(choose_module=wishes.choose_module, skip_pinned=wishes.skip_pinned):
        return None
    return SearchQuery(
        (),
        "",
        kinds=tuple(dict.fromkeys(map(MemoryKind, wishes.kinds))),
        filter=wishes.filter,
        min_relevance=wishes.min_relevance,
        diversity=wishes.diversity,
        max_tokens=wishes.max_tokens,
        context=checked_metadata("recall.options.context", wishes.context),
        neighbours=wishes.neighbours,
        link_depth=wishes.link_depth,
        link_kinds=tuple(dict.fromkeys(map(LinkKind, wishes.link_kinds))),
        as_of_s=wishes.as_of_s,
        rerank=wishes.rerank,
    )


def _split(name: str, base: str) -> tuple[str, str]:
    """The base model's name and the module's reference."""
    if name.startswith(base + BETWEEN):
        return base, name[len(base) + len(BETWEEN) :]
    return name, ""


def _modules(module: str, extra: MemserveBody) -> tuple[ModuleUse, ...]:
    uses = []
    if module:  # Of any kind: every alias is listed as a model.
        uses.append(ModuleUse(module, field="model"))
    if extra.module:
        uses.append(ModuleUse(extra.module, kind=ModuleKind.LORA, field="memserve.module"))
    for number, each in enumerate(extra.modules):
        uses.append(ModuleUse(each.reference, each.strength, field=f"memserve.modules[{number}].reference"))
    return tuple(uses)


def _schema(body: ChatBody) -> str:
    wanted = body.response_format
    if wanted is None or wanted.type == "text":
        return ""
    if wanted.type == "json_object":
        return ANY_OBJECT
    return json.dumps(wanted.json_schema.schema_)


def usage_body(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.prompt_tokens + usage.output_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached.total},
    }


def receipt(route: Route, usage: Usage) -> dict[str, Any]:
    """memserve's own object in a reply."""
    whole = asdict(route) | {"passages": [_passage(hit) for hit in route.passages]}
    return whole | {
        "cached_tokens": asdict(usage.cached),
        "stored_tokens": usage.stored_tokens,
        "rungs": [asdict(rung) for rung in usage.rungs],
        "ttft_ms": usage.ttft_ms,
        "tpot_ms": usage.tpot_ms,
        "slo_met": usage.slo_met,
    }


def _passage(hit: ScoredMemory) -> dict[str, Any]:
    memory = hit.memory
    return {
        "memory_id": memory.memory_id,
        "namespace": memory.namespace,
        "text": memory.text,
        "source": memory.source,
        "version": memory.version,
        "score": hit.score,
        "relevance": hit.relevance,
        "strength": hit.strength,
        "dense_score": hit.dense_score,
        "bm25_score": hit.bm25_score,
        "rerank_score": hit.rerank_score,
        "via": None if hit.via is None else asdict(hit.via),
    }


@dataclass(slots=True)
class Reply:
    """One answer on its way into bodies, whole or in chunks. token_text: of one token."""

    route: Route
    model: str
    """As the caller named it."""
    created_s: int
    logprobs: bool
    token_text: Callable[[int], str]
    chat: bool
    texts: list[str] = field(default_factory=list)
    tokens: list[tuple[int, float]] = field(default_factory=list)
    written: int = 0
    tools: CallReader | None = None
    """Finds calls of functions in the answer."""

    @property
    def head(self) -> dict[str, Any]:
        prefix, kind = ("chatcmpl-", "chat.completion") if self.chat else ("cmpl-", "text_completion")
        return {
            "id": prefix + self.route.request_id,
            "object": kind,
            "created": self.created_s,
            "model": self.model,
        }

    def whole(self, usage: Usage) -> dict[str, Any]:
        """The body of a reply in one."""
        rest, calls = self.ended()
        text = "".join(self.texts) + rest
        choice: dict[str, Any] = {"index": 0, "finish_reason": finish(usage.finish_reason, calls)}
        choice["logprobs"] = self.logprobs_of(self.tokens) if self.logprobs else None
        if self.chat:
            choice["message"] = {"role": "assistant", "content": text, "refusal": None}
            if calls:
                called = {"content": text or None, "tool_calls": calls_body(calls, streamed=False)}
                choice["message"] |= called
        else:
            choice["text"] = text
        return self.head | {
            "choices": [choice],
            "usage": usage_body(usage),
            "memserve": receipt(self.route, usage),
        }

    def add(self, delta: TextDelta) -> None:
        self.texts.append(self.shown(delta.text))
        if self.logprobs:
            self.tokens += zip(delta.token_ids, delta.logprobs, strict=True)

    def shown(self, text: str) -> str:
        """What of the next text is for a person now."""
        return self.tools.feed(text) if self.tools else text

    def ended(self) -> tuple[str, list[Call]]:
        """The rest that is for a person, and the calls."""
        return self.tools.end() if self.tools else ("", [])

    def logprobs_of(self, tokens: Sequence[tuple[int, float]]) -> dict[str, Any]:
        texts = [self.token_text(token_id) for token_id, _ in tokens]
        if self.chat:
            content = [
                {"token": text, "logprob": logprob, "bytes": list(text.encode()), "top_logprobs": []}
                for text, (_, logprob) in zip(texts, tokens, strict=True)
            ]
            return {"content": content, "refusal": None}
        offsets = [self.written]
        for text in texts:
            offsets.append(offsets[-1] + len(text))
        self.written = offsets.pop()
        logprobs = [logprob for _, logprob in tokens]
        return {"tokens": texts, "token_logprobs": logprobs, "top_logprobs": None, "text_offset": offsets}


def finish(reason: FinishReason, calls: Sequence[Call] = ()) -> str:
    if reason is FinishReason.LENGTH:
        return "length"
    return "tool_calls" if calls else "stop"
