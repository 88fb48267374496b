"""`memserve backup` and `memserve restore`: copies of a data directory."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from memserve.cli.options import Call, gateway_command
from memserve.cli.terminal import out
from memserve.errors import StartupError
from memserve.private_files import private_umask


@gateway_command(timeout_s=3600, has_json=False)
def backup(
    call: Call,
    name: Annotated[
        str, typer.Argument(help="What the backup is called: a folder in `backups` of the data directory.")
    ],
) -> None:
    """Back up a data directory while memserve runs on it. Copy the folder to another disk afterwards.

    Example: `memserve backup monday`
    """
    for line in call.client.backup(name):
        out.print(line)


def restore(
    folder: Annotated[Path, typer.Argument(help="The folder of a backup.")],
    data_dir: Annotated[Path, typer.Option("--data-dir", help="Data directory to make: missing, or empty.")],
) -> None:
    """Make a data directory of a backup, with nothing running on it.

    Example: `memserve restore /mnt/backups/monday --data-dir ~/memserve-data`
    """
    from memserve.embedded.restore import restore as restore_backup

    private_umask()
    try:
        restore_backup(folder.expanduser().absolute(), data_dir.expanduser().absolute(), out.print)
    except OSError as error:
        raise StartupError(f"{error.filename or folder}: {error.strerror}") from None
