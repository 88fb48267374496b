"""`memserve modules distil`: memories become a candidate version of a module."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Annotated

import typer
from rich.console import Group, RenderableType
from rich.table import Table

from memserve.cli.module_tables import version_text, when
from memserve.cli.modules import LONG_S, Name, kind_named, modules_app
from memserve.cli.options import Call, gateway_command
from memserve.cli.terminal import err, line, progress_bar
from memserve.domain import (
    DEFAULT_RECIPE,
    DistilChoice,
    DistillationJob,
    DistilPlan,
    DistilProgress,
    ModuleKind,
    ModuleVersion,
    Recipe,
)
from memserve.errors import InvalidField, StartupError
from memserve.policy.modules.recipes import SEED_MAX, check_recipe

LINE_S = 5.0
"""Between two lines about one stage."""
_GIVEN = {each.name: each.type for each in fields(Recipe)}


@dataclass(frozen=True, slots=True)
class ChoiceOptions:
    """Which memories."""

    namespaces: Annotated[
        list[str] | None, typer.Option("--namespace", "-n", help="Memories of it; may be repeated.")
    ] = None
    filter: Annotated[
        str, typer.Option("--filter", help='An expression, such as `metadata.city == "Oslo"`.')
    ] = ""
    document: Annotated[
        list[str] | None, typer.Option(help="Only memories of this document; may be repeated.")
    ] = None
    memory: Annotated[list[str] | None, typer.Option(help="A single one, NAMESPACE/ID; may be repeated.")] = (
        None
    )

    def choice(self) -> DistilChoice:
        """Raises StartupError."""
        single = []
        for each in self.memory or ():
            namespace, slash, memory_id = each.partition("/")
            if not (namespace and slash and memory_id):
                raise StartupError(f"{each!r} is no memory; give NAMESPACE/ID")
            single.append((namespace, memory_id))
        return DistilChoice(
            tuple(self.namespaces or ()), self.filter, tuple(self.document or ()), tuple(single)
        )


@dataclass(frozen=True, slots=True)
class TrainingOptions:
    """How it is trained."""

    kind: Annotated[
        str,
        typer.Option(
            help="lora or cartridge. Default: the module's own; a new module becomes a cartridge, or a LoRA "
            "where the model takes none."
        ),
    ] = ""
    budget_s: Annotated[
        float, typer.Option("--budget-s", min=0, help="Processor seconds. 0: what suits the model's size.")
    ] = 0.0
    seed: Annotated[int, typer.Option(min=0, max=SEED_MAX, help="Of questions and training.")] = 0
    recipe: Annotated[
        list[str] | None,
        typer.Option(help=f"NAME=NUMBER, of {', '.join(_GIVEN)}; may be repeated."),
    ] = None
    notes: Annotated[str, typer.Option(help="Kept with the version.")] = ""
    from_reference: Annotated[
        str,
        typer.Option(
            "--from", metavar="NAME@NUMBER", help="A LoRA to train on; what it was made of is asked again."
        ),
    ] = ""

    def chosen_recipe(self) -> Recipe:
        """Raises StartupError."""
        numbers = asdict(DEFAULT_RECIPE)
        for each in self.recipe or ():
            name, _, number = each.partition("=")
            if name not in numbers:
                raise StartupError(f"{each!r}: a recipe has {', '.join(numbers)}")
            try:
                numbers[name] = type(numbers[name])(number)
            except ValueError:
                raise StartupError(f"{each!r}: {number!r} is no {type(numbers[name]).__name__}") from None
        recipe = Recipe(**numbers)
        try:
            # Before it is a message, which has no place for larger numbers.
            check_recipe(recipe)
        except InvalidField as error:
            raise StartupError(f"{error.field}: {error.rule}") from None
        return recipe


@modules_app.command("distil")
@gateway_command(timeout_s=LONG_S)
def distil(
    call: Call,
    name: Name,
    choice: ChoiceOptions,
    options: TrainingOptions,
    dry_run: Annotated[bool, typer.Option(help="Only show what would be trained on.")] = False,
    stop: Annotated[bool, typer.Option(help="Stop the distillation of this module.")] = False,
) -> None:
    """Distil memories into a candidate version, with its gate report.

    It is promoted only where the setting promote_distilled names the tenant.
    The job goes on when this command ends, and after a restart. The same command
    watches it; `memserve modules distillations` lists all.

    Example: `memserve modules distil handbook --namespace town --dry-run`
    """
    if stop:
        call.client.modules.stop_distil(name)
        call.show({"module": name, "stopped": True}, text=line(f"{name}: stopped"))
        return
    kind = kind_named(options.kind) if options.kind else None
    if dry_run:
        plan = call.client.modules.plan_distil(
            name,
            choice.choice(),
            kind=kind,
            recipe=options.chosen_recipe(),
            seed=options.seed,
            from_reference=options.from_reference,
        )
        call.show(plan, text=Group(*plan_lines(plan)))
        return
    with progress_bar(f"distilling {name}") as bar:
        told = Told(bar)

        def tell(event: DistilPlan | DistilProgress) -> None:
            if isinstance(event, DistilPlan):
                err.print(plan_lines(event)[0])
            elif text := told.of(event, time.monotonic()):
                err.print(line(text), soft_wrap=True)

        version = call.client.modules.distil(
            name,
            choice.choice(),
            kind=kind,
            recipe=options.chosen_recipe(),
            budget_s=options.budget_s,
            seed=options.seed,
            notes=options.notes,
            from_reference=options.from_reference,
            progress=tell,
        )
    if version is None:
        ended = {"module": name, "stopped": True}
        call.show(ended, text=line(f"{name}: the distillation was stopped"))
        return
    call.show(version, text=version_text(version))
    if not call.as_json:
        err.print(Group(*next_lines(version)), soft_wrap=True)


class Told:
    """How far a job is: a bar, and a line when a stage begins and every few seconds."""

    def __init__(self, bar: Callable[[int, int], None]) -> None:
        self._bar = bar
        self._stage = ""
        self._said_s = 0.0

    def of(self, event: DistilProgress, now_s: float) -> str:
        """The line to print; "" for none."""
        self._bar(event.done, event.total)
        if event.stage == self._stage and now_s - self._said_s < LINE_S:
            return ""
        self._stage, self._said_s = event.stage, now_s
        return progress_line(event)


def progress_line(event: DistilProgress) -> str:
    """The stage, how far it is, and what it has cost."""
    done = f" {event.done} of {event.total}" if event.total else ""
    loss = "" if event.median_loss is None else f", median loss {event.median_loss:.3f}"
    cost = f", {event.cpu_s:.0f} processor seconds" if event.cpu_s else ""
    trained = f", {event.tokens:,} tokens trained" if event.tokens else ""
    stage = "waiting for a worker" if event.stage == "waiting" else event.stage
    return f"{stage}{done}{loss}{cost}{trained}"


def next_lines(version: ModuleVersion) -> list[RenderableType]:
    """What can be done with a version that nothing promotes by itself."""
    use = "--module" if version.kind == ModuleKind.LORA else f"--{version.kind}"
    promote = f"memserve modules promote {version.module} {version.version}"
    lines = [
        line(
            f"{version.reference} is a candidate. Ask it:  "
            f"memserve generate QUESTION {use} {version.reference}"
        )
    ]
    if version.gate is None or version.gate.passed:
        return [*lines, line(f"Promote it:  {promote}")]
    return [
        *lines,
        line(
            "The gate refuses to promote it. Trainings differ: the same command with another --seed makes "
            "another version."
        ),
        line(f"Promote it all the same, which is recorded:  {promote} --force"),
    ]


@modules_app.command("distillations")
@gateway_command(timeout_s=30)
def distillations(call: Call) -> None:
    """List the distillations: under way, and ended in the last seven days.

    The newest of each module is shown, with why it failed or was stopped.
    """
    jobs = call.client.modules.distillations()
    call.show({"distillations": [asdict(job) for job in jobs]}, text=distillations_table(jobs))


def distillations_table(jobs: Sequence[DistillationJob]) -> Table:
    table = Table("module", "state", "stage", "done", "CPU s", "begun", "by", "version", "")
    for job in jobs:
        version = f"{job.module}@{job.version}" if job.version else ""
        if job.passed is not None:
            version += ", passed" if job.passed else ", refused by the gate"
        told = f"promoted to {job.promoted_to}" if job.promoted_to else job.reason
        table.add_row(
            job.module,
            job.state,
            job.progress.stage,
            f"{job.progress.done}/{job.progress.total}",
            f"{job.progress.cpu_s:.0f}",
            when(job.begun_s),
            job.principal,
            version,
            told,
        )
    return table


def plan_lines(plan: DistilPlan) -> list[RenderableType]:
    """What is trained on, for a person."""
    memories = "1 memory states" if plan.memories == 1 else f"{plan.memories} memories state"
    lines = [
        f"{memories} {plan.facts} facts: {plan.questions} questions to train on, {plan.probes} for the gate"
    ]
    lines += [f"  {example}" for example in plan.examples]
    lines += [f"left out: {each.namespace}/{each.memory_id} {each.reason}" for each in plan.left_out]
    return [line(each) for each in lines]
