"""`--help` teaches: what a command does, every argument and option, an example that works."""

from __future__ import annotations

import re
import shlex
from typing import Any

import pytest

from tests.cli.commands import commands, options

COMMANDS = dict(commands())
GATEWAY_OPTIONS = {"--address", "--api-key", "--timeout", "--tls-ca", "--tls-cert", "--tls-key"}
LOCAL = {"up", "gateway", "workers", "ray-node", "settings", "demo", "version", "restore", "kv check"}
LOCAL |= {"cube show", "cube new-key"}
# A first line is shown in the list of commands too. typer keeps the line ends of all that follows it, which
# must fit into a terminal of 80 columns.
FIRST_LINE, OTHER_LINES = 110, 78
EXAMPLES = [
    (name, example)
    for name, command in COMMANDS.items()
    for example in re.findall(r"Example: `(.*)`", command.help)
]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_commands_help_begins_with_one_line_that_says_what_it_does(name: str) -> None:
    first, *paragraphs = COMMANDS[name].help.split("\n\n")
    assert first.endswith(".")
    assert "\n" not in first and len(first) <= FIRST_LINE
    lines = [line for text in paragraphs for line in text.splitlines() if not line.startswith("Example: ")]
    assert [line for line in lines if len(line) > OTHER_LINES] == []


@pytest.mark.parametrize("name", COMMANDS)
def test_every_argument_and_option_has_help_that_is_a_sentence(name: str) -> None:
    helps = {parameter.name: parameter.help or "" for parameter in COMMANDS[name].params}
    assert [name for name, text in helps.items() if not text.endswith(".")] == []


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 10


@pytest.mark.parametrize(("name", "example"), EXAMPLES)
def test_an_example_is_a_command_line_that_the_command_takes(name: str, example: str) -> None:
    command_line, *_ = example.split(" < ")
    words = shlex.split(command_line)
    assert words[: 1 + len(name.split())] == ["memserve", *name.split()]
    context: Any = COMMANDS[name].make_context(name, words[1 + len(name.split()) :])
    assert context.params


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_that_speaks_to_a_gateway_takes_the_same_options(name: str) -> None:
    local = name in LOCAL or name.startswith(("keys ", "models ", "certs "))
    # `health` asks a port of its own, which needs no key and has no TLS.
    expected = {"--address", "--timeout"} if name == "health" else set() if local else GATEWAY_OPTIONS
    assert options(COMMANDS[name]) & GATEWAY_OPTIONS == expected
