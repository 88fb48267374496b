"""The `memserve` command: starts memserve's processes, and speaks to a running one."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

import memserve
from memserve.channels import spare_loopback
from memserve.cli.keys import keys_app
from memserve.cli.kv import kv_app
from memserve.cli.modules import audit_app, modules_app
from memserve.cli.options import (
    HELP,
    Address,
    ApiKey,
    AsJson,
    Timeout,
    connected,
    err,
    out,
    print_json,
    text_of,
)
from memserve.cli.terminal import cell, coloured
from memserve.client import DEFAULT_ADDRESS, CallFailed, collect
from memserve.config import Settings, load_settings
from memserve.domain import Expert, ModuleKind, Route, Sampling, Slo, TextDelta, Usage
from memserve.errors import MemserveError, StartupError, UsageError
from memserve.plain import json_line, log_to_stderr, paragraphs
from memserve.private_files import find_home, private_umask

app = typer.Typer(
    name="memserve",
    help="Language models that remember: adapters, KV state and text memories behind one gRPC gateway.\n\n"
    "`memserve up` starts everything on this machine; `memserve demo` shows what it does.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings=HELP,
)
app.add_typer(modules_app, name="modules")
app.add_typer(audit_app, name="audit")
app.add_typer(kv_app, name="kv")
app.add_typer(keys_app, name="keys")

WATCH_S = 0.25


def _print_version(asked: bool) -> None:
    if asked:
        print(memserve.__version__)
        raise typer.Exit


@app.callback()
def _of_all(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    find_home(os.environ)


@app.command()
def up(
    model: Annotated[
        str | None,
        typer.Option(help="Model directory or Hugging Face name. Default: the bundled demo model."),
    ] = None,
    workers: Annotated[int | None, typer.Option(help="vLLM workers. Default: 2.")] = None,
    port: Annotated[int | None, typer.Option(help="gRPC port of the gateway. Default: 50051.")] = None,
    metrics_port: Annotated[
        int | None, typer.Option(help="HTTP port of the Prometheus metrics. Default: 9464.")
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on. Default: 127.0.0.1.")] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Where everything is kept. Default: ~/.local/share/memserve.")
    ] = None,
    max_context_tokens: Annotated[
        int | None, typer.Option(help="Longest prompt and answer. Default: the model's, at most 8192.")
    ] = None,
    embedder: Annotated[
        str | None,
        typer.Option(
            help="Embedding model of the memories, directory or Hugging Face name. Default: a bundled "
            "one, for English."
        ),
    ] = None,
) -> None:
    """Start everything on this machine: Redis, Milvus Lite, Ray, the workers, the gateway. Ctrl-C stops it
    all.

    Every other setting comes from the environment: `memserve settings` lists them.
    """
    from memserve.embedded import Stack

    private_umask()
    settings = load_settings(
        model=model,
        workers=workers,
        port=port,
        metrics_port=metrics_port,
        host=host,
        data_dir=data_dir,
        max_context_tokens=max_context_tokens,
        embedder=embedder,
    )
    stack = Stack(settings, _reporter())
    with _stopping(stack) as asked_to_stop:
        stack.start()
        out.print(
            coloured(
                "ready", "bold green", f" on {stack.address}. Ctrl-C stops it. In another terminal, try:"
            )
        )
        at = "" if stack.address == DEFAULT_ADDRESS else f" --address {stack.address}"
        out.print(f"  memserve status{at}", highlight=False)
        out.print(
            f'  memserve remember notes "The code of Amber Lantern is 4071."{at}',
            highlight=False,
            soft_wrap=True,
        )
        out.print(
            f'  memserve generate "What is the code of Amber Lantern?" --recall notes{at}',
            highlight=False,
            soft_wrap=True,
        )
        while not asked_to_stop():
            time.sleep(WATCH_S)
        raise KeyboardInterrupt


@app.command()
def gateway(
    ports_held: Annotated[
        bool, typer.Option(hidden=True, help="The parent process keeps the ports.")
    ] = False,
) -> None:
    """Start a gateway alone, for a cluster: settings from the environment (MEMSERVE_MODEL,
    MEMSERVE_REDIS_URL, MEMSERVE_MILVUS_URI …).
    """
    from memserve.api.grpc.server import serve_gateway
    from memserve.model.checks import with_models

    private_umask()
    spare_loopback(os.environ)
    log_to_stderr()
    asyncio.run(serve_gateway(with_models(load_settings()), ports_held=ports_held))


@app.command()
def workers(
    generation: Annotated[
        bool, typer.Option(hidden=True, help="Be a generation, below another `memserve workers`.")
    ] = False,
    status: Annotated[
        int, typer.Option(hidden=True, help="File descriptor that the generation tells its status through.")
    ] = -1,
) -> None:
    """Start the workers alone, on a Ray of their own: settings from the environment. SIGHUP has new ones take
    their place.
    """
    from memserve.model.checks import with_models
    from memserve.worker.fleet.fleet import keep_workers, run_generation

    private_umask()
    spare_loopback(os.environ)
    log_to_stderr()
    if not generation:
        raise typer.Exit(keep_workers(with_models(load_settings())))
    run_generation(load_settings(), status)


@app.command()
def settings() -> None:
    """List every setting with its default and meaning."""
    table = Table("variable", "default", "meaning")
    for name, entry in Settings.model_fields.items():
        default = "" if entry.default is None or "SecretStr" in repr(entry.default) else str(entry.default)
        table.add_row(f"MEMSERVE_{name.upper()}", default, entry.description)
    out.print(table)


@app.command()
def demo(
    as_json: AsJson = False,
    workers: Annotated[int, typer.Option(min=2, max=8, help="vLLM workers.")] = 2,
    keep: Annotated[bool, typer.Option(help="Keep the demo's data directory.")] = False,
) -> None:
    """Start a private memserve, show what each memory does with figures measured on the spot, and stop it.
    About two minutes.
    """
    from memserve.embedded.story import print_story, tell_story

    private_umask()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    figures = tell_story(_reporter(), workers=workers, keep=keep)
    print_story(figures, out if not as_json else err)
    if as_json:
        print(json_line(figures))
    raise typer.Exit(0 if figures["ok"] else 1)


@app.command()
def generate(
    question: Annotated[str, typer.Argument(help="What to ask; - reads it from standard input.")],
    module: Annotated[str, typer.Option(help="LoRA to answer with: NAME, NAME@ALIAS or NAME@NUMBER.")] = "",
    expert: Annotated[
        str, typer.Option(help="Logit expert to decode with; a reference as of --module.")
    ] = "",
    alpha: Annotated[float, typer.Option(help="How far the expert shifts the logits. 0 is off.")] = 1.0,
    session: Annotated[
        str, typer.Option(help="Requests of one session get the same version of a split alias.")
    ] = "",
    recall: Annotated[
        list[str] | None, typer.Option(help="Namespace to recall from; may be repeated.")
    ] = None,
    recall_limit: Annotated[int, typer.Option(help="Passages at most. 0: the gateway's default.")] = 0,
    system: Annotated[str, typer.Option(help="System text.")] = "",
    max_tokens: Annotated[int, typer.Option(help="Output tokens at most. 0: the gateway's default.")] = 0,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    ttft_ms: Annotated[float, typer.Option(help="Wanted time to first token, milliseconds.")] = 0.0,
    tpot_ms: Annotated[float, typer.Option(help="Wanted time per further token, milliseconds.")] = 0.0,
    worker_id: Annotated[str, typer.Option(help="Send it to this worker.")] = "",
    address: Address = DEFAULT_ADDRESS,
    api_key: ApiKey = "",
    timeout: Timeout = 60.0,
    as_json: AsJson = False,
) -> None:
    """Ask a question. The answer streams to standard output, the receipt to standard error."""
    from memserve.domain import Message, Role

    messages = [Message(Role.USER, text_of(question))]
    if system:
        messages.insert(0, Message(Role.SYSTEM, system))
    with connected(address, api_key, timeout) as client:
        events = client.stream(
            messages,
            module=module,
            namespaces=recall or (),
            recall_limit=recall_limit,
            sampling=Sampling(max_tokens=max_tokens, temperature=temperature),
            slo=Slo(ttft_ms or None, tpot_ms or None),
            worker_id=worker_id,
            expert=Expert(expert, alpha) if expert else None,
            session=session,
        )
        if as_json:
            print_json(collect(list(events)))
            return
        for event in events:
            if isinstance(event, TextDelta):
                print(paragraphs(event.text), end="", flush=True)
            elif isinstance(event, Usage):
                print()
                cached = event.cached
                err.print(
                    f"{event.prompt_tokens} prompt tokens ({cached.device} cached on the worker, "
                    f"{cached.host} in host memory, "
                    f"{cached.redis} from Redis), {event.output_tokens} output tokens, TTFT "
                    f"{event.ttft_ms:.0f} ms",
                    style="dim",
                )
            elif isinstance(event, Route):
                for number, hit in enumerate(event.passages, start=1):
                    err.print(
                        f"[{number}] {hit.memory.memory_id} from {hit.memory.source or 'no source'}",
                        style="dim",
                    )
                if event.lost_memories:
                    err.print(
                        f"the vector store has lost {event.lost_memories} memories of these namespaces",
                        style="yellow",
                    )
                if event.recall_outcome in ("late", "unavailable"):
                    err.print(f"recall was {event.recall_outcome}: answered without passages", style="yellow")
                for used in event.modules:
                    shift = f", alpha {used.alpha:g}" if used.kind == ModuleKind.LOGIT_EXPERT else ""
                    err.print(
                        f"{used.name}@{used.version} ({used.digest[:12]}{shift}): {used.reason}",
                        style="dim",
                        highlight=False,
                    )
                err.print(f"{event.worker_id}: {event.reason}", style="dim")


@app.command()
def remember(
    namespace: str,
    text: Annotated[str, typer.Argument(help="What to remember; - reads it from standard input.")],
    source: Annotated[str, typer.Option(help="Where it comes from.")] = "",
    keyword: Annotated[list[str] | None, typer.Option(help="May be repeated.")] = None,
    memory_id: Annotated[
        str, typer.Option("--id", help="Makes a repeated call harmless. Default: a digest of the content.")
    ] = "",
    address: Address = DEFAULT_ADDRESS,
    api_key: ApiKey = "",
    timeout: Timeout = 30.0,
    as_json: AsJson = False,
) -> None:
    """Remember a text."""
    with connected(address, api_key, timeout) as client:
        memory = client.remember(
            namespace, text_of(text), source=source, keywords=keyword or (), memory_id=memory_id
        )
    print_json(memory) if as_json else out.print(f"remembered as {memory.memory_id}")


@app.command()
def forget(
    namespace: str,
    memory_id: str,
    address: Address = DEFAULT_ADDRESS,
    api_key: ApiKey = "",
    timeout: Timeout = 30.0,
) -> None:
    """Forget a memory."""
    with connected(address, api_key, timeout) as client:
        client.forget(namespace, memory_id)
    out.print(f"forgot {memory_id}")


@app.command()
def search(
    query: str,
    namespace: Annotated[list[str], typer.Option("--namespace", "-n", help="May be repeated.")],
    limit: Annotated[int, typer.Option(help="Results at most.")] = 8,
    address: Address = DEFAULT_ADDRESS,
    api_key: ApiKey = "",
    timeout: Timeout = 30.0,
    as_json: AsJson = False,
) -> None:
    """Search memories by meaning and by words."""
    with connected(address, api_key, timeout) as client:
        found = client.search(namespace, query, limit)
    if as_json:
        print_json({"results": [asdict(hit) for hit in found]})
        return
    table = Table("score", "id", "text", "source")
    for hit in found:
        table.add_row(f"{hit.score:.4f}", hit.memory.memory_id, cell(hit.memory.text), hit.memory.source)
    out.print(table)


@app.command()
def status(
    address: Address = DEFAULT_ADDRESS, api_key: ApiKey = "", timeout: Timeout = 10.0, as_json: AsJson = False
) -> None:
    """Show the model, the workers and the memories."""
    with connected(address, api_key, timeout) as client:
        now = client.status()
    if as_json:
        print_json(now)
        return
    out.print(
        f"memserve {now.version}, model {now.model} ({now.model_digest[:12]}), "
        f"{now.max_context_tokens} tokens of context"
    )
    out.print(
        f"Redis {'ok' if now.redis_ok else 'not answering'}, vector store "
        f"{'ok' if now.vector_store_ok else 'not answering'}, ",
        end="",
    )
    out.print(f"{now.modules} modules, {now.memories} memories")
    out.print(f"memories embedded by {now.embedder}", highlight=False)
    if now.lost_memories:
        damage = f": {now.lost_memories} of these memories are lost; `memserve restore` brings back a backup"
        out.print(coloured("the vector store is damaged", "bold red", damage))
    if now.short_disk:
        out.print(
            coloured(
                f"{now.short_disk} is nearly full", "bold red", ": changes are refused until there is room"
            )
        )
    for w in now.workers:
        resident = ", ".join(f"{digest[:12]} ({place})" for digest, place in w.modules.items()) or "none"
        out.print(
            f"{w.worker_id}  {'ready' if w.ready else 'not ready'}, {w.running} running, {w.waiting} waiting",
            highlight=False,
        )
        out.print(
            f"  {w.known_blocks} KV blocks, {w.prefill_tokens_per_s:.0f} prefill tokens/s, modules: "
            f"{resident}",
            highlight=False,
        )
        if not w.shares_kv:
            out.print(
                coloured(
                    "  does not share KV",
                    "bold red",
                    ": what it stored at its start came back different; see its log",
                )
            )
        if w.limits:
            out.print(f"  {w.limits}", highlight=False)
        out.print(
            f"  gRPC {w.address}, metrics http://{w.metrics_address}/metrics, pid {w.pid}", highlight=False
        )


@app.command()
def backup(
    name: Annotated[
        str, typer.Argument(help="What the backup is called: a folder in `backups` of the data directory.")
    ],
    address: Address = DEFAULT_ADDRESS,
    api_key: ApiKey = "",
    timeout: Timeout = 3600.0,
) -> None:
    """Back up a data directory while memserve runs on it. Copy the folder to another disk afterwards."""
    with connected(address, api_key, timeout) as client:
        for line in client.backup(name):
            out.print(line, highlight=False)


@app.command()
def restore(
    folder: Annotated[Path, typer.Argument(help="The folder of a backup.")],
    data_dir: Annotated[Path, typer.Option("--data-dir", help="Data directory to make: missing, or empty.")],
) -> None:
    """Make a data directory of a backup, with nothing running on it."""
    from memserve.embedded.restore import restore as restore_backup

    private_umask()
    try:
        restore_backup(
            folder.expanduser().absolute(),
            data_dir.expanduser().absolute(),
            lambda line: out.print(line, highlight=False),
        )
    except OSError as error:
        raise StartupError(f"{error.filename or folder}: {error.strerror}") from None


@app.command()
def version() -> None:
    """Print the version."""
    print(memserve.__version__)


def main() -> None:
    """Run the command; a fact that stops it is one line on standard error and exit code 1."""
    for stream in (sys.stdout, sys.stderr):
        # A locale that cannot show a character must not end a command. Files and pipes are UTF-8 whatever it
        # says.
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
        # Who read the output has seen enough, as `head` does. Python would flush once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error))


def _fail(why: str) -> None:
    err.print(coloured("memserve:", "bold red", f" {why}"), soft_wrap=True)
    sys.exit(1)


def _reporter() -> Any:
    started_s = time.monotonic()
    return lambda line: err.print(
        coloured(f"{time.monotonic() - started_s:6.1f} s", "dim", f"  {line}"), soft_wrap=True
    )


@contextlib.contextmanager
def _stopping(stack: Any) -> Iterator[Callable[[], bool]]:
    """Stop the stack at the end, and on the first SIGINT, SIGTERM or SIGHUP (the terminal was closed);
    stopping itself is not interrupted.

    Gives what says whether a signal has come. Its KeyboardInterrupt is lost when it meets a finalizer or a
    callback: ask, to be certain.
    """

    asked = False

    def ask(number: int, frame: Any) -> None:
        nonlocal asked
        if not asked:
            asked = True
            raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # Under nohup a closed terminal is ignored, and stays so.
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
