"""Scenarios: TOML files that say what is sent. A wrong key is refused by its name, with the rule."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from memserve.errors import UsageError

BUNDLED = Path(__file__).parent / "scenarios"
SUFFIX = ".toml"
MAX_REQUESTS = 200_000
"""Of one run."""


class Table(BaseModel):
    """A table of the file."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Arrivals(Table):
    """When requests come. With a trace, only `seconds` counts."""

    order: Annotated[
        Literal["poisson", "constant"], Field(description="Random times, or equal distances between them.")
    ] = "poisson"
    rate_per_s: Annotated[float, Field(gt=0, le=10_000, description="Requests a second.")] = 1.0
    seconds: Annotated[float, Field(gt=0, le=86_400, description="How long requests come.")] = 30.0


class Prompt(Table):
    """What a conversation begins with. Lengths are in words."""

    shared_texts: Annotated[
        int, Field(ge=0, le=10_000, description="System texts that conversations share.")
    ] = 0
    shared_words: Annotated[int, Field(ge=1, le=100_000, description="Length of each of them.")] = 400
    zipf: Annotated[float, Field(ge=0, le=10, description="How uneven their use is. 0: equally often.")] = 1.0
    question_words: Annotated[int, Field(ge=4, le=100_000, description="Length of each question.")] = 40


class Turns(Table):
    """Conversations of several turns. Each turn has its time ahead, whatever becomes of the one before."""

    count: Annotated[int, Field(ge=1, le=200, description="Requests of a conversation.")] = 1
    pause_s: Annotated[float, Field(ge=0, le=86_400, description="Mean time between two turns.")] = 10.0
    answer_words: Annotated[
        int,
        Field(ge=1, le=100_000, description="Length of the assistant's turns in the history, drawn ahead."),
    ] = 60


class Output(Table):
    """How long answers are."""

    tokens: Annotated[int, Field(ge=1, le=100_000, description="Tokens of an answer at most.")] = 32
    fixed: Annotated[bool, Field(description="Whether every answer has so many tokens.")] = True


class Recall(Table):
    """Memories to recall from. They are stored before the run, and forgotten after it."""

    memories: Annotated[int, Field(ge=1, le=10_000, description="Texts in a namespace of the run's own.")] = (
        200
    )
    words: Annotated[int, Field(ge=4, le=1000, description="Length of each text.")] = 30
    limit: Annotated[int, Field(ge=0, le=50, description="Passages at most. 0: the gateway's default.")] = 0


class Adapters(Table):
    """Modules that answer. They must be published before the run."""

    references: Annotated[
        list[Annotated[str, Field(min_length=1)]],
        Field(min_length=1, max_length=1000, description="Such as `tone@live`, most popular first."),
    ]
    zipf: Annotated[float, Field(ge=0, le=10, description="How uneven their use is. 0: equally often.")] = 1.0
    base_share: Annotated[
        float, Field(ge=0, le=1, description="Part of the conversations without a module.")
    ] = 0.0


class Trace(Table):
    """A trace in Mooncake's format, in place of arrivals, prompts and turns."""

    path: Annotated[str, Field(description="The file, gzip or plain. Also --trace.")] = ""
    factor: Annotated[
        float, Field(gt=0, le=10_000, description="How many times as fast it comes. Also --factor.")
    ] = 1.0
    words_per_token: Annotated[
        float, Field(gt=0, le=10, description="Words that are sent for each token of the trace's prompts.")
    ] = 0.75
    length_factor: Annotated[
        float,
        Field(gt=0, le=100, description="Prompts and answers are so many times as long as in the trace."),
    ] = 1.0
    max_words: Annotated[
        int, Field(ge=1, le=1_000_000, description="Longer prompts are cut. Their number is shown.")
    ] = 100_000
    first: Annotated[int, Field(ge=0, description="Only so many requests of the trace. 0: all.")] = 0


class Slo(Table):
    """What counts as in time. A time that is left out is not judged."""

    ttft_ms: Annotated[
        float | None, Field(gt=0, description="To the first token, from the intended time.")
    ] = None
    tpot_ms: Annotated[
        float | None, Field(gt=0, description="For each further token, mean of an answer.")
    ] = None
    e2e_ms: Annotated[float | None, Field(gt=0, description="To the end, from the intended time.")] = None
    send: Annotated[bool, Field(description="Whether the server is told of `ttft_ms` and `tpot_ms`.")] = False
    refuse_late: Annotated[
        bool, Field(description="Ask to be refused rather than be late. Needs `send`.")
    ] = False


class Limits(Table):
    """Bounds of the generator. Beyond them a run is invalid: it measures the generator."""

    timeout_s: Annotated[float, Field(gt=0, le=3600, description="Of each request.")] = 60.0
    max_outstanding: Annotated[
        int,
        Field(ge=1, le=10_000, description="Requests under way. More are not sent, and the run is invalid."),
    ] = 512
    late_p99_ms: Annotated[
        float,
        Field(gt=0, description="99 % of the requests leave at most so long after their intended time."),
    ] = 20.0
    cpu_share: Annotated[
        float, Field(gt=0, le=64, description="Of one core, that the generator takes at most in the mean.")
    ] = 0.8
    stall_ms: Annotated[
        float,
        Field(gt=0, description="A worker that owes answers and sends no token for so long has stalled."),
    ] = 1000.0


class Scenario(Table):
    """A whole file."""

    title: Annotated[str, Field(max_length=200, description="One line for a person.")] = ""
    model: Annotated[str, Field(max_length=512, description="The model's name. Empty: the served model.")] = (
        ""
    )
    goodput: Annotated[
        float,
        Field(gt=0, le=1, description="The part of the offered requests that must be in time at the knee."),
    ] = 0.95
    arrivals: Arrivals = Arrivals()
    prompt: Prompt = Prompt()
    turns: Turns = Turns()
    output: Output = Output()
    recall: Recall | None = None
    adapters: Adapters | None = None
    trace: Trace | None = None
    slo: Slo = Slo()
    limits: Limits = Limits()


@dataclass(frozen=True, slots=True)
class ScenarioFile:
    """A scenario, and where it comes from."""

    name: str
    scenario: Scenario


def bundled() -> dict[str, str]:
    """The titles of the bundled scenarios, by name."""
    return {
        path.stem: str(tomllib.loads(path.read_text(encoding="utf-8")).get("title", ""))
        for path in sorted(BUNDLED.glob(f"*{SUFFIX}"))
    }


def open_scenario(name: str, overrides: Sequence[str] = ()) -> ScenarioFile:
    """Read a bundled scenario by its name, or a file by its path.

    overrides: `table.key=value`, the value as TOML has it.
    Raises UsageError that names the key and its rule.
    """
    path = Path(name)
    if not name.endswith(SUFFIX):
        path = BUNDLED / f"{name}{SUFFIX}"
        if name not in bundled():
            rule = f"is no bundled scenario ({', '.join(bundled())}), and no path that ends in {SUFFIX}"
            raise UsageError(name, rule)
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(name, f"cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise UsageError(name, f"is not TOML: {error}") from None
    for override in overrides:
        _set(values, override)
    return ScenarioFile(path.stem, scenario_of(values, name))


def scenario_of(values: Mapping[str, Any], source: str) -> Scenario:
    """Raises UsageError that names the key and its rule."""
    try:
        scenario = Scenario.model_validate(dict(values))
    except ValidationError as error:
        raise _refusal(error, source) from None
    if scenario.slo.refuse_late and not (scenario.slo.send and scenario.slo.ttft_ms):
        raise UsageError(f"{source}: slo.refuse_late", "needs slo.send and slo.ttft_ms")
    expected = scenario.arrivals.rate_per_s * scenario.arrivals.seconds
    if scenario.trace is None and expected > MAX_REQUESTS:
        raise UsageError(f"{source}: arrivals", f"{expected:.0f} requests; at most {MAX_REQUESTS} in a run")
    return scenario


def _set(values: dict[str, Any], override: str) -> None:
    """Raises UsageError."""
    key, equals, text = override.partition("=")
    try:
        value = tomllib.loads(f"value = {text}")["value"] if equals else None
    except ValueError:
        value = None
    if value is None:
        raise UsageError(f"--set {override}", "must be table.key=value, the value as in TOML")
    *tables, name = key.strip().split(".")
    for table in tables:
        values = values.setdefault(table, {})
        if not isinstance(values, dict):
            raise UsageError(f"--set {override}", f"{table} is no table")
    values[name] = value


def _refusal(error: ValidationError, source: str) -> UsageError:
    first = error.errors(include_url=False)[0]
    path = [str(step) for step in first["loc"]]
    rule = str(first["msg"])
    if first["type"] == "extra_forbidden":
        known = _keys(path[:-1])
        close = difflib.get_close_matches(path[-1], known, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}"
        rule = f"is no key; {hint}"
    return UsageError(f"{source}: {'.'.join(path) or 'file'}", rule)


def _keys(tables: Sequence[str]) -> list[str]:
    model: Any = Scenario
    for table in tables:
        annotation = model.model_fields[table].annotation
        model = next((kind for kind in get_args(annotation) if kind is not type(None)), annotation)
    return list(model.model_fields)
