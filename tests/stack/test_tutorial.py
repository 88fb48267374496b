"""The tutorial's and the how-to pages' commands, run as they stand, with what they are said to print.

The shared memserve stands for the reader's `memserve up`: the environment names its address, so that no
command needs to change. In the Python program the default address is replaced by the memserve's own.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from memserve.client import CallFailed, Client
from memserve.config import at
from memserve.embedded import Stack
from tests.pages import RUN_PAGES, Command, blocks, commands, text_of

pytestmark = pytest.mark.stack
DEFAULT_ADDRESS = "127.0.0.1:50051"
PAGE_TIMEOUT_S = 90
MODULES = ("quay", "stars", "tone")
"""What the pages publish."""


@pytest.fixture
def folder(stack: Stack, client: Client, tmp_path: Path) -> Iterator[Path]:
    """A reader's folder: the package and its commands are there, and backups are where the pages say."""
    (tmp_path / "memserve").symlink_to(Path(__file__).parents[2] / "memserve")
    (tmp_path / "bin").mkdir()
    for name, arguments in (("memserve", "-m memserve"), ("python", "")):
        program = tmp_path / "bin" / name
        program.write_text(f'#!/bin/sh\nexec {sys.executable} {arguments} "$@"\n', encoding="utf-8")
        program.chmod(0o755)
    data = tmp_path / "home" / ".local" / "share" / "memserve"
    data.mkdir(parents=True)
    (data / "backups").symlink_to(stack.settings.data / "backups")
    yield tmp_path
    for name in MODULES:
        remove_module(client, name)


def remove_module(client: Client, name: str) -> None:
    try:
        module = client.modules.get(name)
    except CallFailed:
        return
    for alias in module.aliases:
        client.modules.drop_alias(name, alias.name)
    for version in client.modules.versions(name):
        client.modules.delete(name, version.version)


@pytest.mark.parametrize("page", RUN_PAGES, ids=lambda page: page.stem)
@pytest.mark.timeout(PAGE_TIMEOUT_S, func_only=True)
def test_the_pages_commands_do_what_the_page_shows(page: Path, stack: Stack, folder: Path) -> None:
    http = at(stack.settings.host, stack.settings.http_port)
    text = text_of(page).replace("127.0.0.1:8000", http)
    for name, program in re.findall(
        r"Save this as `(\w+\.py)`:\n\n```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE
    ):
        (folder / name).write_text(program.replace(DEFAULT_ADDRESS, stack.address), encoding="utf-8")
    session = [
        command for block in blocks(text) if block.language == "console" for command in commands(block)
    ]
    assert session
    for command, output in zip(session, outputs(session, stack, folder), strict=True):
        assert re.search(pattern(command), output, re.DOTALL), f"$ {command.line}\n{output}"


def outputs(session: list[Command], stack: Stack, folder: Path) -> list[str]:
    """What each command prints to both of its streams, all in one shell. Fails where a command fails."""
    script = "".join(
        f"{command.line}\nstatus=$?; echo; echo @@$status; test $status = 0 || exit\n" for command in session
    )
    environment = {
        **os.environ,
        "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
        "HOME": str(folder / "home"),
        "MEMSERVE_ADDRESS": stack.address,
    }
    shell = subprocess.run(
        ["bash", "-c", script],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        timeout=PAGE_TIMEOUT_S,
        check=False,
    )
    assert shell.returncode == 0, shell.stdout
    return re.split(r"^@@0$\n", shell.stdout, flags=re.MULTILINE)[:-1]


def pattern(command: Command) -> str:
    """The lines that the page shows, in this order; `…` is any text."""
    return ".*".join(re.escape(line).replace("…", ".*") for line in command.shown)
