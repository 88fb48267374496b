"""`memserve cube`: namespaces and modules in one file that can be checked."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Group

from memserve.cli.cube_tables import cube_text, import_text
from memserve.cli.options import HELP, AsJson, Call, gateway_command, print_json
from memserve.cli.terminal import out, progress_bar
from memserve.client import CubeProgress, read_cube
from memserve.client.cube.signing import new_keys
from memserve.errors import StartupError

cube_app = typer.Typer(
    help="Cubes: namespaces with memories, histories and modules, in one file that can be checked.",
    no_args_is_help=True,
    context_settings=HELP,
)
LONG_S = 3600.0

File = Annotated[Path, typer.Argument(help="The cube.")]
Verify = Annotated[
    Path | None,
    typer.Option(
        "--verify", metavar="PUBLIC_KEY", help="PEM file of the Ed25519 key that must have signed it."
    ),
]


@dataclass(frozen=True, slots=True)
class ImportOptions:
    """What an import does."""

    verify: Verify = None
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would change.")] = False
    aliases: Annotated[
        bool, typer.Option("--aliases", help="Point aliases where they pointed, through the gate.")
    ] = False
    without_modules: Annotated[
        bool, typer.Option("--without-modules", help="Bring in the memories alone.")
    ] = False


@cube_app.command("export")
@gateway_command(timeout_s=LONG_S)
def export(
    call: Call,
    file: Annotated[Path, typer.Argument(help="Where the cube goes. What is there is replaced.")],
    namespace: Annotated[
        list[str] | None, typer.Option("--namespace", "-n", help="A namespace; may be repeated.")
    ] = None,
    module: Annotated[
        list[str] | None, typer.Option("--module", "-m", help="A module; may be repeated.")
    ] = None,
    sign: Annotated[
        Path | None,
        typer.Option(metavar="PRIVATE_KEY", help="PEM file of an Ed25519 key that signs it."),
    ] = None,
) -> None:
    """Write namespaces and modules into one file: memories with histories, versions with probes, aliases.

    Without --namespace and --module it is all that the tenant has.
    Only you can read the file. It appears when it is whole and checked.

    Example: `memserve cube export desk.cube --namespace desk --module tone`
    """
    with _stages() as progress:
        cube = call.client.cubes.export(
            file, namespaces=namespace or (), modules=module or (), sign=sign, progress=progress
        )
    call.show(cube_fields(cube), text=cube_text(cube))


@cube_app.command("show")
def show(file: File, verify: Verify = None, as_json: AsJson = False) -> None:
    """Read a cube to its end, check every digest in it, and show what it holds.

    No gateway is asked.

    Example: `memserve cube show desk.cube --verify cube.pub`
    """
    cube = read_cube(file, verify)
    print_json(cube_fields(cube)) if as_json else out.print(cube_text(cube))


@cube_app.command("import")
@gateway_command(timeout_s=LONG_S)
def import_(call: Call, file: File, options: ImportOptions) -> None:
    """Bring in a cube, after all of it is checked. Again it changes nothing; interrupted, it goes on.

    Memories keep ids, versions, histories and times. One that is here with
    another history stays. Versions of modules become candidates.
    Exit 1 when something was refused.

    Example: `memserve cube import desk.cube --verify cube.pub --dry-run`
    """
    with _stages() as progress:
        outcome = call.client.cubes.import_(
            file,
            verify=options.verify,
            dry_run=options.dry_run,
            aliases=options.aliases,
            without_modules=options.without_modules,
            progress=progress,
        )
    call.show(outcome, text=import_text(outcome))
    raise typer.Exit(0 if outcome.is_complete else 1)


@cube_app.command("new-key")
def new_key(
    file: Annotated[Path, typer.Argument(help="Where the private key goes; the public one to FILE.pub.")],
    as_json: AsJson = False,
) -> None:
    """Make a key that signs cubes, and its public half that verifies them. Nothing is overwritten.

    Example: `memserve cube new-key cube.pem`
    """
    public_file = file.with_name(f"{file.name}.pub")
    try:
        key = new_keys(file, public_file)
    except FileExistsError as error:
        raise StartupError(f"{error.filename} is there already, and is not overwritten") from None
    fields = {"private_key": str(file), "public_key": str(public_file), "key": key}
    text = [f"{file} signs: keep it to yourself", f"{public_file} verifies: {key[:16]}…"]
    print_json(fields) if as_json else out.print(Group(*text))


def cube_fields(cube: object) -> dict[str, object]:
    """A cube as JSON has it."""
    fields: dict[str, object] = asdict(cube)  # type: ignore[call-overload]
    return {**fields, "path": str(fields["path"])}


@contextlib.contextmanager
def _stages() -> Iterator[CubeProgress]:
    """A bar on standard error for what is done now."""
    with contextlib.ExitStack() as stack:
        bars = _Bars(stack)
        yield bars.show


class _Bars:
    """One bar after the other."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self._stack = stack
        self._doing = ""
        self._update: Callable[[int, int], None] = lambda done, total: None

    def show(self, doing: str, done: int, total: int) -> None:
        if doing != self._doing:
            self._stack.close()
            self._doing, self._update = doing, self._stack.enter_context(progress_bar(doing))
        self._update(done, total or done)
