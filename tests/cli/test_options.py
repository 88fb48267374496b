"""Options that commands share, and groups of options."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from memserve.cli.options import Call, gateway_command, grouped
from memserve.errors import StartupError
from tests.hostile_server import hostile_server


@dataclass(frozen=True, slots=True)
class Meal:
    dish: Annotated[str, typer.Argument(help="What to eat.")]
    spice: Annotated[list[str] | None, typer.Option(help="With what.")] = None
    guests: int = 1


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with hostile_server(fails=False) as address:
        yield address


def app_of(command: object) -> typer.Typer:
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(command)  # type: ignore[type-var]
    return app


def test_a_group_is_the_fields_of_its_dataclass_and_reaches_the_command_as_one_value() -> None:
    meals: list[tuple[Meal, bool]] = []

    @grouped
    def cook(meal: Meal, hot: bool = False) -> None:
        """Cook."""
        meals.append((meal, hot))

    app = app_of(cook)
    words = ["soup", "--spice", "salt", "--spice", "pepper", "--guests", "3", "--hot"]
    assert CliRunner().invoke(app, words).exit_code == 0
    assert CliRunner().invoke(app, ["rice"]).exit_code == 0
    assert meals == [(Meal("soup", ["salt", "pepper"], 3), True), (Meal("rice", None, 1), False)]


def test_a_gateway_command_gets_a_client_that_is_closed_afterwards(address: str) -> None:
    calls: list[Call] = []

    @gateway_command(timeout_s=5)
    def look(call: Call, meal: Meal) -> None:
        """Look."""
        calls.append(call)
        call.show({"modules": call.client.status().modules}, text=meal.dish)

    app = app_of(look)
    shown = CliRunner().invoke(app, ["soup", "--address", address])
    assert (shown.exit_code, shown.stdout) == (0, "soup\n")
    shown = CliRunner().invoke(app, ["soup", "--address", address, "--json"])
    assert (shown.exit_code, shown.stdout) == (0, '{"modules": 1}\n')
    for call in calls:
        with pytest.raises(Exception, match="closed"):
            call.client.status()


def test_the_client_is_closed_when_the_command_fails_too(address: str) -> None:
    calls: list[Call] = []

    @gateway_command(timeout_s=5)
    def fail(call: Call) -> None:
        """Fail."""
        calls.append(call)
        raise StartupError("no")

    assert isinstance(CliRunner().invoke(app_of(fail), ["--address", address]).exception, StartupError)
    with pytest.raises(Exception, match="closed"):
        calls[0].client.status()


def test_a_command_whose_output_has_one_form_has_no_json_option(address: str) -> None:
    @gateway_command(timeout_s=5, has_json=False)
    def look(call: Call) -> None:
        """Look."""

    assert CliRunner().invoke(app_of(look), ["--address", address]).exit_code == 0
    assert CliRunner().invoke(app_of(look), ["--address", address, "--json"]).exit_code == 2
