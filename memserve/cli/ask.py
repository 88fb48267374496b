"""`memserve generate`: an answer, and the receipt that says where it came from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from rich.text import Text

from memserve.cli.memory_options import metadata_of
from memserve.cli.options import Call, gateway_command, print_json, text_of
from memserve.cli.terminal import coloured, err
from memserve.client import Event, Message, Role, Route, RungCost, Sampling, Slo, TextDelta, Usage
from memserve.domain import Expert, UsedModule
from memserve.plain import paragraphs


@dataclass(frozen=True, slots=True)
class AnswerOptions:
    """The options for the answer itself."""

    system: Annotated[str, typer.Option(help="System text before the question.")] = ""
    max_tokens: Annotated[int, typer.Option(help="Output tokens at most. 0: the gateway's default.")] = 0
    keep_prompt: Annotated[
        bool,
        typer.Option(
            "--keep-prompt",
            help="Keep the exact prompt for a day, for `memserve explain`.",
        ),
    ] = False
    temperature: Annotated[
        float, typer.Option(help="How far the sampling may stray from the likeliest token. 0 is greedy.")
    ] = 0.0


@dataclass(frozen=True, slots=True)
class ModuleOptions:
    """Which modules answer."""

    module: Annotated[
        str,
        typer.Option(help="LoRA to answer with: NAME, NAME@ALIAS or NAME@NUMBER.", rich_help_panel="Modules"),
    ] = ""
    expert: Annotated[
        str,
        typer.Option(
            help="Logit expert to decode with; a reference as of --module.", rich_help_panel="Modules"
        ),
    ] = ""
    cartridge: Annotated[
        str,
        typer.Option(
            help="Cartridge that the prompt begins with; a reference as of --module.",
            rich_help_panel="Modules",
        ),
    ] = ""
    soft_prompt: Annotated[
        str,
        typer.Option(
            help="Soft prompt that the prompt begins with, in the place of a cartridge; a reference as of "
            "--module.",
            rich_help_panel="Modules",
        ),
    ] = ""
    alpha: Annotated[
        float,
        typer.Option(help="How far the expert shifts the logits. 0 is off.", rich_help_panel="Modules"),
    ] = 1.0
    session: Annotated[
        str,
        typer.Option(
            help="Any name. Requests of one session get the same version of a split alias.",
            rich_help_panel="Modules",
        ),
    ] = ""


@dataclass(frozen=True, slots=True)
class RecallOptions:
    """Which memories come into the prompt."""

    recall: Annotated[
        list[str] | None,
        typer.Option(help="Namespace to recall from; may be repeated.", rich_help_panel="Recall"),
    ] = None
    recall_limit: Annotated[
        int, typer.Option(help="Passages at most. 0: the gateway's default.", rich_help_panel="Recall")
    ] = 0
    recall_filter: Annotated[
        str,
        typer.Option(
            help='Which memories: an expression, such as `metadata.city == "Oslo"`.', rich_help_panel="Recall"
        ),
    ] = ""
    min_relevance: Annotated[
        float,
        typer.Option(
            min=0, max=1, help="Least probability that a passage answers.", rich_help_panel="Recall"
        ),
    ] = 0.0
    context: Annotated[
        list[str] | None,
        typer.Option(
            help="KEY=VALUE that conditions are judged by; may be repeated.", rich_help_panel="Recall"
        ),
    ] = None
    choose_module: Annotated[
        bool,
        typer.Option(
            "--choose-module",
            help="Without --module, answer with the one whose knowledge fits, if one does.",
            rich_help_panel="Recall",
        ),
    ] = False

    def wishes(self) -> dict[str, Any] | None:
        """How to search; None for no wishes, so that the gateway's defaults hold. Raises StartupError."""
        if not (self.recall_filter or self.min_relevance or self.context):
            return None
        return {
            "filter": self.recall_filter,
            "min_relevance": self.min_relevance,
            "context": metadata_of(self.context or ()),
            "rerank": True,
        }


@dataclass(frozen=True, slots=True)
class RouteOptions:
    """Which worker computes the answer."""

    ttft_ms: Annotated[
        float,
        typer.Option(help="Wanted time to first token, milliseconds. 0: no wish.", rich_help_panel="Route"),
    ] = 0.0
    tpot_ms: Annotated[
        float,
        typer.Option(
            help="Wanted time per further token, milliseconds. 0: no wish.", rich_help_panel="Route"
        ),
    ] = 0.0
    refuse_late: Annotated[
        bool,
        typer.Option(
            "--refuse-late",
            help="Rather be refused at once than get the first token later than --ttft-ms.",
            rich_help_panel="Route",
        ),
    ] = False
    skip_recall: Annotated[
        bool,
        typer.Option(
            "--skip-recall",
            help="Rather be answered without recalled passages than be refused.",
            rich_help_panel="Route",
        ),
    ] = False
    priority: Annotated[
        str,
        typer.Option(
            help="high, normal or low: which requests go first. Default: normal, or the key's highest.",
            rich_help_panel="Route",
        ),
    ] = ""
    do_not_queue: Annotated[
        bool,
        typer.Option(
            "--do-not-queue",
            help="Rather be refused at once than wait for an engine.",
            rich_help_panel="Route",
        ),
    ] = False
    worker_id: Annotated[
        str,
        typer.Option(
            help="Send the request to this worker. Default: the gateway chooses.", rich_help_panel="Route"
        ),
    ] = ""


@gateway_command(timeout_s=60)
def generate(
    call: Call,
    question: Annotated[str, typer.Argument(help="What to ask; - reads it from standard input.")],
    answer: AnswerOptions,
    modules: ModuleOptions,
    memories: RecallOptions,
    route: RouteOptions,
) -> None:
    """Ask a question. The answer streams to standard output, the receipt to standard error.

    Example: `memserve generate "What is the code of Amber Lantern?" --recall notes`
    """
    messages = [Message(Role.USER, text_of(question))]
    if answer.system:
        messages.insert(0, Message(Role.SYSTEM, answer.system))
    request: dict[str, Any] = {
        "module": modules.module,
        "modules": [each for each in (modules.cartridge, modules.soft_prompt) if each],
        "namespaces": memories.recall or (),
        "recall_limit": memories.recall_limit,
        "recall_options": memories.wishes(),
        "choose_module": memories.choose_module,
        "sampling": Sampling(max_tokens=answer.max_tokens, temperature=answer.temperature),
        "slo": Slo(route.ttft_ms or None, route.tpot_ms or None, route.refuse_late, route.skip_recall),
        "worker_id": route.worker_id,
        "expert": Expert(modules.expert, modules.alpha) if modules.expert else None,
        "session": modules.session,
        "priority": route.priority or None,
        "do_not_queue": route.do_not_queue,
        "keep_prompt": answer.keep_prompt,
    }
    if call.as_json:
        print_json(call.client.generate(messages, **request))
        return
    for event in call.client.stream(messages, **request):
        print_event(event)


def print_event(event: Event) -> None:
    """Print the text on standard output as it arrives, and everything else on standard error."""
    match event:
        case TextDelta():
            print(paragraphs(event.text), end="", flush=True)
        case Route():
            for line in route_lines(event):
                err.print(line)
        case Usage():
            print()
            err.print(usage_line(event))
            if event.rungs:
                err.print(coloured(f"took part: {'; '.join(map(rung_line, event.rungs))}", "dim"))


def route_lines(route: Route) -> Iterator[Text]:
    """The sources of the answer, one line each: passages, modules, the worker."""
    for number, hit in enumerate(route.passages, start=1):
        source = hit.memory.source or "no source"
        yield coloured(f"[{number}] {hit.memory.memory_id} from {source}", "dim")
    for entry in route.skipped:
        yield coloured(f"not used: {entry.memory_id} ({entry.reason}): {entry.detail}", "dim")
    if route.lost_memories:
        yield coloured(
            f"the vector store has lost {route.lost_memories} memories of these namespaces", "yellow"
        )
    if route.recall_outcome in ("late", "unavailable"):
        yield coloured(f"recall was {route.recall_outcome}: answered without passages", "yellow")
    if route.system_folded or route.merged_turns:
        changes = ["system text and passages stand in a turn of the user"] if route.system_folded else []
        changes += [f"{route.merged_turns} turns joined to the one before"] if route.merged_turns else []
        yield coloured(f"for the model's chat template: {', '.join(changes)}", "dim")
    for fact in route.outdated:
        yield coloured(f"the text wins over {fact.module}: {fact.why}", "yellow")
    for used in route.modules:
        yield coloured(module_line(used), "dim")
    yield coloured(f"request {route.request_id}", "dim")
    yield coloured(f"{route.worker_id}: {route.reason}", "dim")


def module_line(used: UsedModule) -> str:
    shift = f", alpha {used.alpha:g}" if used.alpha else ""
    return f"{used.name}@{used.version} ({used.digest[:12]}{shift}): {used.reason}"


def rung_line(rung: RungCost) -> str:
    costs = [f"{rung.tokens} tokens"] if rung.tokens else []
    costs += [f"{rung.bytes} bytes"] if rung.bytes else []
    costs += [f"{rung.ms:.1f} ms"] if rung.ms else []
    return f"{rung.kind} {rung.name}".rstrip() + (f" ({', '.join(costs)})" if costs else "")


def usage_line(usage: Usage) -> Text:
    cached = usage.cached
    cartridge = f", {cached.cartridge} of a cartridge" if cached.cartridge else ""
    return coloured(
        f"{usage.prompt_tokens} prompt tokens ({cached.device} cached on the worker, {cached.host} in host "
        f"memory, {cached.redis} from Redis{cartridge}), {usage.output_tokens} output tokens, TTFT "
        f"{usage.ttft_ms:.0f} ms",
        "dim",
    )
