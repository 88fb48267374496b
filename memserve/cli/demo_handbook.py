"""The acts of `memserve.embedded.handbook_story` for a person: what was asked, what came, what it cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table

from memserve.cli.terminal import coloured, line

LORA, CARTRIDGE, CARELESS = "handbook", "handbook-cartridge", "careless"
ANSWER_CHARS = 76
Figures = Mapping[str, Any]


def act_text(act: str, figures: Figures) -> RenderableType:
    """What is printed when an act has ended."""
    return Group(*ACTS[act](figures), "")


def closing(figures: Figures) -> Group:
    """The last lines: the time, what to try next, and the bars that were missed."""
    return Group(
        f"{figures['seconds']:.0f} s in all. What to try next:",
        line("  memserve up --model smollm2"),
        line("  memserve memories document mine FILE                       a page of your own"),
        line('  memserve generate "…" --recall mine                        asked by recall'),
        line("  memserve modules distil mine --namespace mine --dry-run    what a module would be taught"),
        line("  docs/how-to/distil-a-page-of-your-own.md                   the same, with all commands"),
        *(coloured(f"missed: {each}", "bold red") for each in figures["failed"]),
    )


def _start(figures: Figures) -> list[RenderableType]:
    return [
        f"Started in {figures['seconds']:.0f} s: {figures['workers']} vLLM workers with "
        "SmolLM2-135M-Instruct, two Redis servers, Milvus Lite, the gateway.",
        "A model of this size often misreads what it is told. The figures are those of this run.",
    ]


def _remember(figures: Figures) -> list[RenderableType]:
    return [
        _heading("1  Texts"),
        f"Remembered {figures['memories']} sentences of an invented observatory's handbook in "
        f"{figures['seconds']:.1f} s, the first: {figures['first']}",
    ]


def _recall(figures: Figures) -> list[RenderableType]:
    return [
        _answers_table(
            "The handbook's questions, without and with recall",
            {"without": figures["without"], "with recall": figures["with"]},
        )
    ]


def _gates(figures: Figures) -> list[RenderableType]:
    table = Table("version", "kind", "size", "trained in", "probes", "recall", "leak", "at the gate")
    for name in (LORA, CARTRIDGE, CARELESS):
        of = figures[name]
        shape = f"rank {of['rank']}" if of["kind"] == "lora" else f"{of['positions']} positions"
        table.add_row(
            of["reference"],
            f"{of['kind']}, {shape}",
            f"{of['bytes'] / 1e6:.1f} MB",
            f"{of['cpu_s']:.0f} CPU s",
            str(of["gate"]["probes"]),
            _share(of, "recall"),
            _share(of, "leak"),
            "refused" if of["refusal"] else "passed",
        )
    return [
        _heading("2  Modules"),
        "memserve has distilled the handbook: the files come with it, and the training is not repeated here. "
        f"Three versions at the gate took {figures['seconds']:.0f} s.",
        "The gate asks few questions here, and its bars are wide: one question of eight is twelve points.",
        table,
        line(f"The careless one was distilled almost without replay: {figures[CARELESS]['refusal']}"),
    ]


def _modules(figures: Figures) -> list[RenderableType]:
    return [
        _answers_table(
            "The same questions without any text in the prompt, in words that no training had",
            {"with the LoRA": figures[LORA], "behind the cartridge": figures[CARTRIDGE]},
        )
    ]


def _composed(figures: Figures) -> list[RenderableType]:
    table = Table(
        "version that answers", "answer", title="The LoRA at a smaller rank, promoted, and rolled back"
    )
    for version, answer in zip(figures["versions"], figures["answers"], strict=True):
        table.add_row(f"{LORA}@{version}", answer[:ANSWER_CHARS])
    verdict = f"was refused by the gate ({figures['refusal']}) and forced" if figures["refusal"] else "passed"
    same = "token for token the same" if figures["same_after"] else "ANOTHER ANSWER"
    return [
        table,
        line(
            f"Composed to rank {figures['rank']}, {figures['bytes'] / 1e6:.1f} MB, it {verdict}. The "
            f"rollback took {figures['rollback_ms']:.0f} ms; the answer after it is {same}."
        ),
    ]


def _prefix(figures: Figures) -> list[RenderableType]:
    cold = figures["cold"]
    table = Table(
        "prompt", "TTFT", "÷ cold", "cached", "on the worker", "from Redis", "same answer", "answer"
    )
    for state, of in figures.items():
        table.add_row(
            state,
            _time(of["ttft_ms"]),
            f"{of['ttft_of_cold']:.3f}",
            f"{of['cached_share']:.1%}",
            str(of["cached_on_worker"]),
            str(of["cached_from_redis"]),
            "yes" if of["same_tokens_as_cold"] else "no",
            of["answer"][:ANSWER_CHARS],
        )
    restart_s = figures["after restart"]["restart_s"]
    return [
        _heading("3  Prefixes"),
        f"A log and the handbook before the question: {cold['prompt_tokens']:,} tokens.",
        table,
        f"The restart itself took {restart_s:.0f} s.",
    ]


def _tampered(figures: Figures) -> list[RenderableType]:
    same = "the same answer" if figures["same_tokens_as_cold"] else "another answer"
    return [
        f"A bit flipped in each of {figures['entries']} entries of the cache: {figures['cached_from_redis']} "
        f"tokens were served from them. The prompt was computed again, {_time(figures['ttft_ms'])}: {same}.",
    ]


ACTS: Mapping[str, Callable[[Figures], list[RenderableType]]] = {
    "start": _start,
    "remember": _remember,
    "recall": _recall,
    "gates": _gates,
    "modules": _modules,
    "composed": _composed,
    "prefix": _prefix,
    "tampered": _tampered,
}


def _answers_table(title: str, ways: Mapping[str, Figures]) -> Table:
    table = Table("", "right", "prompt tokens", "TTFT", "examples", title=title, title_justify="left")
    for way, of in ways.items():
        tokens = str(of["prompt_tokens"] - of["cartridge_tokens"])
        if of["cartridge_tokens"]:
            tokens += f" + {of['cartridge_tokens']} of the cartridge"
        table.add_row(
            way, f"{of['right']} of {of['asked']}", tokens, _time(of["ttft_ms"]), _examples(of["examples"])
        )
    return table


def _examples(examples: Sequence[Figures]) -> Group:
    return Group(*(line(f"{each['question']} → {each['answer'][:ANSWER_CHARS]}") for each in examples))


def _heading(text: str) -> RenderableType:
    return coloured(text, "bold")


def _share(version: Figures, figure: str) -> str:
    of = version["gate"]["figures"].get(figure)
    return f"{of['base']:.2f} → {of['module']:.2f}" if of else "-"


def _time(milliseconds: float) -> str:
    return f"{milliseconds / 1000:.1f} s" if milliseconds >= 1000 else f"{milliseconds:.0f} ms"
