"""Stored text, generated text and server text reach a terminal or a log only as text: not as markup, not with
control characters.
"""

from __future__ import annotations

import ast
import json
import logging
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table

from memserve.cli.app import main
from memserve.cli.terminal import PlainConsole, err, progress_bar
from memserve.plain import PlainFormatter, json_line, paragraphs, plain
from tests.cli.commands import commands, options
from tests.client.cube.cubes import write_cube
from tests.hostile_server import HOSTILE, MARKS, hostile_server

PACKAGE = Path(__file__).parents[2] / "memserve"
COMMAND = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
COLOUR = re.compile(r"\x1b\[[\d;]*m")
# A progress bar hides the cursor, goes back to the beginning of its line, and clears that line.
CURSOR = re.compile(r"\x1b\[\?25[lh]|\r|\x1b\[\d*A|\x1b\[2K")
# Every command that speaks to a gateway, as it is called. MODULE: a folder with a LoRA's files. LINES: a file
# of one memory in JSON.
COMMANDS = {
    "generate": "generate hello",
    "explain": "explain r1",
    "remember": "remember notes hello",
    "forget": "forget notes m1",
    "search": "search hello -n notes",
    "memories show": "memories show notes m1",
    "memories history": "memories history notes m1",
    "memories update": "memories update notes m1 --text hello",
    "memories restore": "memories restore notes m1",
    "memories supersede": "memories supersede notes m1 m2",
    "memories erase": "memories erase notes m1",
    "lineage show": "lineage show notes/m1",
    "lineage erasures": "lineage erasures",
    "lineage check": "lineage check e1",
    "lineage retraining": "lineage retraining",
    "lineage retrain": "lineage retrain tone",
    "memories links": "memories links notes m1",
    "memories read": "memories read notes handbook",
    "memories list": "memories list -n notes",
    "memories add": "memories add LINES",
    "memories document": "memories document notes LINES",
    "memories forget-where": "memories forget-where -n notes --filter version>1",
    "memories export": "memories export",
    "memories import": "memories import LINES",
    "memories watch": "memories watch",
    "memories usage": "memories usage",
    "memories delete-namespace": "memories delete-namespace notes --yes notes",
    "memories reindex": "memories reindex",
    "status": "status",
    "ladder show": "ladder show",
    "bench": "bench chat --rate 20 --seconds 0.2 --set limits.late_p99_ms=9999 --set limits.cpu_share=60",
    "backup": "backup nightly",
    "modules push": "modules push tone MODULE",
    "modules list": "modules list",
    "modules show": "modules show tone@1",
    "modules gate": "modules gate tone 1",
    "modules promote": "modules promote tone 1",
    "modules rollback": "modules rollback tone",
    "modules split": "modules split tone 1=1",
    "modules history": "modules history tone",
    "modules diff": "modules diff tone@1 tone@2",
    "modules rm": "modules rm tone 1",
    "modules drop": "modules drop tone live",
    "modules preload": "modules preload tone@1",
    "modules unload": "modules unload tone@1",
    "modules compose": "modules compose both a@1 b@1 --method linear",
    "modules distil": "modules distil both --namespace town",
    "modules distillations": "modules distillations",
    "memories consolidate": "memories consolidate notes",
    "memories consolidations": "memories consolidations",
    "modules watch": "modules watch",
    "cube export": "cube export NEW_CUBE",
    "cube import": "cube import CUBE",
    "audit list": "audit list",
    "audit export": "audit export",
    "kv lookup": "kv lookup hello",
    "kv warm": "kv warm hello",
    "kv pin": "kv pin hello",
    "kv unpin": "kv unpin hello",
    "kv evict": "kv evict --all",
    "kv usage": "kv usage",
}
# These speak to no gateway.
LOCAL = {
    "up",
    "kv check",
    "gateway",
    "workers",
    "ray-node",
    "certs init",
    "certs renew",
    "settings",
    "demo",
    "health",
    "version",
    "restore",
    "keys add",
    "keys list",
    "keys revoke",
    "models list",
    "models fetch",
    "models convert",
    "models digest",
    "cube show",
    "cube new-key",
}
# Commands that show stored or generated text in full.
SHOWS_TEXT = (
    "generate",
    "search",
    "memories show",
    "memories history",
    "memories links",
    "memories read",
    "memories list",
    "memories forget-where",
    "memories export",
    "modules show",
    "modules history",
    "audit list",
)
LINES = "memories.jsonl"
CUBE = "notes.cube"
# A cube of hostile lines is none: nothing is written.
REFUSES = "cube export"


@pytest.fixture
def module(tmp_path: Path) -> Path:
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / LINES).write_text(json.dumps({"namespace": "notes", "text": "hello"}), encoding="utf-8")
    write_cube(tmp_path / CUBE, {"notes": ["m1"]})
    return tmp_path


@pytest.fixture(scope="module")
def answering() -> Iterator[str]:
    with hostile_server(fails=False) as address:
        yield address


@pytest.fixture(scope="module")
def failing() -> Iterator[str]:
    with hostile_server(fails=True) as address:
        yield address


def run(monkeypatch: pytest.MonkeyPatch, command: str, address: str, module: Path, *more: str) -> int:
    files = {
        "MODULE": str(module), "LINES": str(module / LINES), "CUBE": str(module / CUBE),
        "NEW_CUBE": str(module / "new.cube"),
    }  # fmt: skip
    words = [files.get(word, word) for word in command.split()]
    monkeypatch.setattr(sys, "argv", ["memserve", *words, "--address", address, *more])
    monkeypatch.setenv("COLUMNS", "4000")
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(err, "is_interactive", True)  # rich finds it out when the console is made


def test_every_command_is_tried_here() -> None:
    """A new command that speaks to a gateway must stand in COMMANDS."""
    assert {name for name, _ in commands()} - LOCAL == COMMANDS.keys()


@pytest.mark.parametrize("name", COMMANDS)
def test_what_a_gateway_answers_is_printed_as_text(
    name: str,
    answering: str,
    module: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code = run(monkeypatch, COMMANDS[name], answering, module)
    printed = capsys.readouterr()
    assert code in (0, 1), printed.err
    assert "Traceback" not in printed.err
    for text in (printed.out, printed.err):
        assert COMMAND.search(text) is None
    # An answer's own lines are its own: it goes to standard output alone.
    lines = ([] if name == "generate" else printed.out.splitlines()) + printed.err.splitlines()
    assert not any(line.startswith("memserve: all is well") for line in lines)
    if name in SHOWS_TEXT:
        assert all(mark in printed.out + printed.err for mark in MARKS)


@pytest.mark.parametrize("name", COMMANDS)
def test_what_a_gateway_refuses_with_is_printed_as_text_on_one_line(
    name: str, failing: str, module: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, COMMANDS[name], failing, module) == 1
    printed = capsys.readouterr()
    assert COMMAND.search(printed.out + printed.err) is None
    assert printed.err.splitlines()[-1].startswith("memserve: INTERNAL: [/INST] [bold]x[/bold] :warning: ")
    assert len(printed.err.strip().splitlines()) == 1


@pytest.mark.parametrize("name", COMMANDS)
def test_a_terminal_gets_no_command_but_richs_own(
    name: str,
    answering: str,
    module: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Colours, and on standard error the cursor of a progress bar."""
    on_a_terminal(monkeypatch)
    assert run(monkeypatch, COMMANDS[name], answering, module) in (0, 1)
    printed = capsys.readouterr()
    assert COMMAND.search(COLOUR.sub("", printed.out)) is None
    assert COMMAND.search(CURSOR.sub("", COLOUR.sub("", printed.err))) is None


@pytest.mark.parametrize(
    "name",
    [
        name
        for name, command in commands()
        if name in COMMANDS and name != REFUSES and "--json" in options(command)
    ],
)
def test_json_is_one_line_that_holds_no_command(
    name: str,
    answering: str,
    module: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(monkeypatch, COMMANDS[name], answering, module, "--json") in (0, 1)
    printed = capsys.readouterr().out
    assert COMMAND.search(printed) is None
    assert len(printed.splitlines()) == 1
    assert isinstance(json.loads(printed), dict)


@pytest.mark.parametrize(
    "name",
    [
        "generate",
        "search",
        "memories show",
        "memories history",
        "memories list",
        "memories erase",
        "status",
        "ladder show",
        "modules show",
        "modules history",
    ],
)
def test_json_holds_the_text_as_it_is_and_no_command(
    name: str,
    answering: str,
    module: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(monkeypatch, COMMANDS[name], answering, module, "--json") == 0
    printed = capsys.readouterr().out
    assert COMMAND.search(printed) is None
    assert HOSTILE in set(texts_of(json.loads(printed)))


@pytest.mark.parametrize("words", ["{}", "status {}", "status --{}", "modules list --kind {}", "modules {}"])
def test_what_a_person_mistypes_is_printed_as_text(
    words: str, module: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["memserve", *(word.format(HOSTILE) for word in words.split())])
    monkeypatch.setenv("COLUMNS", "4000")
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    printed = capsys.readouterr().err
    # typer prints these, and leaves alone what only turns the direction of text.
    assert re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f]", printed) is None
    assert "[bold]x[/bold]" in printed


def texts_of(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from texts_of(inner)


@given(st.text())
def test_plain_text_has_no_command_and_ordinary_text_stays(text: str) -> None:
    assert COMMAND.search(plain(text)) is None and "\n" not in plain(text)
    assert COMMAND.search(paragraphs(text)) is None
    assert json.loads(json_line({"text": text})) == {"text": text} and COMMAND.search(json_line(text)) is None
    if text.isprintable():
        assert plain(text) == text


def test_a_console_takes_no_string_for_markup_wherever_it_stands(capsys: pytest.CaptureFixture[str]) -> None:
    console = PlainConsole(width=4000)
    table = Table(HOSTILE, title=HOSTILE)
    table.add_row(HOSTILE)
    console.print(HOSTILE)
    console.print(table)
    printed = capsys.readouterr().out
    assert printed.count(plain(HOSTILE)) == 4
    assert COMMAND.search(printed) is None


def test_a_log_record_is_one_line_and_a_traceback_cannot_pass_for_one() -> None:
    try:
        raise ValueError(f"boom\n2026-01-01 INFO memserve: fine {HOSTILE}")
    except ValueError:
        record = logging.LogRecord(
            "memserve", logging.ERROR, "", 0, "refused: %s", (HOSTILE,), sys.exc_info()
        )
    first, *rest = PlainFormatter("%(levelname)s %(message)s").format(record).split("\n")
    assert first == f"ERROR refused: {plain(HOSTILE)}"
    assert rest and all(line.startswith("| ") for line in rest)
    assert all(COMMAND.search(line) is None for line in (first, *rest))


def test_the_title_of_a_progress_bar_is_text(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    on_a_terminal(monkeypatch)
    monkeypatch.setenv("COLUMNS", "4000")
    with progress_bar(HOSTILE) as progress:
        progress(1, 2)
    printed = CURSOR.sub("", COLOUR.sub("", capsys.readouterr().err))
    assert plain(HOSTILE) in printed
    assert COMMAND.search(printed) is None


CHECKED = ("Console", "Text", "add_task", "assemble", "basicConfig", "StreamHandler", "from_markup")


def test_consoles_and_log_handlers_are_made_in_one_place() -> None:
    """Whatever prints goes through `memserve.cli.terminal`, whatever logs through `memserve.plain`."""
    calls = []
    for file in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                name = (
                    node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                )
                if name in CHECKED:
                    calls.append((str(file.relative_to(PACKAGE)), name))
    assert sorted(calls) == [
        ("cli/terminal.py", "Text"),
        ("cli/terminal.py", "Text"),
        ("cli/terminal.py", "add_task"),
        ("cli/terminal.py", "assemble"),
        ("logs.py", "StreamHandler"),
        ("logs.py", "basicConfig"),
    ]
