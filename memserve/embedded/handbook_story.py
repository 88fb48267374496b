"""The story of `memserve demo` on a real language model: one act after the other, measured on the spot."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from memserve.client import Client
from memserve.config import load_settings
from memserve.embedded import Stack, handbook_acts
from memserve.embedded.handbook_acts import CARELESS, CARTRIDGE, LORA, LongText

Report = Callable[[str], None]
Told = Callable[[str, dict[str, Any]], None]
"""Takes the name of an act that has ended, and its figures."""

# A model of 135 million parameters misreads a passage now and then.
RECALL_AT_LEAST = 0.75
GUESSED_AT_MOST = 0.1
"""What a question without the text may be answered right by chance."""
TAUGHT_AT_LEAST = 0.5
"""In phrasings that no self-study has."""
SHARED_AT_LEAST = 0.95
TTFT_OF_COLD_AT_MOST = 0.5
CALL_TIMEOUT_S = 600.0
"""A gate asks a hundred questions, on a busy machine for minutes."""


def tell_handbook(report: Report, told: Told, *, model: Path, workers: int, keep: bool) -> dict[str, Any]:
    """Start a private memserve on the model, go through the acts, and stop it.

    told: called as soon as an act has ended. keep: do not remove the data directory.
    Returns the figures by act. "ok" is True when every bar holds. Raises StartupError.
    """
    began_s = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="memserve-demo-"))
    settings = load_settings(
        data_dir=folder, model=str(model), workers=workers, port=0, http_port=0, metrics_port=0
    )
    stack = Stack(settings, report)
    figures: dict[str, Any] = {}

    def ended(act: str, of_act: dict[str, Any]) -> None:
        figures[act] = of_act
        told(act, of_act)

    try:
        stack.start()
        ended("start", {"workers": workers, "seconds": time.monotonic() - began_s})
        with Client(stack.own_address, timeout_s=CALL_TIMEOUT_S) as client:
            _acts(stack, client, report, ended)
    finally:
        stack.stop()
        if keep:
            report(f"kept {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    figures["seconds"] = time.monotonic() - began_s
    figures["failed"] = missed(figures)
    figures["ok"] = not figures["failed"]
    return figures


def _acts(stack: Stack, client: Client, report: Report, ended: Told) -> None:
    report("demo       a handbook is remembered, and asked for")
    ended("remember", handbook_acts.remember(client))
    ended("recall", handbook_acts.recall(client))
    report("demo       modules that memserve has distilled from it, at the gate")
    ended("gates", handbook_acts.gates(client))
    ended("modules", handbook_acts.without_text(client))
    report("demo       a composed version, and back")
    ended("composed", handbook_acts.composed(client))
    report("demo       a prompt of 4,000 tokens: cold, warm, on the other worker")
    text = LongText(stack, client)
    prefix = text.cold_warm_other()
    report("demo       the same after a restart of the workers")
    prefix["after restart"] = text.after_restart()
    ended("prefix", prefix)
    report("demo       a tampered cache entry")
    ended("tampered", text.tampered())


def missed(figures: dict[str, Any]) -> list[str]:
    """The bars that the figures miss, one line each."""
    return [
        *_missed_answers(figures["recall"], figures["modules"]),
        *_missed_gates(figures["gates"], figures["composed"]),
        *_missed_prefix(figures["prefix"], figures["tampered"]),
    ]


def _missed_answers(recall: dict[str, Any], modules: dict[str, Any]) -> list[str]:
    lines = []
    for way, least in (("with", RECALL_AT_LEAST), (LORA, TAUGHT_AT_LEAST), (CARTRIDGE, TAUGHT_AT_LEAST)):
        answers = recall["with"] if way == "with" else modules[way]
        if answers["right"] < least * answers["asked"]:
            name = "recall" if way == "with" else way
            lines.append(f"{name}: {answers['right']} of {answers['asked']} right, {least:.0%} wanted")
    alone = recall["without"]
    if alone["right"] > GUESSED_AT_MOST * alone["asked"]:
        lines.append(f"without the handbook {alone['right']} of {alone['asked']} are right")
    return lines


def _missed_gates(gates: dict[str, Any], composed: dict[str, Any]) -> list[str]:
    lines = [
        f"{name} is refused: {gates[name]['refusal']}" for name in (LORA, CARTRIDGE) if gates[name]["refusal"]
    ]
    if not gates[CARELESS]["refusal"]:
        lines.append("the careless version passed the gate")
    if not composed["same_after"]:
        lines.append("the answer after the rollback is another one than before")
    return lines


def _missed_prefix(prefix: dict[str, Any], tampered: dict[str, Any]) -> list[str]:
    lines = []
    for state in ("warm", "other worker", "after restart"):
        share, of_cold = prefix[state]["cached_share"], prefix[state]["ttft_of_cold"]
        if share < SHARED_AT_LEAST:
            lines.append(f"{state}: {share:.1%} of the prompt cached, at least {SHARED_AT_LEAST:.0%} wanted")
        if of_cold > TTFT_OF_COLD_AT_MOST:
            lines.append(f"{state}: TTFT {of_cold:.2f} of cold's, at most {TTFT_OF_COLD_AT_MOST} wanted")
    if tampered["cached_from_redis"] or not tampered["entries"]:
        lines.append(f"tampered entries: {tampered['cached_from_redis']} tokens served from them")
    return lines
