"""`memserve kv`: the KV of prompt prefixes, looked up, warmed, kept and freed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import typer
from rich.console import Group
from rich.table import Table

from memserve.cli.kv_check import check
from memserve.cli.options import Call, gateway_command, text_of
from memserve.cli.terminal import out, progress_bar
from memserve.client import CachedPrefix, CacheUsage, Message, Role
from memserve.domain import Warmth
from memserve.errors import StartupError

kv_app = typer.Typer(
    help="Activation memory: the KV of prompt prefixes, in the workers and in Redis.", no_args_is_help=True
)
kv_app.command()(check)


@dataclass(frozen=True, slots=True)
class PrefixOptions:
    """The prefix that a command is about."""

    text: Annotated[
        str,
        typer.Argument(
            help="The user's text, as `memserve generate` takes it; - reads it from standard input."
        ),
    ] = ""
    system: Annotated[str, typer.Option(help="System text before it; - reads it from standard input.")] = ""
    module: Annotated[
        str, typer.Option(help="Module that the text is asked with, as of `memserve generate`.")
    ] = ""

    def messages(self) -> list[Message]:
        return conversation(self.text, self.system)


def conversation(text: str, system: str) -> list[Message]:
    """The messages of a prefix. Without a text of the user it is the system text alone.

    Raises StartupError when both texts come from standard input.
    """
    if text == system == "-":
        raise StartupError("only one of the text and --system can be read from standard input")
    turns = [(Role.SYSTEM, system), (Role.USER, text)]
    return [Message(role, text_of(content)) for role, content in turns if content]


@kv_app.command("lookup")
@gateway_command(timeout_s=30)
def lookup(call: Call, prefix: PrefixOptions) -> None:
    """Show how much of a prefix is cached, and where.

    Example: `memserve kv lookup --system - < handbook.txt`
    """
    cached = call.client.activation.lookup(prefix.messages(), module=prefix.module)
    call.show(cached, text=cached_table(cached))


@kv_app.command("warm")
@gateway_command(timeout_s=600)
def warm(
    call: Call,
    prefix: PrefixOptions,
    worker_id: Annotated[str, typer.Option(help="Compute it on this worker. Default: the least busy.")] = "",
) -> None:
    """Compute a prefix and store it in Redis, for every worker.

    Example: `memserve kv warm --system - < handbook.txt`
    """
    last: Warmth | None = None
    with progress_bar("computing") as progress:
        for last in call.client.activation.warm(prefix.messages(), module=prefix.module, worker_id=worker_id):
            progress(last.computed_tokens, last.prompt_tokens)
    assert last is not None
    call.show(
        last,
        text=f"{last.computed_tokens} tokens computed on {last.worker_id}, {last.stored_tokens} of them in "
        "Redis",
    )


@kv_app.command("pin")
@gateway_command(timeout_s=30, has_json=False)
def pin(
    call: Call,
    prefix: PrefixOptions,
    hours: Annotated[float, typer.Option(help="How long; at most 720.")] = 24.0,
) -> None:
    """Keep a prefix in Redis, whatever else is stored. It must be stored already: warm it first.

    Example: `memserve kv pin --system - --hours 48 < handbook.txt`
    """
    tokens = call.client.activation.pin(prefix.messages(), round(hours * 3600), module=prefix.module)
    out.print(f"{tokens} tokens pinned for {hours:g} hours")


@kv_app.command("unpin")
@gateway_command(timeout_s=30, has_json=False)
def unpin(call: Call, prefix: PrefixOptions) -> None:
    """Take a pin back."""
    tokens = call.client.activation.unpin(prefix.messages(), module=prefix.module)
    out.print(f"{tokens} tokens unpinned")


@kv_app.command("evict")
@gateway_command(timeout_s=300)
def evict(
    call: Call,
    prefix: PrefixOptions,
    module_digest: Annotated[
        str, typer.Option(help="Instead of a prefix: all that was computed with this module version.")
    ] = "",
    everything: Annotated[
        bool, typer.Option("--all", help="Instead of a prefix: all of your tenant.")
    ] = False,
) -> None:
    """Remove KV from Redis. Pinned prefixes stay, and the workers' own memory empties by itself.

    Example: `memserve kv evict --all`
    """
    if sum((bool(prefix.text or prefix.system), bool(module_digest), everything)) != 1:
        raise StartupError("give a prefix, or --module-digest, or --all")
    activation = call.client.activation
    if everything:
        removed = activation.evict_tenant()
    elif module_digest:
        removed = activation.evict_module(module_digest)
    else:
        removed = activation.evict(prefix.messages(), module=prefix.module)
    call.show(
        removed,
        text=f"{removed.removed_chunks} chunks removed, {removed.pinned_chunks} stay because they are pinned",
    )


@kv_app.command("usage")
@gateway_command(timeout_s=30)
def usage(call: Call) -> None:
    """Show what is stored in Redis, and the quotas."""
    now = call.client.activation.usage()
    call.show(now, text=Group(*usage_lines(now)))


def cached_table(cached: CachedPrefix) -> Table:
    table = Table("where", "tokens")
    table.add_row("the prefix itself", str(cached.prompt_tokens))
    table.add_row(
        f"Redis (chunks of {cached.chunk_tokens})",
        "not answering" if cached.redis_tokens is None else str(cached.redis_tokens),
    )
    for worker in cached.workers:
        table.add_row(f"{worker.worker_id}, device", str(worker.device_tokens))
        table.add_row(f"{worker.worker_id}, device or host", str(worker.held_tokens))
    return table


def usage_lines(now: CacheUsage) -> Iterator[str]:
    quota = f" of {now.tenant_quota_bytes}" if now.tenant_quota_bytes else ""
    yield f"{now.stored_bytes}{quota} bytes in {now.chunks} chunks, {now.pinned_bytes} bytes of them pinned"
    quota = f" of {now.cache_quota_bytes}" if now.cache_quota_bytes else ""
    yield f"all tenants: {now.cache_stored_bytes}{quota} bytes"
