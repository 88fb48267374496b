"""What `memserve memories consolidate` prints."""

from __future__ import annotations

import io
from dataclasses import replace

from rich.console import Group

from memserve.cli.consolidating import consolidation_lines
from memserve.cli.terminal import PlainConsole
from memserve.domain.consolidating import Consolidation
from tests.client.memory_cases import CONSOLIDATION


def printed(consolidation: Consolidation) -> str:
    console = PlainConsole(file=io.StringIO(), width=200)
    console.print(Group(*consolidation_lines(consolidation)))
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def test_what_recall_finds_and_what_the_served_model_answers_is_told() -> None:
    assert (
        "6 questions: recall finds 5 before and 4 after; "
        "the served model was asked 3, right 2 before and 1 after\n"
    ) in printed(CONSOLIDATION)


def test_a_candidate_that_no_worker_was_asked_about_says_so() -> None:
    probes = replace(CONSOLIDATION.probes, asked=0, right_before=0, right_after=0)
    assert "the served model was not asked\n" in printed(replace(CONSOLIDATION, probes=probes))
