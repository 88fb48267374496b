"""What the command line says of how prompts are put together."""

from __future__ import annotations

from dataclasses import replace

from memserve.cli.ask import route_lines
from memserve.cli.status import status_lines
from tests.client.examples import ROUTE, STATUS


def test_the_receipt_says_how_the_conversation_was_changed() -> None:
    changed = "\n".join(line.plain for line in route_lines(ROUTE))
    assert "for the model's chat template: system text and passages stand in a turn of the user" in changed
    assert "2 turns joined to the one before" in changed
    same = "\n".join(line.plain for line in route_lines(replace(ROUTE, system_folded=False, merged_turns=0)))
    assert "chat template" not in same


def test_the_status_says_which_template_puts_passages_into_prompts() -> None:
    status = replace(STATUS, recall_template_digest="0123456789abcdef")
    shown = [str(line) for line in status_lines(status)]
    assert "passages put into prompts by the model's own template (0123456789ab)" in shown
    assert "for the model's chat template joined" in shown
    shown = [str(line) for line in status_lines(replace(STATUS, recall_template="", prompt_changes=""))]
    assert not any("template" in line for line in shown), "an older gateway does not say"
