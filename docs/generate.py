"""Generate `docs/reference/` from the code: `python docs/generate.py`; `--check` fails when it is out of
date.

Each page comes from what the code itself reads: settings from `Settings`, metrics from the instruments,
RPCs from the .proto files and their comments, commands from typer, scenarios of `memserve bench` from the
model that checks them, error reasons from the exceptions and the table of statuses, values of the Helm chart
from the comments of its values.yaml. Nothing here imports vLLM, so that a check takes seconds.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from layout import filled, head, one_line, table
from prometheus_client.metrics import MetricWrapperBase
from pydantic import SecretStr
from pydantic.fields import FieldInfo
from rpcs import rpcs_page
from scenarios import scenarios_page
from values import values_page

from memserve import errors
from memserve.api.grpc.errors import STATUS, WITH_RETRY
from memserve.cli.app import app
from memserve.config import GIB, MIB, SETTINGS_DIR, SETTINGS_FILE, Settings
from memserve.metrics.instruments import GatewayMetrics

ROOT = Path(__file__).resolve().parents[1]
TARGET = ROOT / "docs" / "reference"
TIER_METRICS = ROOT / "memserve" / "worker" / "kv" / "metrics.py"

SETTINGS_INTRODUCTION = f"""
Each setting is an environment variable `MEMSERVE_<NAME>` (in capitals), a key of the JSON file that
`{SETTINGS_FILE}` names, or a file of its own in the directory that `{SETTINGS_DIR}` names, such as a mounted
Secret of Kubernetes. Secrets belong into those two. Flags of `memserve up` override the environment, the
environment overrides the directory, the directory the file, and the file the defaults. A setting that does
not exist is refused with the name that may have been meant. `memserve settings` prints this list.
"""
METRICS_INTRODUCTION = """
Prometheus scrapes the gateway at `metrics_port`, and each worker at the address that `memserve status`
prints. Times are in seconds and sizes in bytes. [Read the metrics](../how-to/read-the-metrics.md) says what
to look at.
"""
COMMANDS_INTRODUCTION = """
Every command explains itself with `--help`. Commands that speak to a gateway take its address from
`--address` or `MEMSERVE_ADDRESS`, and the key from `--api-key` or `MEMSERVE_API_KEY`. With `--json` they
print one JSON object on one line. A failure is one line on standard error and the exit status 1.
"""
ERROR_INTRODUCTION = """
Every refusal is a gRPC status with a line that says what to do. Where a field of the request is at fault, its
path is in the trailing metadata `memserve-field`. Where waiting helps, the seconds to wait are in
`retry-after-s`. The Python client raises `CallFailed` with `code`, `detail`, `field` and `retry_after_s`, or
`UsageError` for what it cannot send at all. Any other failure is INTERNAL with the number of an incident,
under which the gateway's log has the cause. Words in ‹angle brackets› stand for what the case fills in.
"""


def pages() -> dict[str, str]:
    """Every page's text by its file name."""
    return {
        "settings.md": settings_page(),
        "metrics.md": metrics_page(),
        "rpcs.md": rpcs_page(),
        "commands.md": commands_page(),
        "errors.md": errors_page(),
        "scenarios.md": scenarios_page(),
        "values.md": values_page(),
    }


# Settings


def settings_page() -> str:
    text = head("Settings", SETTINGS_INTRODUCTION)
    for title, names in setting_groups():
        rows = [setting_row(name, Settings.model_fields[name]) for name in names]
        text += f"\n## {title}\n\n" + table(("setting", "default", "allowed", "meaning"), rows)
    return text


def setting_groups() -> Iterator[tuple[str, list[str]]]:
    """The settings under the headings that the class and its bases have as comments."""
    title = "Settings"
    names: list[str] = []
    sources = map(inspect.getsource, (Settings, *Settings.__bases__))
    for line in "\n".join(sources).splitlines():
        if heading := re.fullmatch(r"    # (.+)", line):
            if names:
                yield title, names
            title, names = heading[1], []
        elif (entry := re.match(r"    (\w+): ", line)) and entry[1] in Settings.model_fields:
            names.append(entry[1])
    if names:
        yield title, names


def setting_row(name: str, entry: FieldInfo) -> tuple[str, ...]:
    default = entry.default
    empty = default in (None, "") or isinstance(default, SecretStr)
    return (
        f"`{name}`",
        "" if empty else f"`{default}`{in_mib(name, default)}",
        allowed(name, entry),
        str(entry.description),
    )


def in_mib(name: str, value: object) -> str:
    """A number of bytes in larger units, for people."""
    if "bytes" not in name.split("_") or not isinstance(value, int) or value < MIB:
        return ""
    return f" ({value // GIB} GiB)" if value % GIB == 0 else f" ({value // MIB} MiB)"


def allowed(name: str, entry: FieldInfo) -> str:
    """The bounds of a number, the length of a text, or the words to choose from."""
    bounds = [
        (sign, getattr(rule, attribute))
        for rule in entry.metadata
        for attribute, sign in (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<"))
        if hasattr(rule, attribute)
    ]
    parts = [f"{sign} {bound}{in_mib(name, bound)}" for sign, bound in bounds]
    parts += [f"at most {rule.max_length} letters" for rule in entry.metadata if hasattr(rule, "max_length")]
    words = getattr(entry.annotation, "__args__", ())
    if words and all(isinstance(word, str) for word in words):
        parts.append(", ".join(f"`{word}`" for word in words))
    return ", ".join(parts)


# Metrics


def metrics_page() -> str:
    text = head("Metrics", METRICS_INTRODUCTION)
    metrics = GatewayMetrics()
    gateway = [
        (f"`{full_name(metric)}`", kind_of(metric), label_names(metric), metric._documentation)
        for metric in (*vars(metrics).values(), *vars(metrics.embedding).values())
        if isinstance(metric, MetricWrapperBase)
    ]
    columns = ("metric", "kind", "labels", "meaning")
    text += "\n## Of the gateway\n\n" + table(columns, gateway)
    text += (
        "\n## Of each worker\n\nBeside these a worker serves all of vLLM's own metrics (`vllm:…`), and"
        "\n`memserve_loop_failures_total` and `memserve_certificate_…` as above.\n\n"
        + table(columns, tier_rows())
    )
    return text


def full_name(metric: MetricWrapperBase) -> str:
    return f"{metric._name}{'_total' if kind_of(metric) == 'counter' else ''}"


def kind_of(metric: MetricWrapperBase) -> str:
    return type(metric).__name__.lower()


def label_names(metric: MetricWrapperBase) -> str:
    return ", ".join(f"`{label}`" for label in metric._labelnames)


def tier_rows() -> list[tuple[str, ...]]:
    """The Redis tier's instruments, read from the source text: an import would take vLLM's ten seconds."""
    declared: dict[str, Any] = {}
    for node in ast.parse(TIER_METRICS.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            try:
                declared[node.targets[0].id] = ast.literal_eval(node.value)
            except ValueError:
                continue
    prefix = declared["PREFIX"]
    rows = [(f"`{prefix}{name}_total`", "counter", "", text) for name, text in declared["COUNTERS"].items()]
    rows += [
        (f"`{prefix}{name}_total`", "counter", f"`{label}`", text)
        for name, (label, text) in declared["LABELLED"].items()
    ]
    return rows + [(f"`{prefix}{name}`", "gauge", "", text) for name, text in declared["GAUGES"].items()]


# Commands


def commands_page() -> str:
    text = head("Commands", COMMANDS_INTRODUCTION)
    for path, command in leaves("memserve", typer.main.get_command(app)):
        arguments = [parameter for parameter in command.params if parameter.param_type_name == "argument"]
        usage = " ".join([path, *map(in_usage, arguments)])
        text += f"\n## `{path}`\n\n{filled(command.help or '')}\n\n```text\n{usage}\n```\n"
        rows = [argument_row(argument) for argument in arguments]
        rows += [
            option_row(option)
            for option in command.params
            if option.param_type_name == "option" and not option.hidden
        ]
        if rows:
            text += "\n" + table(("argument or option", "default", "meaning"), rows)
    return text


def leaves(path: str, command: Any) -> Iterator[tuple[str, Any]]:
    """Every command below this one, by its full name."""
    if not hasattr(command, "commands"):
        yield path, command
        return
    for name, child in command.commands.items():
        yield from leaves(f"{path} {name}", child)


def in_usage(argument: Any) -> str:
    name = argument.metavar or str(argument.name).upper()
    return str(name) if argument.required else f"[{name}]"


def argument_row(argument: Any) -> tuple[str, ...]:
    return f"`{in_usage(argument).strip('[]')}`", "", one_line(argument.help)


def option_row(option: Any) -> tuple[str, ...]:
    default = option.default
    shown = "" if default in (None, "", False, ()) or callable(default) else f"`{default}`"
    help_text = one_line(option.help)
    if option.envvar:
        help_text += f" Also `{option.envvar}`."
    return ", ".join(f"`{name}`" for name in (*option.opts, *option.secondary_opts)), shown, help_text.strip()


# Errors


def errors_page() -> str:
    text = head("Error reasons", ERROR_INTRODUCTION)
    rows = []
    for kind, status in STATUS.items():
        metadata = "`retry-after-s`" if issubclass(kind, WITH_RETRY) else ""
        if issubclass(kind, errors.InvalidField | errors.InvalidModule):
            metadata = "`memserve-field`"
        rows.append((f"`{kind.__name__}`", status.name, metadata, one_line(kind.__doc__), message_of(kind)))
    text += "\n" + table(("reason", "status", "metadata", "when", "what it says"), rows)
    startup = sorted(
        name
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and issubclass(kind, errors.MemserveError) and kind not in STATUS
        if kind is not errors.MemserveError
    )
    never = ", ".join(f"`{name}`" for name in startup)
    return text + f"\n{filled(f'Never sent to a client: {never}.')}\n"


class Blank(str):
    """Stands for an argument in a message, whatever the message does with it."""

    def __format__(self, spec: str) -> str:
        return str(self)

    def __repr__(self) -> str:
        return str(self)

    def __rshift__(self, bits: int) -> Blank:
        return self

    def __getitem__(self, key: Any) -> Blank:
        return self


def message_of(kind: type[errors.MemserveError]) -> str:
    names = list(inspect.signature(kind.__init__).parameters)[1:]
    return one_line(str(kind(*(Blank(f"‹{name}›") for name in names if name not in ("args", "kwargs")))))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit 1 when a page is out of date"
    )
    parser.add_argument("--target", type=Path, default=TARGET, help="the folder of the pages")
    chosen = parser.parse_args()
    target: Path = chosen.target
    fresh = pages()
    if chosen.check:
        kept = {path.name: path.read_text(encoding="utf-8") for path in target.glob("*.md")}
        stale = sorted(name for name in fresh.keys() | kept.keys() if fresh.get(name) != kept.get(name))
        if stale:
            print(
                f"{target} is out of date, run `python docs/generate.py`: {', '.join(stale)}", file=sys.stderr
            )
        return 1 if stale else 0
    target.mkdir(parents=True, exist_ok=True)
    for name, text in fresh.items():
        (target / name).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
