"""The kinds of modules: one table. Kinds differ in how they are checked, loaded and applied, and in nothing
else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from memserve.domain import ModuleKind
from memserve.domain.names import is_name
from memserve.errors import InvalidField
from memserve.memory.modules.kinds.files import BaseModel, CheckedModule
from memserve.memory.modules.kinds.logit_expert import EXPERT_FILES, EXPERT_OPTIONAL_FILES, check_logit_expert
from memserve.memory.modules.kinds.lora import LORA_FILES, check_lora

__all__ = [
    "KINDS",
    "NAME_RULE",
    "PROBES_FILE",
    "BaseModel",
    "CheckedModule",
    "KindRules",
    "check_module_name",
]

# Comes with a version of any kind; it is no part of the module and of its digest.
PROBES_FILE = "probes.json"
NAME_RULE = "must be 1-64 of a-z 0-9 . _ -, starting with a letter or a digit"


@dataclass(frozen=True, slots=True)
class KindRules:
    """How modules of a kind are checked.

    files: what an upload must have. optional_files: what it may have, besides PROBES_FILE.
    check: reads the files in a folder; raises InvalidModule, which names the file, the field or the tensor.
    """

    files: tuple[str, ...]
    optional_files: tuple[str, ...]
    check: Callable[[Path, BaseModel], CheckedModule]

    @property
    def names(self) -> tuple[str, ...]:
        return (*self.files, *self.optional_files)


KINDS: dict[ModuleKind, KindRules] = {
    ModuleKind.LORA: KindRules(LORA_FILES, (), check_lora),
    ModuleKind.LOGIT_EXPERT: KindRules(EXPERT_FILES, EXPERT_OPTIONAL_FILES, check_logit_expert),
}


def check_module_name(field: str, name: str) -> None:
    """Raises InvalidField."""
    if not is_name(name):
        raise InvalidField(field, NAME_RULE)
