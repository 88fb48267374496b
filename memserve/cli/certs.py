"""`memserve certs`: a private authority and certificates, for a trial of TLS."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from memserve.cli.options import HELP
from memserve.cli.terminal import err, out
from memserve.errors import StartupError
from memserve.private_files import private_umask

certs_app = typer.Typer(
    help="A private authority and certificates, for a trial of TLS.",
    no_args_is_help=True,
    context_settings=HELP,
)

Folder = Annotated[Path, typer.Option(help="Where authorities, certificates and keys are kept.")]
Hosts = Annotated[
    list[str] | None,
    typer.Option(
        "--host",
        help="DNS name or address of the gateway as clients write it; also of Redis and Milvus. May be "
        "repeated. This machine's loopback is always one.",
    ),
]
Days = Annotated[int, typer.Option(min=1, max=36500, help="How long the certificates are good.")]
DEFAULT_FOLDER = Path("memserve-certs")


@certs_app.command()
def init(folder: Folder = DEFAULT_FOLDER, host: Hosts = None, days: Days = 365) -> None:
    """Make two private authorities (public and internal) and certificates of them, and say what to set.

    Nothing is overwritten. Keep the folder `authority` where only you can
    read it: whoever has its keys can make certificates that all accept.

    Example: `memserve certs init --folder certs --host gateway.example.org`
    """
    trial = _trial()
    private_umask()
    folder = folder.expanduser().absolute()
    trial.make(folder, host or (), days, datetime.datetime.now(datetime.UTC))
    err.print(f"certificates for {days} days are in {folder}; set, each where it belongs:", soft_wrap=True)
    for who, variables in trial.settings_of(folder):
        out.print(f"# {who}", markup=False, highlight=False)
        for name, value in variables.items():
            out.print(f"export {name}={value}", soft_wrap=True, markup=False, highlight=False)


@certs_app.command()
def renew(folder: Folder = DEFAULT_FOLDER, host: Hosts = None, days: Days = 365) -> None:
    """Make new certificates of the authorities that `memserve certs init` made, in the same files.

    Gateways and workers take them within seconds, without a restart.

    Example: `memserve certs renew --folder certs --host gateway.example.org`
    """
    trial = _trial()
    private_umask()
    folder = folder.expanduser().absolute()
    trial.renew(folder, host or (), days, datetime.datetime.now(datetime.UTC))
    out.print(f"renewed for {days} days: the certificates in {folder}", soft_wrap=True, highlight=False)


def _trial() -> Any:
    """The part that needs a library which a client alone does not have. Raises StartupError."""
    try:
        from memserve.tls import trial
    except ImportError as error:
        raise StartupError(f"this needs the package {error.name}: pip install 'memserve[gateway]'") from None
    return trial
