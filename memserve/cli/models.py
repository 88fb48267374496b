"""`memserve models`: base models on this machine."""

from __future__ import annotations

from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from memserve.cli.options import AsJson, print_json
from memserve.cli.terminal import cell, err, out, progress_bar, reporter
from memserve.config import Settings, load_settings
from memserve.errors import StartupError
from memserve.model.fetch.progress import Telling, size_text
from memserve.model.files import ModelFiles
from memserve.private_files import private_umask

models_app = typer.Typer(
    name="models",
    help="Base models on this machine: list, fetch and convert them, and see their digests.",
    no_args_is_help=True,
)
Digest = Annotated[str | None, typer.Option(help="SHA-256 that the model must have. Default: model_digest.")]
DataDir = Annotated[Path | None, typer.Option("--data-dir", help="Data directory. Default: the gateway's.")]


class Dtype(StrEnum):
    """Of the weights that a conversion writes."""

    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"
    FLOAT32 = "float32"


@models_app.command("list")
def list_models(
    verify: Annotated[
        bool, typer.Option("--verify", help="Read all weights, and hold them against the noted digests.")
    ] = False,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """List the models of this machine, and say of each whether it can be served.

    They are the bundled one, those that were fetched or converted, and those of
    packages. The name is what `memserve up --model` takes.

    Example: `memserve models list --verify`
    """
    from memserve.model.listing import listed_models

    models = listed_models(load_settings(data_dir=data_dir).data, verify=verify)
    if as_json:
        print_json({"models": [asdict(model) for model in models]})
        return
    table = Table("name", "from", "size", "dtype", "context", "digest", "served")
    for model in models:
        table.add_row(
            model.name,
            model.source,
            size_text(model.size_bytes) if model.size_bytes else "",
            model.dtype,
            str(model.context_tokens or ""),
            model.digest[:12],
            cell(f"no: {model.why_not}" if model.why_not else "yes"),
        )
    out.print(table)


@models_app.command("fetch")
def fetch_model(
    name: Annotated[
        str, typer.Argument(help="Hugging Face name, URL of a directory (s3://, gs:// …), or smollm2.")
    ],
    digest: Digest = None,
    weights: Annotated[
        bool,
        typer.Option(help="Fetch the weights too. A gateway needs only the tokenizer and the templates."),
    ] = True,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Fetch a model into the data directory, where `memserve gateway` and the workers find it.

    A model that is there is not fetched again.
    A fetch that was ended goes on with the next whole file. smollm2 is
    converted, and its Python package fetched by pip where it is not installed.

    Example: `memserve models fetch Qwen/Qwen3-0.6B`
    """
    private_umask()
    settings = load_settings(data_dir=data_dir, model_digest=digest)
    with progress_bar(name) as moved:
        telling = Telling(reporter(), moved if err.is_terminal else None)
        path = _fetched(name, settings, telling, weights=weights)
    _show(name, path, as_json)


@models_app.command("convert")
def convert_model(
    source: Annotated[
        str, typer.Argument(help="GGUF file, directory with one, or smollm2 where its package is installed.")
    ],
    name: Annotated[str, typer.Option(help="Of the model from then on. Default: the file's.")] = "",
    dtype: Annotated[Dtype, typer.Option(help="Of the weights that are written.")] = Dtype.BFLOAT16,
    digest: Digest = None,
    again: Annotated[
        bool, typer.Option("--again", help="Make it anew, and replace a model of the name.")
    ] = False,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Make a model directory of a GGUF file, in the data directory, once.

    transformers reads the file. The model, in safetensors, is then served by
    its name. A model that is there is not converted again, and one that was
    killed half-way is begun anew.

    Example: `memserve models convert ~/models/tiny.Q8_0.gguf --name tiny`
    """
    from memserve.model.convert.choosing import Choices, convert_source

    private_umask()
    settings = load_settings(data_dir=data_dir, model_digest=digest)
    choices = Choices(name, dtype.value, settings.model_digest, again, settings.disk_reserve_bytes)
    with progress_bar(source) as moved:
        telling = Telling(reporter(), moved if err.is_terminal else None)
        path = convert_source(source, choices, settings.data, telling)
    _show(path.name, path, as_json)


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


def _fetched(name: str, settings: Settings, telling: Telling, *, weights: bool) -> Path:
    from memserve.model.convert.choosing import Choices, fetch_packaged
    from memserve.model.fetch.fetching import Wish, fetch
    from memserve.model.known import PACKAGED, is_name, unknown_name

    digest, reserve_bytes = settings.model_digest, settings.disk_reserve_bytes
    if name in PACKAGED:
        return fetch_packaged(
            PACKAGED[name], Choices(digest=digest, reserve_bytes=reserve_bytes), settings.data, telling
        )
    if is_name(name):
        raise unknown_name(name, "model", settings.data)
    return fetch(
        Wish(name, weights=weights, digest=digest, reserve_bytes=reserve_bytes), settings.data, telling
    )


def _show(name: str, path: Path, as_json: bool) -> None:
    if as_json:
        print_json({"name": name, "path": str(path)})
    else:
        print(path)
