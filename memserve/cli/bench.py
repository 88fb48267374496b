"""`memserve bench`: an open-loop load, and figures that count everything that was offered."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from memserve.bench.http_connection import origin_of
from memserve.bench.record import Record, choices_of, record_json, write_record
from memserve.bench.report import write_report
from memserve.bench.runs import Bench, Choices, Place, Results, check_rates
from memserve.bench.scenario import ScenarioFile, bundled, open_scenario
from memserve.bench.surroundings import digest_of, generator_surroundings, server_surroundings
from memserve.bench.trace import Arrival, read_trace
from memserve.cli.bench_tables import live, results_view
from memserve.cli.options import (
    Address,
    ApiKey,
    AsJson,
    TlsCa,
    TlsCert,
    TlsKey,
    connected,
    grouped,
    print_json,
    tls_files,
)
from memserve.cli.terminal import coloured, err, out
from memserve.client import DEFAULT_ADDRESS, CallFailed, TlsFiles
from memserve.errors import StartupError, UsageError

INVALID_STATUS, INCOMPLETE_STATUS = 3, 130
STATUS_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class SentOptions:
    """What is sent."""

    scenario: Annotated[str, typer.Argument(help="A bundled scenario, or a path that ends in .toml.")] = ""
    assign: Annotated[
        list[str] | None,
        typer.Option("--set", help="TABLE.KEY=VALUE of the scenario, VALUE as in TOML; may be repeated."),
    ] = None
    rate: Annotated[
        float | None, typer.Option(help="Requests a second. Default: the scenario's.", min=0.001)
    ] = None
    seconds: Annotated[
        float | None, typer.Option(help="How long requests come. Default: the scenario's.", min=0.1)
    ] = None
    trace: Annotated[
        Path | None, typer.Option(help="A trace in Mooncake's format, for scenarios with a trace.")
    ] = None
    factor: Annotated[
        float | None, typer.Option(help="How many times as fast the trace comes.", min=0.001)
    ] = None
    http: Annotated[
        str,
        typer.Option(
            help="Send over HTTP to this server, such as http://127.0.0.1:8000. Default: over gRPC."
        ),
    ] = ""
    seed: Annotated[int, typer.Option(help="The first seed: equal seeds offer equal requests.", min=0)] = 0
    salt: Annotated[
        str, typer.Option(help="What prompts begin with. Default: new in every run, so that caches are cold.")
    ] = ""
    model: Annotated[
        Path | None, typer.Option(help="Model directory, to count the hit ceiling in its tokens.")
    ] = None


@dataclass(frozen=True, slots=True)
class SweepOptions:
    """Several rates."""

    rates: Annotated[
        str, typer.Option(help="Rates of a sweep, such as 1,2,4,8.", rich_help_panel="Sweep")
    ] = ""
    search: Annotated[
        bool,
        typer.Option("--search", help="Look for the knee, from --rate on.", rich_help_panel="Sweep"),
    ] = False
    seeds: Annotated[
        int,
        typer.Option(help="Runs at each rate, for the interval.", min=1, max=30, rich_help_panel="Sweep"),
    ] = 1


@dataclass(frozen=True, slots=True)
class KeptOptions:
    """What is kept."""

    save: Annotated[
        Path | None, typer.Option(help="Write all that is needed to repeat it, and every request, as JSON.")
    ] = None
    report: Annotated[
        Path | None, typer.Option(help="Folder for report.md with plots, and the file of --save.")
    ] = None
    repeat: Annotated[
        Path | None, typer.Option(help="Run again what a file of --save ran, with new prompts.")
    ] = None
    scenarios: Annotated[bool, typer.Option("--scenarios", help="List the bundled scenarios, and end.")] = (
        False
    )


@dataclass(frozen=True, slots=True)
class GatewayOptions:
    """Where the gateway is."""

    address: Address = DEFAULT_ADDRESS
    api_key: ApiKey = ""
    tls_ca: TlsCa = ""
    tls_cert: TlsCert = ""
    tls_key: TlsKey = ""
    timeout: Annotated[
        float | None,
        typer.Option(
            "--timeout", min=0.1, help="Deadline of each request, seconds. Default: the scenario's.",
            rich_help_panel="Gateway",
        ),
    ] = None  # fmt: skip

    @property
    def tls(self) -> TlsFiles | None:
        return tls_files(self.tls_ca, self.tls_cert, self.tls_key)


@grouped
def bench(
    sent: SentOptions,
    sweep: SweepOptions,
    kept: KeptOptions,
    gateway: GatewayOptions,
    as_json: AsJson = False,
) -> None:
    """Send a load whose times are fixed ahead, and count what came back in time.

    Latency counts from the intended time. Requests that are late, refused,
    failed or cut off all count as missed, over everything that was offered.

    Exit 3: the run is INVALID, because the generator was late or too busy, or
    held requests back. Exit 130: it was ended by Ctrl-C, and shows what it has.

    Example: `memserve bench chat --rate 4 --seconds 30 --report load`
    """
    if kept.scenarios:
        for name, title in bundled().items():
            out.print(f"{name}: {title}")
        return
    file, choices, trace_sha256 = _chosen(sent, sweep, kept, gateway)
    trace, of_trace = _trace(choices, trace_sha256)
    place = Place(gateway.address, gateway.api_key, sent.http, gateway.tls)
    of_server, of_generator = _server(gateway, needed=not sent.http), generator_surroundings()
    results = asyncio.run(_run(place, choices, trace))
    surroundings = {
        "way": sent.http or "gRPC", "generator": of_generator, "server": of_server,
        "trace": of_trace,
    }  # fmt: skip
    record = Record(file.name, choices, surroundings, results)
    if kept.save:
        write_record(record, kept.save)
    if kept.report:
        err.print(coloured("report", "dim", f" {write_report(record, kept.report)}"))
    (err if as_json else out).print(results_view(record))
    if as_json:
        print_json(record_json(record, with_rows=False))
    if not results.is_complete:
        raise typer.Exit(INCOMPLETE_STATUS)
    if not results.is_valid:
        raise typer.Exit(INVALID_STATUS)


def _chosen(
    sent: SentOptions, sweep: SweepOptions, kept: KeptOptions, gateway: GatewayOptions
) -> tuple[ScenarioFile, Choices, str]:
    """Also the digest that the trace must have. Empty: any. Raises UsageError."""
    changes = list(sent.assign or ())
    for key, value in (
        ("arrivals.rate_per_s", sent.rate),
        ("arrivals.seconds", sent.seconds),
        ("trace.factor", sent.factor),
        ("limits.timeout_s", gateway.timeout),
    ):
        if value is not None:
            changes.append(f"{key}={value!r}")
    if sent.trace is not None:
        changes.append(f"trace.path='{sent.trace}'")
    rates = _rates(sweep.rates)
    seeds = tuple(range(sent.seed, sent.seed + sweep.seeds))
    if kept.repeat is not None:
        if changes or rates or sent.scenario:
            raise UsageError("--repeat", "runs what the file has; leave out the scenario, its keys and rates")
        file, choices, trace_sha256 = choices_of(kept.repeat)
        return file, replace(choices, salt=sent.salt), trace_sha256
    if sent.http:
        origin_of(sent.http, gateway.tls)
    file = open_scenario(sent.scenario or "chat", changes)
    if sent.rate is not None and file.scenario.trace is not None:
        # The trace is brought to this rate.
        rates = rates or (sent.rate,)
    check_rates(rates, len(seeds), file.scenario)
    if rates and sweep.search:
        raise UsageError("--search", "finds the rates itself; leave out --rates")
    return file, Choices(file.scenario, rates, sweep.search, seeds, sent.salt, sent.model), ""


def _rates(text: str) -> tuple[float, ...]:
    """Raises UsageError."""
    try:
        return tuple(float(part) for part in text.split(",")) if text else ()
    except ValueError:
        raise UsageError("--rates", f"{text}: numbers with commas between them, such as 1,2,4") from None


def _trace(choices: Choices, sha256: str) -> tuple[Sequence[Arrival], dict[str, Any]]:
    """The scenario's trace, and what names it. Raises UsageError."""
    rules = choices.scenario.trace
    if rules is None:
        return (), {}
    path = Path(rules.path)
    if not path.is_file():
        raise UsageError("--trace", f"{rules.path or 'no file'}: name a trace in Mooncake's format")
    try:
        arrivals = read_trace(path)
    except ValueError as error:
        raise UsageError("--trace", str(error)) from None
    digest = digest_of(path)
    if sha256 not in ("", digest):
        raise UsageError("--repeat", f"{path} is not the trace of that run: its SHA-256 is {digest}")
    return arrivals, {"path": str(path), "sha256": digest, "requests": len(arrivals)}


def _server(gateway: GatewayOptions, *, needed: bool) -> dict[str, Any]:
    """What the gateway says of itself. Empty where none answers and none is needed.

    Raises StartupError and CallFailed.
    """
    try:
        with connected(gateway.address, gateway.api_key, STATUS_TIMEOUT_S, gateway.tls) as client:
            return server_surroundings(client.status(workers_only=True))
    except (StartupError, CallFailed):
        if needed:
            raise
        return {}


async def _run(place: Place, choices: Choices, trace: Sequence[Arrival]) -> Results:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def interrupted() -> None:
        stop.set()
        # A second one ends the command at once.
        loop.remove_signal_handler(signal.SIGINT)

    loop.add_signal_handler(signal.SIGINT, interrupted)
    try:
        with live() as watchers:
            return await Bench(place, choices, trace, watchers, stop).run()
    finally:
        with contextlib.suppress(ValueError):
            loop.remove_signal_handler(signal.SIGINT)
