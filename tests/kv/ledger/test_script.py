"""The ledger's Lua as text: all of it is joined, and what it calls by name has that name on disk."""

from __future__ import annotations

import re
from importlib.resources import files

from memserve.kv.ledger.ledger import SCRIPT, SCRIPT_FILES
from memserve.kv.ledger.names import Counter, Field, State

CODE = re.sub(r"--.*", "", SCRIPT)


def table(name: str) -> dict[str, str]:
    """The names of a constant table, and the text of each."""
    constants = re.search(rf"^local {name} = {{(.*?)^}}", CODE, re.MULTILINE | re.DOTALL)
    assert constants is not None
    return dict(re.findall(r"(\w+) = .*?'(\w+)'", constants[1]))


def test_every_lua_file_is_joined() -> None:
    names = {file.name for file in files("memserve.kv.ledger").iterdir() if file.name.endswith(".lua")}
    assert names == {f"{name}.lua" for name in SCRIPT_FILES}


def test_no_key_field_or_state_is_misspelt() -> None:
    for name in ("KEY", "FIELD", "STATE"):
        used = set(re.findall(rf"\b{name}\.(\w+)", CODE))
        assert used == table(name).keys(), name


def test_python_and_lua_have_the_same_names_on_disk() -> None:
    fields = table("FIELD")
    assert {field.name.lower(): field.value for field in Field}.items() <= fields.items()
    assert {state.name.lower(): state.value for state in State} == table("STATE")
    assert {counter.value for counter in Counter} <= set(table("KEY").values())
