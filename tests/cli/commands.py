"""Every command of `memserve`, as typer makes it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import typer

from memserve.cli.app import app


def commands() -> Iterator[tuple[str, Any]]:
    """Names such as "modules push", and commands."""
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        if not hasattr(command, "commands"):
            yield name, command
            continue
        for word, inner in command.commands.items():
            yield f"{name} {word}", inner


def options(command: Any) -> set[str]:
    """The names of a command's options, such as "--json"."""
    return {name for parameter in command.params for name in parameter.opts if name.startswith("-")}
