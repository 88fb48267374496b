"""The `memserve` command: every command in the order of its help, and what ends one."""

from __future__ import annotations

import io
import os
import sys
from typing import Annotated

import typer

import memserve
from memserve.cli import (
    distil,  # noqa: F401 its command joins those of modules
    memory_set_commands,  # noqa: F401 its commands join those of memory_commands
)
from memserve.cli.ask import generate
from memserve.cli.audit import audit_app
from memserve.cli.backup import backup, restore
from memserve.cli.bench import bench
from memserve.cli.certs import certs_app
from memserve.cli.consolidating import consolidating_app
from memserve.cli.cube import cube_app
from memserve.cli.demo import demo
from memserve.cli.explain import explain
from memserve.cli.health import health
from memserve.cli.keys import keys_app
from memserve.cli.kv import kv_app
from memserve.cli.ladder import ladder_app
from memserve.cli.lineage import lineage_app
from memserve.cli.memories import forget, remember, search
from memserve.cli.memory_commands import memories_app
from memserve.cli.memory_set_commands import memory_sets_app
from memserve.cli.models import models_app
from memserve.cli.modules import modules_app
from memserve.cli.options import HELP
from memserve.cli.serve import gateway, ray_node, settings, up, workers
from memserve.cli.status import status
from memserve.cli.terminal import coloured, err
from memserve.client import CallFailed
from memserve.errors import MemserveError, UsageError
from memserve.private_files import find_home

app = typer.Typer(
    name="memserve",
    help="Language models that remember: adapters, KV state and text memories behind one gRPC gateway.\n\n"
    "`memserve up` starts everything on this machine; `memserve demo` shows what it does.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings=HELP,
)


def _print_version(asked: bool) -> None:
    if asked:
        print(memserve.__version__)
        raise typer.Exit


@app.callback()
def _before_every_command(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    find_home(os.environ)


def version() -> None:
    """Print the version."""
    print(memserve.__version__)


for _command in (
    up,
    gateway,
    workers,
    ray_node,
    settings,
    demo,
    generate,
    explain,
    remember,
    forget,
    search,
    status,
    health,
    bench,
    backup,
    restore,
    version,
):
    app.command()(_command)
memories_app.add_typer(memory_sets_app)
memories_app.add_typer(consolidating_app)
app.add_typer(memories_app, name="memories")
app.add_typer(modules_app, name="modules")
app.add_typer(ladder_app, name="ladder")
app.add_typer(cube_app, name="cube")
app.add_typer(lineage_app, name="lineage")
app.add_typer(models_app, name="models")
app.add_typer(audit_app, name="audit")
app.add_typer(kv_app, name="kv")
app.add_typer(keys_app, name="keys")
app.add_typer(certs_app, name="certs")


def main() -> None:
    """Run the command. An error that names its cause is one line on standard error, with exit status 1."""
    for stream in (sys.stdout, sys.stderr):
        # A command goes on when the locale cannot show a character. Files and pipes get UTF-8 in every
        # locale.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding=None if stream.isatty() else "utf-8", errors="backslashreplace")
    try:
        app()
        sys.stdout.flush()
    except (MemserveError, CallFailed, UsageError) as error:
        _fail(str(error))
    except UnicodeEncodeError as error:
        _fail(f"{error.object!r} is not UTF-8; convert it first, such as with `iconv -f latin1 -t utf8`")
    except BrokenPipeError:
        # The reader of the output, such as `head`, has ended. Python flushes once more when it exits. That
        # flush would fail again, so it goes to /dev/null.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error))


def _fail(why: str) -> None:
    err.print(coloured("memserve:", "bold red", f" {why}"), soft_wrap=True)
    sys.exit(1)
