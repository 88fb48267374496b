"""Which check reads the files of a module, for every kind of `domain/kinds.py`."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from pathlib import Path

from memserve.domain import ModuleKind
from memserve.domain.kinds import KINDS
from memserve.domain.names import is_name
from memserve.errors import InvalidField
from memserve.memory.modules.kinds.files import BaseModel, CheckedModule

# A version of any kind may bring this file. The file is not a part of the module or of the module's digest.
PROBES_FILE = "probes.json"
NAME_RULE = "must be 1-64 of a-z 0-9 . _ -, starting with a letter or a digit"

FilesCheck = Callable[[Path, BaseModel], CheckedModule]
"""Reads the files in a folder. Raises InvalidModule, which names the file, the field or the tensor."""


def files_check(kind: ModuleKind) -> FilesCheck:
    """The check for the files of a kind."""
    check: FilesCheck = pkgutil.resolve_name(KINDS[kind].checked_by)
    return check


def check_module_name(field: str, name: str) -> None:
    """Raises InvalidField."""
    if not is_name(name):
        raise InvalidField(field, NAME_RULE)
