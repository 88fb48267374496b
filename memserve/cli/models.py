"""`memserve models`: base models on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from memserve.cli.options import AsJson, print_json
from memserve.cli.terminal import err, out, progress_bar, reporter
from memserve.config import load_settings
from memserve.errors import StartupError
from memserve.model.fetch.progress import Telling
from memserve.model.files import ModelFiles
from memserve.private_files import private_umask

models_app = typer.Typer(
    name="models",
    help="Base models on this machine: fetch one before it is served, and see its digest.",
    no_args_is_help=True,
)


@models_app.command("fetch")
def fetch_model(
    name: Annotated[str, typer.Argument(help="Hugging Face name, or URL of a directory: s3://, gs:// ….")],
    digest: Annotated[
        str | None, typer.Option(help="SHA-256 that the model must have. Default: model_digest.")
    ] = None,
    weights: Annotated[
        bool,
        typer.Option(help="Fetch the weights too. A gateway needs only the tokenizer and the templates."),
    ] = True,
    data_dir: Annotated[
        Path | None, typer.Option("--data-dir", help="Data directory. Default: the gateway's.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Fetch a model into the data directory, where `memserve gateway` and the workers find it.

    A model that is there is not fetched again.
    A fetch that was ended goes on with the next whole file.

    Example: `memserve models fetch Qwen/Qwen3-0.6B`
    """
    from memserve.model.fetch.fetching import Wish, fetch

    private_umask()
    settings = load_settings(data_dir=data_dir, model_digest=digest)
    wish = Wish(
        name, weights=weights, digest=settings.model_digest, reserve_bytes=settings.disk_reserve_bytes
    )
    with progress_bar(name) as moved:
        path = fetch(wish, settings.data, Telling(reporter(), moved if err.is_terminal else None))
    if as_json:
        print_json({"name": name, "path": str(path)})
    else:
        print(path)


@models_app.command("digest")
def digest_model(
    directory: Annotated[Path, typer.Argument(help="Directory of a model.")], as_json: AsJson = False
) -> None:
    """Print the SHA-256 of a model's weights and configuration, as `model_digest` takes it.

    Example: `memserve models digest ~/models/Qwen3-0.6B`
    """
    model = ModelFiles(directory.expanduser(), 0, {})
    if not (model.path / "config.json").is_file():
        raise StartupError(f"{directory} has no config.json, so it is no model")
    if not model.checked_weights():
        raise StartupError(f"{directory} has no weights in safetensors files")
    digest = model.model_digest()
    if as_json:
        print_json({"path": str(directory), "digest": digest})
    else:
        out.print(digest)
