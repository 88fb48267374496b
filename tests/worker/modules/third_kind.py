"""A third kind of modules, registered by a test: one row, a check of its files, and how an engine applies it.

A module of this kind is a file that names a token. With it, that token is always the likeliest.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from memserve.config import Settings
from memserve.domain import ModuleKind, ModulePlace, WeightFigures
from memserve.domain.kinds import KindRow, LoadCosts
from memserve.errors import InvalidModule
from memserve.memory.modules.kinds.files import BaseModel, CheckedModule
from memserve.model.files import ModelFiles
from memserve.worker.modules.kinds.kind import EngineCall
from memserve.worker.modules.room import Places

STEER = ModuleKind("steer")
FILE = "steer.json"
ROW = KindRow(
    kind=STEER,
    number=1000,
    files=(FILE,),
    named_in="modules",
    changes_kv=False,
    has_strength=True,
    moves_logprobs=True,
    costs=LoadCosts(load_s=0.1, swap_s=0.1),
    checked_by=f"{__name__}:check_steer",
    held_by=f"{__name__}:SteerKind",
)


class SteerCheck:
    """Of an upload."""

    def __call__(self, folder: Path, base: BaseModel) -> CheckedModule:
        content = (folder / FILE).read_bytes()
        token = json.loads(content)
        if not isinstance(token, int) or not 0 <= token < base.vocab_size:
            raise InvalidModule(FILE, f"must be a token, from 0 to {base.vocab_size - 1}")
        digest = hashlib.sha256(content).hexdigest()
        return CheckedModule(digest, STEER, 0, (), WeightFigures(1.0, 0.0, 1.0), {})


check_steer = SteerCheck()


class SteerKind:
    """In an engine."""

    capacity = 4
    setting = "capacity"

    def __init__(self, llm: Any, settings: Settings) -> None:
        self._tokens: dict[str, int] = {}

    @staticmethod
    def absent_reason(settings: Settings, model: ModelFiles) -> str:
        return ""

    @staticmethod
    def engine_arguments(settings: Settings) -> dict[str, Any]:
        return {}

    def apply(self, call: EngineCall, digest: str, folder: Path, strength: float) -> None:
        call.sampling["logit_bias"] = {self._tokens[digest]: 100.0 * strength}

    async def effect(self, digest: str, folder: Path, prompts: Sequence[Sequence[int]]) -> float:
        return 100.0

    async def places(self) -> Places:
        return dict.fromkeys(self._tokens, ModulePlace.DEVICE)

    async def load(self, digest: str, folder: Path, leaving: str | None) -> Places:
        self._tokens.pop(leaving or "", None)
        self._tokens[digest] = json.loads((folder / FILE).read_text(encoding="utf-8"))
        return await self.places()

    async def unload(self, digest: str) -> Places:
        del self._tokens[digest]
        return await self.places()
