"""The documents say what the code has: files, links, commands, settings, metrics, RPCs, steps."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from loadtests.safety.newcomer import quick_start
from memserve.api.http import bodies as http_bodies
from memserve.api.http.bodies import Body
from memserve.cli.app import app
from memserve.config import SETTINGS_DIR, SETTINGS_FILE, Settings
from memserve.domain import LinkKind
from memserve.pb.v1 import activation_pb2, inference_pb2, lineage_pb2, memory_pb2, module_pb2, status_pb2
from memserve.pb.worker.v1 import worker_pb2
from tests.pages import DOCS, PAGES, ROOT, blocks, commands, prose, text_of

PROTOS = (activation_pb2, inference_pb2, lineage_pb2, memory_pb2, module_pb2, status_pb2, worker_pb2)
COMMANDS: Any = typer.main.get_command(app)
WIDTH_MAX = 110
TOP_FOLDERS = ("memserve", "protos", "deploy", "tests", "loadtests", "docs")
# Words of other programs and of files, written like the name of a setting.
OTHER_NAMES = {
    "api_key",
    "span_id",
    "trace_id",
    "at_least",
    "max_loss",
    "max_nbytes",
    "ray_token",
    "recv_into",
    "save_pretrained",
    # A key of Prometheus, and parameters of redis-py's URLs.
    "server_name",
    "ssl_ca_certs",
    "ssl_certfile",
    "ssl_keyfile",
}


def pages_but(*names: str) -> pytest.MarkDecorator:
    """Every page but those of these file names."""
    pages = [page for page in PAGES if page.name not in names]
    return pytest.mark.parametrize("page", pages, ids=[str(page.relative_to(ROOT)) for page in pages])


every_page = pages_but()
written_page = pytest.mark.parametrize(
    "page",
    [
        page
        for page in PAGES
        if page.parent.name != "reference" and page.name not in ("newcomer.md", "CHANGELOG.md")
    ],
    ids=lambda page: str(page.relative_to(ROOT)),
)


def generate(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(DOCS / "generate.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False, cwd=ROOT)


def test_the_reference_pages_are_what_the_code_gives() -> None:
    result = generate("--check")
    assert (result.returncode, result.stderr) == (0, "")


def test_the_check_of_the_reference_pages_fails_and_names_a_page_that_differs(tmp_path: Path) -> None:
    assert generate("--target", str(tmp_path)).returncode == 0
    assert generate("--target", str(tmp_path), "--check").returncode == 0
    (tmp_path / "metrics.md").write_text("another text", encoding="utf-8")
    result = generate("--target", str(tmp_path), "--check")
    assert result.returncode == 1
    assert "metrics.md" in result.stderr
    assert "errors.md" not in result.stderr


@every_page
def test_every_link_leads_to_a_page_and_a_heading(page: Path) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(text_of(page))):
        if target.startswith(("http:", "https:")):
            continue
        file, _, anchor = target.partition("#")
        linked = (page.parent / file).resolve() if file else page
        if not linked.exists() or (anchor and anchor not in anchors(linked)):
            broken.append(target)
    assert broken == []


def anchors(page: Path) -> set[str]:
    """The headings as links name them."""
    headings = re.findall(r"^#+ (.+)$", prose(text_of(page)), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_page_is_linked_from_another() -> None:
    linked = {
        (page.parent / target.partition("#")[0]).resolve()
        for page in PAGES
        for target in re.findall(r"\]\(([^)\s]+)\)", text_of(page))
    }
    assert [page for page in PAGES if page.name != "README.md" and page not in linked] == []


# The changelog names what is gone, to say where it went.
@pages_but("CHANGELOG.md")
def test_every_file_that_a_page_names_exists(page: Path) -> None:
    names = re.findall(rf"`((?:{'|'.join(TOP_FOLDERS)})/[\w./-]+)`", text_of(page))
    assert [name for name in names if not (ROOT / name).exists()] == []


def test_every_file_that_the_architecture_page_names_in_a_package_exists() -> None:
    rows = re.findall(r"^\| `([\w/]+/)` \| (.*) \|$", text_of(DOCS / "architecture.md"), re.MULTILINE)
    files = [folder + name for folder, text in rows for name in re.findall(r"`(\w+\.\w+|\w+/)`", text)]
    assert files
    assert [file for file in files if not (ROOT / file).exists()] == []


@written_page
def test_every_python_module_that_a_page_names_exists(page: Path) -> None:
    """The last part may be a name in the module. `memserve.v1` is a package of the protos."""
    names = re.findall(r"`(memserve(?:\.\w+)+)`", text_of(page))
    missing = []
    for name in names:
        *parents, last = name.split(".")
        if last != "v1" and not is_module(name.split(".")) and not is_module(parents):
            missing.append(name)
    assert missing == []


def test_every_module_that_the_changelog_sends_readers_to_exists() -> None:
    moved = text_of(ROOT / "CHANGELOG.md").split("### Where Python names moved")[1]
    names = re.findall(r"^\| `[\w.]+` \| `([\w.]+)` \|$", moved, re.MULTILINE)
    assert names
    assert [name for name in names if not is_module(name.split("."))] == []


def is_module(parts: list[str]) -> bool:
    path = ROOT.joinpath(*parts)
    return len(parts) > 1 and (path.is_dir() or path.with_suffix(".py").is_file())


@pages_but("CHANGELOG.md")
def test_every_load_test_that_a_page_names_exists(page: Path) -> None:
    names = re.findall(r"\bloadtests\.([a-z_]+)", text_of(page))
    found = [name for name in names if any(load_test_files(name))]
    assert names == found


def load_test_files(name: str) -> Iterator[Path]:
    for pattern in (f"{name}.py", f"*/{name}.py", f"{name}/__main__.py", f"*/{name}/__main__.py"):
        yield from (ROOT / "loadtests").glob(pattern)


@every_page
def test_every_rpc_that_a_page_names_exists(page: Path) -> None:
    known = {
        f"{service.name}.{method.name}"
        for file in PROTOS
        for service in file.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }
    named = re.findall(r"`(\w+Service\.\w+)`", text_of(page))
    assert [name for name in named if name not in known] == []


@every_page
def test_every_metric_that_a_page_names_exists(page: Path) -> None:
    known = set(re.findall(r"`(memserve_\w+)`", text_of(DOCS / "reference" / "metrics.md")))
    named = re.findall(r"\b(memserve_[a-z_]*[a-z])\b(?![-./_…])", text_of(page))
    named = [re.sub(r"_(bucket|count|sum)$", "", name) for name in named]
    assert [name for name in named if name not in known] == []


@written_page
def test_every_name_that_is_written_like_a_setting_is_known(page: Path) -> None:
    """A setting, a benchmark, or a name of the wire or of a label. A setting that is renamed is found so."""
    known = {*Settings.model_fields, *OTHER_NAMES, *wire_names(), *words_of_the_reference()}
    named = re.findall(r"`([a-z]+(?:_[a-z0-9]+)+)(?:=[^`]*)?`", text_of(page))
    unknown = [name for name in named if name not in known and not any(load_test_files(name))]
    assert unknown == []


def wire_names() -> set[str]:
    """Fields of all messages, and of the bodies of the HTTP port."""
    bodies = [
        body for body in vars(http_bodies).values() if isinstance(body, type) and issubclass(body, Body)
    ]
    return (
        {name for body in bodies for name in body.model_fields}
        | set(LinkKind.known())
        | {
            field.name
            for file in PROTOS
            for message in file.DESCRIPTOR.message_types_by_name.values()
            for field in message.fields
        }
    )


def words_of_the_reference() -> set[str]:
    text = "".join(text_of(page) for page in (DOCS / "reference").glob("*.md"))
    return set(re.findall(r"\b[a-z]+(?:_[a-z0-9]+)+\b", text))


@every_page
def test_every_variable_that_a_page_names_is_one_of_memserves(page: Path) -> None:
    known = {f"MEMSERVE_{name.upper()}" for name in Settings.model_fields} | {SETTINGS_FILE, SETTINGS_DIR}
    known |= set(re.findall(r"Also `(\w+)`", text_of(DOCS / "reference" / "commands.md")))
    named = re.findall(r"\bMEMSERVE_[A-Z_]*[A-Z]\b", text_of(page))
    assert [name for name in named if name not in known] == []


# The session of a newcomer is what was printed once.
@pages_but("newcomer.md", "CHANGELOG.md")
def test_every_command_that_a_page_names_exists_with_its_options(page: Path) -> None:
    text = text_of(page)
    lines = [
        line
        for block in blocks(text)
        for line in (
            [command.line for command in commands(block)]
            if block.language == "console"
            else block.text.replace("\\\n", "").splitlines()
            if block.language == "sh"
            else []
        )
    ]
    lines += re.findall(r"`(memserve [^`]+)`", prose(text))
    assert [" ".join(call) for line in lines for call in calls(line) if not is_call(call)] == []


def calls(line: str) -> Iterator[list[str]]:
    """The words of every call of memserve in a command line."""
    shell = shlex.shlex(line, posix=True, punctuation_chars=True)
    call: list[str] | None = None
    for word in shell:
        if word.removeprefix(".venv/bin/") == "memserve":
            call = []
        elif call is not None and not set(word) <= set(shell.punctuation_chars):
            call.append(word)
        elif call is not None:
            yield call
            call = None
    if call is not None:
        yield call


def is_call(words: list[str]) -> bool:
    """Whether memserve has the command, with the options that the call gives."""
    command, rest = COMMANDS, list(words)
    while rest and hasattr(command, "commands") and not rest[0].startswith("-"):
        command = command.commands.get(rest.pop(0))
        if command is None:
            return False
    options = {name for option in command.params for name in (*option.opts, *option.secondary_opts)}
    options |= {"--help", "-h"}
    return all(word.partition("=")[0] in options for word in rest if word.startswith("-") and word != "-")


def test_the_readme_and_the_architecture_page_keep_their_size() -> None:
    readme = text_of(ROOT / "README.md")
    assert readme.count("\n") <= 120
    assert len(readme.encode()) <= 9000
    assert text_of(DOCS / "architecture.md").count("\n") <= 80


@every_page
def test_lines_are_at_most_110_characters_but_for_tables_and_blocks(page: Path) -> None:
    lines = prose(text_of(page)).splitlines()
    assert [line for line in lines if len(line) > WIDTH_MAX and not line.startswith("|")] == []


def test_the_life_of_a_request_has_the_pipelines_steps() -> None:
    pipeline = (ROOT / "memserve" / "gateway" / "pipeline.py").read_text(encoding="utf-8")
    steps = set(re.findall(r"# (\d)\. ", pipeline))
    life = text_of(DOCS / "architecture.md").split("## Life of a request")[1].split("\n## ")[0]
    numbered = re.findall(r"^(\d)\. ", life, flags=re.MULTILINE)
    assert numbered == [str(number) for number in range(1, 9)]
    assert steps <= set(numbered)


def test_the_quick_start_is_found_by_the_session_that_runs_it() -> None:
    commands, program = quick_start()
    assert commands[:2] == ["make demo", ".venv/bin/memserve up"]
    assert all(command.startswith(("make ", ".venv/bin/memserve ")) for command in commands)
    compile(program, "README.md", "exec")
