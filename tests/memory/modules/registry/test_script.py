"""The module store's Lua as text: all of it is joined, and what its files use of each other exists."""

from __future__ import annotations

import re
from importlib.resources import files

from memserve.memory.modules.registry.scripts import SCRIPT, SCRIPT_FILES

CODE = re.sub(r"--.*", "", SCRIPT.text)


def test_every_lua_file_is_joined() -> None:
    folder = files("memserve.memory.modules.registry")
    names = {file.name for file in folder.iterdir() if file.name.endswith(".lua")}
    assert names == {f"{name}.lua" for name in SCRIPT_FILES}


def test_what_the_files_use_of_each_other_exists() -> None:
    for noun in ("audit", "versions", "aliases", "canaries", "preloads", "claims", "pages"):
        defined = set(re.findall(rf"^function {noun}\.(\w+)", CODE, re.MULTILINE))
        called = set(re.findall(rf"(?<!function )\b{noun}\.(\w+)\(", CODE))
        assert called == defined, noun
