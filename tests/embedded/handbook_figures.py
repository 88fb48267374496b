"""Figures of the demo on a real model, as a run that misses nothing has them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

_ANSWERS = {
    "asked": 24,
    "right": 22,
    "prompt_tokens": 96,
    "cartridge_tokens": 0,
    "ttft_ms": 210.0,
    "examples": [{"question": "Who is the director?", "answer": "Mira Solberg."}],
}
_VERSION = {
    "reference": "handbook@1",
    "kind": "lora",
    "rank": 4,
    "positions": 0,
    "bytes": 2_450_000,
    "gate": {
        "passed": True,
        "probes": 16,
        "figures": {"recall": {"base": 0.0, "module": 0.9, "holds": True}},
    },
    "refusal": "",
    "cpu_s": 250.0,
}
_STATE = {
    "prompt_tokens": 4044,
    "ttft_ms": 9000.0,
    "ttft_of_cold": 1.0,
    "cached_share": 0.0,
    "cached_on_worker": 0,
    "cached_from_redis": 0,
    "same_tokens_as_cold": True,
    "answer": "Mira Solberg",
}
_SHARED = {**_STATE, "ttft_ms": 200.0, "ttft_of_cold": 0.022, "cached_share": 0.98}
_FIGURES: dict[str, Any] = {
    "start": {"workers": 2, "seconds": 41.0},
    "remember": {"memories": 24, "seconds": 0.4, "first": "The director is Mira Solberg."},
    "recall": {"without": {**_ANSWERS, "right": 0}, "with": _ANSWERS},
    "gates": {
        "handbook": _VERSION,
        "handbook-cartridge": {**_VERSION, "kind": "cartridge", "rank": 0, "positions": 128},
        "careless": {**_VERSION, "refusal": "leak 0.90, at most 0.30 wanted"},
        "seconds": 48.0,
    },
    "modules": {"handbook": _ANSWERS, "handbook-cartridge": {**_ANSWERS, "cartridge_tokens": 64}},
    "composed": {
        **_VERSION,
        "answers": ["Mira Solberg.", "Mira.", "Mira Solberg."],
        "versions": [1, 2, 1],
        "rollback_ms": 9.0,
        "same_after": True,
    },
    "prefix": {
        "cold": _STATE,
        "warm": {**_SHARED, "cached_on_worker": 3968},
        "other worker": {**_SHARED, "cached_from_redis": 3968},
        "after restart": {**_SHARED, "cached_from_redis": 3968, "restart_s": 38.0},
    },
    "tampered": {**_STATE, "entries": 31},
    "seconds": 201.0,
    "failed": [],
}


def figures(change: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The figures, some of them changed."""
    changed: dict[str, Any] = json.loads(json.dumps(_FIGURES))
    _change(changed, change or {})
    return changed


def _change(values: dict[str, Any], change: Mapping[str, Any]) -> None:
    for name, value in change.items():
        if isinstance(value, Mapping):
            _change(values[name], value)
        else:
            values[name] = value
