"""Generate what the chart has of other files: `python helm/generate.py`; `--check` fails when it is stale.

values.schema.json comes from the comments of values.yaml and from memserve's settings. The rules of
Prometheus and the dashboards of Grafana are copies of those in `deploy/`, since a chart cannot reach outside
of itself.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "docs"))

from values import CHART, chart_values  # noqa: E402

from memserve.config import Settings  # noqa: E402

DEFINITIONS = Path(__file__).parent / "definitions.json"
# Go's JSON has no types of these.
DROPPED = ("title", "default", "format", "writeOnly")


def files() -> dict[Path, str]:
    """Every generated file's text."""
    copies = {
        CHART / "files" / "prometheus" / "rules.yaml": ROOT / "deploy" / "prometheus" / "rules.yaml",
        **{
            CHART / "files" / "grafana" / board.name: board
            for board in sorted((ROOT / "deploy" / "grafana").glob("*.json"))
        },
    }
    return {
        CHART / "values.schema.json": json.dumps(schema(), indent=1, ensure_ascii=False) + "\n",
        **{copy: source.read_text(encoding="utf-8") for copy, source in copies.items()},
    }


def schema() -> dict[str, Any]:
    """Of values.yaml, in the draft that every Helm 3 and 4 reads."""
    whole = chart_values().schema
    # Helm gives this to charts within charts.
    whole["properties"]["global"] = {"type": "object"}
    definitions = json.loads(DEFINITIONS.read_text(encoding="utf-8"))
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Values of the chart memserve",
        **whole,
        "$defs": {**definitions, "settings": settings_schema()},
    }


def settings_schema() -> dict[str, Any]:
    """Of memserve's settings. A secret may not stand here: the chart refuses it and says where it belongs."""
    return {
        "type": "object",
        "properties": {
            name: without(rule, DROPPED) for name, rule in Settings.model_json_schema()["properties"].items()
        },
        "additionalProperties": False,
    }


def without(rule: Any, names: tuple[str, ...]) -> Any:
    if isinstance(rule, dict):
        return {name: without(value, names) for name, value in rule.items() if name not in names}
    if isinstance(rule, list):
        return [without(value, names) for value in rule]
    return rule


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit 1 when a file is out of date"
    )
    chosen = parser.parse_args()
    fresh = files()
    kept = {path for folder in ("prometheus", "grafana") for path in (CHART / "files" / folder).glob("*")}
    stale = sorted(
        str(path.relative_to(ROOT))
        for path in {*fresh, *kept}
        if not path.exists() or path.read_text(encoding="utf-8") != fresh.get(path)
    )
    if chosen.check:
        if stale:
            print(f"out of date, run `python helm/generate.py`: {', '.join(stale)}", file=sys.stderr)
        return 1 if stale else 0
    for path in kept - fresh.keys():
        path.unlink()
    for path, text in fresh.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
