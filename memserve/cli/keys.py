"""`memserve keys`: the file of API keys on this machine, which a running gateway follows within a second."""

from __future__ import annotations

import time
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from memserve.cli.options import AsJson, print_json
from memserve.cli.terminal import err, out
from memserve.config import load_settings
from memserve.domain import KeyRole, Priority
from memserve.gateway.access import keys

keys_app = typer.Typer(
    name="keys",
    help="Who may call the gateway: keys with a name, a tenant and a role.\n\n"
    "The file is MEMSERVE_API_KEYS_FILE, else keys.json in the data directory. It keeps digests: a key is "
    "shown once, when it is made. A running gateway follows the file within a second. From the first key "
    "on, calls without a key are refused.",
    no_args_is_help=True,
)
DataDir = Annotated[
    Path | None, typer.Option("--data-dir", help="Data directory of the keys.json. Default: the gateway's.")
]


class CallerPriority(StrEnum):
    """What a key may be given."""

    HIGH = Priority.HIGH
    NORMAL = Priority.NORMAL
    LOW = Priority.LOW


@keys_app.command("add")
def add_key(
    name: Annotated[str, typer.Argument(help="Shown in the audit, and what the key is revoked by.")],
    tenant: Annotated[str, typer.Option(help="Whose modules, memories and KV the key reaches.")] = "default",
    role: Annotated[
        KeyRole,
        typer.Option(
            help="read: look at things. ask: also answers. write: also memories, modules and KV. "
            "admin: also name workers, and see addresses and all tenants' bytes."
        ),
    ] = KeyRole.WRITE,
    priority: Annotated[
        CallerPriority, typer.Option(help="The highest priority that its requests may ask for.")
    ] = CallerPriority.NORMAL,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Make a key and print it. Nothing keeps the key: give it to its holder at once.

    Example: `memserve keys add ci --tenant builds --role ask`
    """
    file = keys.keys_file(load_settings(data_dir=data_dir))
    first = keys.read_keys(file, must_exist=False) is None
    key = keys.add_key(file, name, tenant, role, time.time(), Priority(priority))
    if first:
        err.print(
            "this is the first key: from now on a call without one is refused (MEMSERVE_API_KEY is "
            "sent by the command line)"
        )
    if as_json:
        print_json({"name": name, "tenant": tenant, "role": role, "priority": priority, "key": key})
    else:
        print(key)


@keys_app.command("list")
def list_keys(data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """Show names, tenants, roles and the highest priorities."""
    settings = load_settings(data_dir=data_dir)
    known = keys.read_keys(keys.keys_file(settings), must_exist=False)
    if as_json:
        entries = [
            {name: value for name, value in asdict(key).items() if name != "sha256"} for key in known or ()
        ]
        print_json({"open": known is None and not settings.jwt_jwks, "keys": entries})
        return
    if known is None and settings.jwt_jwks:
        out.print("There are no keys: every caller needs a token (jwt_jwks).")
        return
    if known is None:
        out.print(
            "There are no keys: every caller on this machine is an administrator of the tenant default."
        )
        return
    table = Table("name", "tenant", "role", "priority", "made")
    for key in known:
        created = time.strftime("%Y-%m-%d %H:%M", time.gmtime(key.created_s)) if key.created_s else ""
        table.add_row(key.name or "(short form)", key.tenant, key.role, key.priority, created)
    out.print(table)


@keys_app.command("revoke")
def revoke_key(
    name: Annotated[str, typer.Argument(help="Name of the key, as `memserve keys list` shows it.")],
    data_dir: DataDir = None,
) -> None:
    """Take a key out of the file. Calls with it are refused within a second; answers under way go on."""
    revoked = keys.revoke_key(keys.keys_file(load_settings(data_dir=data_dir)), name)
    out.print(f"revoked {revoked.name} (tenant {revoked.tenant}, role {revoked.role})")
