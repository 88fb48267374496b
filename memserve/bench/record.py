"""The file of a bench: all that is needed to repeat it, and all that it measured. JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from memserve.bench.rows import Row
from memserve.bench.runs import Choices, Ran, Results
from memserve.bench.scenario import ScenarioFile, scenario_of
from memserve.errors import UsageError

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Record:
    """A bench and what it ran on."""

    name: str
    """Of the scenario."""
    choices: Choices
    surroundings: Mapping[str, Any]
    """Versions, hardware, server, way, trace."""
    results: Results


def record_json(record: Record, *, with_rows: bool) -> dict[str, Any]:
    """As JSON has it. with_rows: whether every request is in it."""
    choices, results = record.choices, record.results
    return {
        "format": FORMAT,
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "scenario_name": record.name,
        "scenario": choices.scenario.model_dump(mode="json", exclude_none=True),
        "rates_per_s": list(choices.rates_per_s),
        "search": choices.search,
        "seeds": list(choices.seeds),
        "salt": choices.salt,
        "model_dir": str(choices.model_dir) if choices.model_dir else "",
        **record.surroundings,
        "valid": results.is_valid,
        "complete": results.is_complete,
        "knee": asdict(results.knee) if results.knee else None,
        "runs": [_run(run, with_rows) for run in results.runs],
    }


def write_record(record: Record, path: Path) -> None:
    """Raises OSError."""
    text = json.dumps(record_json(record, with_rows=True), ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def choices_of(path: Path) -> tuple[ScenarioFile, Choices, str]:
    """What a file ran, and the path of its trace. Raises UsageError."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"--repeat {path}", f"cannot be read: {error.strerror}") from None
    except ValueError:
        raise UsageError(f"--repeat {path}", "is not JSON") from None
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise UsageError(f"--repeat {path}", "is no file that `memserve bench --save` wrote")
    try:
        scenario = scenario_of(values["scenario"], str(path))
        choices = Choices(
            scenario,
            tuple(map(float, values["rates_per_s"])),
            bool(values["search"]),
            tuple(map(int, values["seeds"])),
            model_dir=Path(values["model_dir"]) if values["model_dir"] else None,
        )
        trace = values.get("trace") or {}
        return ScenarioFile(str(values["scenario_name"]), scenario), choices, str(trace.get("sha256", ""))
    except (LookupError, TypeError) as error:
        raise UsageError(f"--repeat {path}", f"lacks a value: {error}") from None


def _run(run: Ran, with_rows: bool) -> dict[str, Any]:
    # The rows would be copied at length.
    entry = asdict(replace(run, rows=()))
    del entry["rows"]
    if with_rows:
        entry["rows"] = [_row(row) for row in run.rows]
    return entry


def _row(row: Row) -> dict[str, Any]:
    gaps = [after - before for before, after in pairwise(row.token_times_s)]
    return {
        "number": row.number,
        "intended_s": round(row.intended_s, 6),
        "sent_s": _rounded(row.sent_s),
        "ended_s": _rounded(row.ended_s),
        "outcome": row.outcome.value,
        "reason": row.reason,
        "ttft_s": _rounded(row.ttft_s),
        "tpot_s": _rounded(row.tpot_s),
        "longest_gap_s": _rounded(max(gaps, default=None)),
        "worker": row.worker,
        "session": row.session,
        "turn": row.turn,
        "module": row.module,
        "prompt_tokens": row.prompt_tokens,
        "output_tokens": row.output_tokens,
        "cached_tokens": row.cached_tokens,
    }


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 6)
