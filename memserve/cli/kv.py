"""`memserve kv`: the KV of prompt prefixes, looked up, warmed, kept and freed."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from memserve.cli.kv_check import check
from memserve.cli.options import Address, ApiKey, AsJson, Timeout, connected, err, out, print_json, text_of
from memserve.cli.terminal import progress_bar
from memserve.client import DEFAULT_ADDRESS
from memserve.client.activation import Evicted
from memserve.domain import Message, Role, Warmth
from memserve.errors import StartupError

kv_app = typer.Typer(
    help="Activation memory: the KV of prompt prefixes, in the workers and in Redis.", no_args_is_help=True
)
kv_app.command()(check)

Text = Annotated[
    str,
    typer.Argument(help="The user's text, as `memserve generate` takes it; - reads it from standard input."),
]
System = Annotated[str, typer.Option(help="System text before it; - reads it from standard input.")]
Module = Annotated[str, typer.Option(help="Module that it is asked with.")]


def conversation(text: str, system: str) -> list[Message]:
    """The messages that a prefix is made of: the system text alone when there is no other."""
    if text == system == "-":
        raise StartupError("only one of the text and --system can be read from standard input")
    turns = [(Role.SYSTEM, system), (Role.USER, text)]
    return [Message(role, text_of(content)) for role, content in turns if content]


@kv_app.command()
def lookup(
    text: Text = "",
    system: System = "",
    module: Module = "",
    address: Address = DEFAULT_ADDRESS,
    api_key: ApiKey = "",
    timeout: Timeout = 30.0,
    as_json: AsJson = False,
) -> None:
    """Show how much of a prefix is cached, and where."""
    with connected(address, api_key, timeout) as client:
        found = client.activation.lookup(conversation(text, system), module=module)
    if as_json:
        print_json(found)
        return
    table = Table("where", "tokens")
    table.add_row("the prefix itself", str(found.prompt_tokens))
    table.add_row(
        f"Redis (chunks of {found.chunk_tokens})",
        "not answering" if found.redis_tokens is None else str(found.redis_tokens),
    )
    for worker in found.workers:
        table.add_row(f"{worker.worker_id}, device", str(worker.device_tokens))
        table.add_row(f"{worker.worker_id}, device or host", str(worker.held_tokens))
    out.print(table)


@kv_app.command()
def warm(
    text: Text = "",
    system: System = "",
    module: Module = "",
    worker_id: Annotated[str, typer.Option(help="Compute it on this worker. Default: the least busy.")] = "",
    address: Address = DEFAULT_ADDRESS,
    api_key: ApiKey = "",
    timeout: Timeout = 600.0,
    as_json: AsJson = False,
) -> None:
    """Compute a prefix and store it in Redis, for every worker."""
    last: Warmth | None = None
    with connected(address, api_key, timeout) as client, progress_bar(err) as bar:
        task = bar.add_task("computing")
        for last in client.activation.warm(conversation(text, system), module=module, worker_id=worker_id):
            bar.update(task, completed=last.computed_tokens, total=last.prompt_tokens)
    assert last is not None
    if as_json:
        print_json(last)
        return
    out.print(
        f"{last.computed_tokens} tokens computed on {last.worker_id}, {last.stored_tokens} of them in Redis"
    )


@kv_app.command()
def pin(
    text: Text = "",
    system: System = "",
    module: Module = "",
    hours: Annotated[float, typer.Option(help="How long; at most 720.")] = 24.0,
    address: Address = DEFAULT_ADDRESS,
    api_key: ApiKey = "",
    timeout: Timeout = 30.0,
) -> None:
    """Keep a prefix in Redis, whatever else is stored. It must be there: warm it first."""
    with connected(address, api_key, timeout) as client:
        tokens = client.activation.pin(conversation(text, system), round(hours * 3600), module=module)
    out.print(f"{tokens} tokens pinned for {hours:g} hours")


@kv_app.command()
def unpin(
    text: Text = "",
    system: System = "",
    module: Module = "",
    address: Address = DEFAULT_ADDRESS,
    api_key: ApiKey = "",
    timeout: Timeout = 30.0,
) -> None:
    """Take a pin back."""
    with connected(address, api_key, timeout) as client:
        tokens = client.activation.unpin(conversation(text, system), module=module)
    out.print(f"{tokens} tokens unpinned")


@kv_app.command()
def evict(
    text: Text = "",
    system: System = "",
    module: Module = "",
    module_digest: Annotated[
        str, typer.Option(help="Instead: all that was computed with this module version.")
    ] = "",
    everything: Annotated[bool, typer.Option("--all", help="Instead: all of your tenant.")] = False,
    address: Address = DEFAULT_ADDRESS,
    api_key: ApiKey = "",
    timeout: Timeout = 300.0,
    as_json: AsJson = False,
) -> None:
    """Remove KV from Redis. Pinned prefixes stay, and the workers' own memory empties by itself."""
    if sum((bool(text or system), bool(module_digest), everything)) != 1:
        raise StartupError("give a prefix, or --module-digest, or --all")
    with connected(address, api_key, timeout) as client:
        removed: Evicted
        if everything:
            removed = client.activation.evict_tenant()
        elif module_digest:
            removed = client.activation.evict_module(module_digest)
        else:
            removed = client.activation.evict(conversation(text, system), module=module)
    if as_json:
        print_json(removed)
        return
    out.print(
        f"{removed.removed_chunks} chunks removed, {removed.pinned_chunks} stay because they are pinned"
    )


@kv_app.command()
def usage(
    address: Address = DEFAULT_ADDRESS, api_key: ApiKey = "", timeout: Timeout = 30.0, as_json: AsJson = False
) -> None:
    """Show what is stored in Redis, and the quotas."""
    with connected(address, api_key, timeout) as client:
        now = client.activation.usage()
    if as_json:
        print_json(now)
        return
    quota = f" of {now.tenant_quota_bytes}" if now.tenant_quota_bytes else ""
    out.print(
        f"{now.stored_bytes}{quota} bytes in {now.chunks} chunks, {now.pinned_bytes} bytes of them pinned",
        highlight=False,
    )
    quota = f" of {now.cache_quota_bytes}" if now.cache_quota_bytes else ""
    out.print(f"all tenants: {now.cache_stored_bytes}{quota} bytes", highlight=False)
