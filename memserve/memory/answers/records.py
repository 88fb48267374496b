"""Kept answers as JSON, and the prompts beside them, compressed."""

from __future__ import annotations

import json
import zlib
from dataclasses import asdict, replace
from typing import Any

from memserve.domain import (
    CachedTokens,
    KeptAnswer,
    KeptModule,
    KeptPassage,
    KeptPrompt,
    LeaveOneOut,
    Message,
    ModuleKind,
    PassageWeight,
    RecallOutcome,
    Role,
    Skipped,
    SkipReason,
)
from memserve.records import known_fields, reading

PROMPT_MAX_BYTES = 256 << 10
"""Compressed."""
EXPANDED_MAX_BYTES = 2 << 20
"""So that it fits into a message to a client."""
TOO_LARGE = f"it is over {EXPANDED_MAX_BYTES} bytes, or over {PROMPT_MAX_BYTES} compressed"


def record_of(answer: KeptAnswer) -> str:
    """Without its prompt and its weights, which are kept beside it."""
    return json.dumps(asdict(replace(answer, prompt=None, leave_one_out=None)), separators=(",", ":"))


def packed(prompt: KeptPrompt) -> bytes | None:
    """None: it is too large."""
    text = json.dumps(asdict(prompt), separators=(",", ":")).encode()
    content = zlib.compress(text) if len(text) <= EXPANDED_MAX_BYTES else b""
    return content if 0 < len(content) <= PROMPT_MAX_BYTES else None


def weights_of(found: LeaveOneOut) -> str:
    return json.dumps(asdict(found), separators=(",", ":"))


def read_answer(fields: dict[bytes, bytes]) -> KeptAnswer:
    """fields: of the hash in Redis, perhaps of a newer gateway. Raises UnreadableRecord."""
    with reading("KeptAnswer"):
        record = known_fields(KeptAnswer, json.loads(fields[b"record"]))
        record["namespaces"] = tuple(record["namespaces"])
        record["recall_outcome"] = RecallOutcome(record["recall_outcome"])
        record["passages"] = tuple(
            KeptPassage(**known_fields(KeptPassage, passage)) for passage in record["passages"]
        )
        record["skipped"] = tuple(_skipped(skipped) for skipped in record["skipped"])
        record["modules"] = tuple(_module(module) for module in record["modules"])
        record["cached"] = CachedTokens(**known_fields(CachedTokens, record["cached"]))
        record["prompt"] = _prompt(fields[b"prompt"]) if b"prompt" in fields else None
        record["leave_one_out"] = _weights(fields[b"weights"]) if b"weights" in fields else None
        return KeptAnswer(**record)


def _skipped(record: Any) -> Skipped:
    known = known_fields(Skipped, record)
    return Skipped(**{**known, "reason": SkipReason(known["reason"])})


def _module(record: Any) -> KeptModule:
    known = known_fields(KeptModule, record)
    lineage = {"sources": tuple(known["sources"]), "parents": tuple(known["parents"])}
    return KeptModule(**{**known, **lineage, "kind": ModuleKind(known["kind"])})


def _prompt(content: bytes) -> KeptPrompt:
    expanding = zlib.decompressobj()
    text = expanding.decompress(content, EXPANDED_MAX_BYTES)
    if expanding.unconsumed_tail:
        raise ValueError("the prompt is too large")
    known = known_fields(KeptPrompt, json.loads(text))
    messages = tuple(
        Message(**{**known_fields(Message, message), "role": Role(message["role"])})
        for message in known["messages"]
    )
    listed = {name: tuple(known[name]) for name in ("token_ids", "answer_ids", "passages")}
    return KeptPrompt(**{**known, **listed, "messages": messages})


def _weights(content: bytes) -> LeaveOneOut:
    known = known_fields(LeaveOneOut, json.loads(content))
    passages = tuple(PassageWeight(**known_fields(PassageWeight, weight)) for weight in known["passages"])
    return LeaveOneOut(**{**known, "passages": passages})
