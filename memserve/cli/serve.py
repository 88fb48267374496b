"""The commands that start memserve's processes, and `memserve settings`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from memserve.channels import spare_loopback
from memserve.cli.options import grouped
from memserve.cli.terminal import coloured, err, out, reporter
from memserve.client import DEFAULT_ADDRESS
from memserve.config import Settings, load_settings
from memserve.errors import UsageError
from memserve.logs import log_to_stderr
from memserve.private_files import private_umask

if TYPE_CHECKING:
    from memserve.embedded import Stack

WATCH_S = 0.25


@dataclass(frozen=True, slots=True)
class SettingOptions:
    """The settings that `memserve up` takes as options. None: the environment's value, else the default."""

    model: Annotated[
        str | None,
        typer.Option(
            help="Model directory, name of `memserve models list` such as smollm2, Hugging Face name, or URL "
            "of a directory. Default: the bundled demo model."
        ),
    ] = None
    workers: Annotated[int | None, typer.Option(help="vLLM workers. Default: 2.")] = None
    port: Annotated[int | None, typer.Option(help="gRPC port of the gateway. Default: 50051.")] = None
    http_port: Annotated[
        int | None, typer.Option(help="HTTP port of the gateway, with OpenAI's API. Default: 8000.")
    ] = None
    metrics_port: Annotated[
        int | None, typer.Option(help="HTTP port of the Prometheus metrics. Default: 9464.")
    ] = None
    host: Annotated[str | None, typer.Option(help="Address to listen on. Default: 127.0.0.1.")] = None
    data_dir: Annotated[
        Path | None, typer.Option(help="Where everything is kept. Default: ~/.local/share/memserve.")
    ] = None
    max_context_tokens: Annotated[
        int | None, typer.Option(help="Longest prompt and answer. Default: the model's, at most 8192.")
    ] = None
    embedder: Annotated[
        str | None,
        typer.Option(
            help="Embedding model of the memories, directory or Hugging Face name. Default: a bundled "
            "one, for English."
        ),
    ] = None
    chat_template: Annotated[
        Path | None,
        typer.Option(help="File of a chat template in Jinja. Default: the model's own."),
    ] = None
    recall_template: Annotated[
        Path | None,
        typer.Option(
            help="File of the Jinja template that puts recalled passages into the prompt. Default: the "
            "model's recall_template.jinja, else memserve's."
        ),
    ] = None


@grouped
def up(options: SettingOptions) -> None:
    """Start everything on this machine. Ctrl-C stops it all.

    Everything is Redis, Milvus Lite, Ray, the workers and the gateway.
    Every other setting comes from the environment: see `memserve settings`.

    Example: `memserve up --model Qwen/Qwen3-0.6B --workers 1`
    """
    from memserve.embedded import Stack

    private_umask()
    stack = Stack(load_settings(**asdict(options)), reporter())
    with _stopping(stack) as asked_to_stop:
        stack.start()
        _print_first_steps(stack.address, stack.client_variables())
        while not asked_to_stop():
            time.sleep(WATCH_S)
        raise KeyboardInterrupt


def _print_first_steps(address: str, variables: Mapping[str, str]) -> None:
    """variables: that a client needs for TLS."""
    out.print(coloured("ready", "bold green", f" on {address}. Ctrl-C stops it. In another terminal, try:"))
    option = "" if address == DEFAULT_ADDRESS else f" --address {address}"
    for name, value in variables.items():
        out.print(f"  export {name}={value}", soft_wrap=True)
    for command in (
        "memserve status",
        'memserve remember notes "The code of Amber Lantern is 4071."',
        'memserve generate "What is the code of Amber Lantern?" --recall notes',
    ):
        out.print(f"  {command}{option}", soft_wrap=True)


def gateway(
    ports_held: Annotated[
        bool, typer.Option(hidden=True, help="The parent process keeps the ports.")
    ] = False,
    own_socket: Annotated[
        str, typer.Option(hidden=True, help="Where the parent process calls without TLS.")
    ] = "",
) -> None:
    """Start a gateway alone, for a cluster.

    Its settings come from the environment, such as MEMSERVE_MODEL,
    MEMSERVE_REDIS_URL and MEMSERVE_MILVUS_URI: see `memserve settings`.
    """
    from memserve.api.server import serve_gateway

    private_umask()
    spare_loopback(os.environ)
    from memserve.model.checks import with_models

    settings = load_settings()
    log_to_stderr(settings.log_format)
    models = with_models(settings, weights=False)
    asyncio.run(serve_gateway(models, ports_held=ports_held, own_socket=own_socket))


def workers(
    ray_address: Annotated[
        str | None,
        typer.Option(help="Ray cluster to run the workers on: host:port of its head. Default: a Ray here."),
    ] = None,
    remove: Annotated[
        bool, typer.Option("--remove", help="End the workers of the Ray cluster, and this command.")
    ] = False,
    generation: Annotated[
        bool, typer.Option(hidden=True, help="Be a generation, below another `memserve workers`.")
    ] = False,
    status: Annotated[
        int, typer.Option(hidden=True, help="File descriptor that the generation writes its status to.")
    ] = -1,
    a_node: Annotated[
        bool, typer.Option("--a-node", hidden=True, help="One worker for each node of the cluster.")
    ] = False,
) -> None:
    """Start the workers alone, on a Ray of their own or on a Ray cluster.

    Their settings come from the environment: see `memserve settings`.
    SIGHUP starts new workers, which take the place of the old workers.
    On a Ray cluster Ctrl-C leaves the workers there; `--remove` ends them.

    Example: `memserve workers --ray-address 10.0.0.5:6379`
    """
    private_umask()
    spare_loopback(os.environ)
    settings = load_settings(ray_address=ray_address)
    log_to_stderr(settings.log_format)
    if settings.ray_address and (generation or remove):
        from memserve.worker.fleet.cluster import follow_application, remove_application

        if remove:
            remove_application(settings)
        else:
            follow_application(settings, status, a_node=a_node)
        return
    if remove:
        raise UsageError("remove", "--remove is for workers on a Ray cluster: name it by --ray-address")
    from memserve.worker.fleet.fleet import keep_workers, run_generation

    if generation:
        run_generation(settings, status)
        return
    from memserve.model.checks import with_models
    from memserve.tls.live import internal_tls
    from memserve.tls.pem import WORKER_NAME

    if not settings.ray_address:
        # A replica would say it in its log only. On a cluster the files are the nodes' own.
        internal_tls(settings, WORKER_NAME)

    # The nodes of a cluster fetch the model themselves.
    raise typer.Exit(keep_workers(settings if settings.ray_address else with_models(settings)))


def ray_node(
    head: Annotated[
        bool, typer.Option("--head", help="Be the head, which has no worker. Exactly one node is.")
    ] = False,
) -> None:
    """Be a node of a Ray cluster, and run workers on it.

    The node joins the cluster of MEMSERVE_RAY_ADDRESS, and has one worker, or
    one for each GPU. SIGTERM drains it: its workers finish their answers before
    it ends.

    Its settings come from the environment: see `memserve settings`.

    Example: `memserve ray-node --head`
    """
    from memserve.worker.fleet.ray_node import keep_node

    private_umask()
    spare_loopback(os.environ)
    settings = load_settings()
    log_to_stderr(settings.log_format)
    raise typer.Exit(keep_node(settings, head=head))


def settings() -> None:
    """List every setting with its default and meaning."""
    table = Table("variable", "default", "meaning")
    for name, entry in Settings.model_fields.items():
        default = "" if entry.default is None or "SecretStr" in repr(entry.default) else str(entry.default)
        table.add_row(f"MEMSERVE_{name.upper()}", default, entry.description)
    out.print(table)


@contextlib.contextmanager
def _stopping(stack: Stack) -> Iterator[Callable[[], bool]]:
    """Stop the stack at the end, and on the first SIGINT, SIGTERM or SIGHUP (the terminal was closed). While
    the stack stops, further signals do nothing.

    Gives a function that says whether a signal has come. A signal raises KeyboardInterrupt too. Python drops
    that exception when the signal meets a finalizer or a callback, and then only the function knows.
    """

    asked = False

    def ask(number: int, frame: Any) -> None:
        nonlocal asked
        if not asked:
            asked = True
            raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # nohup starts its command with SIGHUP ignored, and SIGHUP stays ignored.
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, ask)
    try:
        yield lambda: asked
    except KeyboardInterrupt:
        with contextlib.suppress(OSError):  # the terminal may be gone
            err.print("stopping" if stack.started else "stopped while starting")
    finally:
        asked = True
        stack.stop()
