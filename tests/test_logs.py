"""Log lines for machines."""

from __future__ import annotations

import json
import logging
import sys

from opentelemetry.sdk.trace import TracerProvider

from memserve.logs import LOGGED_CALL, JsonFormatter, LoggedCall

HOSTILE = 'a "quoted"\n{"level": "CRITICAL"}\x1b[2J\u2028end'


def entry(message: str, *, failure: bool = False) -> dict[str, str]:
    exc_info = None
    if failure:
        try:
            raise ValueError(HOSTILE)
        except ValueError:
            exc_info = sys.exc_info()
    record = logging.LogRecord("memserve.x", logging.WARNING, "f.py", 1, "%s", (message,), exc_info)
    line = JsonFormatter().format(record)
    assert line.isprintable()
    return dict(json.loads(line))


def test_a_record_is_one_line_of_json_whatever_its_text() -> None:
    said = entry(HOSTILE, failure=True)
    assert said["message"] == HOSTILE
    assert said["level"] == "WARNING"
    assert HOSTILE in said["exception"]
    assert said["time"].endswith("+00:00")


def test_a_record_names_its_call_and_its_trace() -> None:
    assert "tenant" not in entry("outside of a call")
    token = LOGGED_CALL.set(LoggedCall("acme", "r1"))
    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("tests")
    with tracer.start_as_current_span("a call") as span:
        said = entry("inside")
    LOGGED_CALL.reset(token)
    assert (said["tenant"], said["request_id"]) == ("acme", "r1")
    assert said["trace_id"] == f"{span.get_span_context().trace_id:032x}"
