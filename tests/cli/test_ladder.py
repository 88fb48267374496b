"""What `memserve ladder show` prints."""

from __future__ import annotations

import io

from rich.console import Group

from memserve.cli.ladder import ladder_lines
from memserve.cli.terminal import PlainConsole
from memserve.domain.ladder import LadderBudget, LadderReport, LadderUse
from tests.client.examples import LADDER


def printed(report: LadderReport) -> str:
    console = PlainConsole(file=io.StringIO(), width=200)
    console.print(Group(*ladder_lines(report, 65.0)))
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def test_each_namespace_has_its_decision_and_why() -> None:
    text = printed(LADDER)
    assert "the ladder is at advise; it takes 0.0 of 0.0 MiB, and 2 of 60 s of making in 24 hours" in text
    assert "decided 60 s ago" in text
    assert "demote lora to text" in text
    assert "it is cold. town-lora@1 is unloaded" in text


def test_before_the_first_decision_it_says_so() -> None:
    text = printed(LadderReport("off", 0.0, LadderBudget(0, 0.0), LadderUse(0, 0.0), ()))
    assert text.splitlines()[-1] == "nothing has been decided yet"
