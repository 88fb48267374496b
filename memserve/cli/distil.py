"""`memserve modules distil`: memories become a candidate version of a module."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Annotated

import typer
from rich.console import Group, RenderableType

from memserve.cli.module_tables import version_text
from memserve.cli.modules import LONG_S, Name, kind_named, modules_app
from memserve.cli.options import Call, gateway_command
from memserve.cli.terminal import err, line, progress_bar
from memserve.domain import DEFAULT_RECIPE, DistilChoice, DistilPlan, DistilProgress, Recipe
from memserve.errors import StartupError

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

    kind: Annotated[str, typer.Option(help="lora or cartridge.")] = "lora"
    budget_s: Annotated[
        float, typer.Option("--budget-s", min=0, help="Processor seconds. 0: what suits the model's size.")
    ] = 0.0
    seed: Annotated[int, typer.Option(min=0, help="Of questions and training.")] = 0
    recipe: Annotated[
        list[str] | None,
        typer.Option(help=f"NAME=NUMBER, of {', '.join(_GIVEN)}; may be repeated."),
    ] = None
    notes: Annotated[str, typer.Option(help="Kept with the version.")] = ""

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
        return Recipe(**numbers)


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
    """Distil memories into a candidate version, with its gate report. Nothing is promoted.

    The job goes on when this command ends. The same command then watches it, or
    goes on from its checkpoint.

    Example: `memserve modules distil handbook --namespace town --dry-run`
    """
    if stop:
        call.client.modules.stop_distil(name)
        call.show({"module": name, "stopped": True}, text=line(f"{name}: stopped"))
        return
    kind = kind_named(options.kind)
    if dry_run:
        plan = call.client.modules.plan_distil(name, choice.choice(), kind=kind, seed=options.seed)
        call.show(plan, text=Group(*plan_lines(plan)))
        return
    with progress_bar(f"distilling {name}") as bar:

        def tell(event: DistilPlan | DistilProgress) -> None:
            if isinstance(event, DistilProgress):
                bar(event.done, event.total)
            else:
                err.print(plan_lines(event)[0])

        version = call.client.modules.distil(
            name,
            choice.choice(),
            kind=kind,
            recipe=options.chosen_recipe(),
            budget_s=options.budget_s,
            seed=options.seed,
            notes=options.notes,
            progress=tell,
        )
    if version is None:
        ended = {"module": name, "stopped": True}
        call.show(ended, text=line(f"{name}: the distillation was stopped"))
        return
    call.show(version, text=version_text(version))


def plan_lines(plan: DistilPlan) -> list[RenderableType]:
    """What is trained on, for a person."""
    lines = [
        f"{plan.memories} memories state {plan.facts} facts: {plan.questions} questions to train on, "
        f"{plan.probes} for the gate"
    ]
    lines += [f"  {example}" for example in plan.examples]
    lines += [f"left out: {each.namespace}/{each.memory_id} {each.reason}" for each in plan.left_out]
    return [line(each) for each in lines]
