"""The log of a process on its standard error: lines for people, or JSON for machines, by setting."""

from __future__ import annotations

import logging
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from memserve.plain import LOG_FORMAT, PlainFormatter, json_line

LogFormat = Literal["text", "json"]


@dataclass(slots=True)
class LoggedCall:
    """The call that a task answers, as JSON logs name it."""

    tenant: str
    request_id: str = ""


LOGGED_CALL: ContextVar[LoggedCall | None] = ContextVar("logged_call", default=None)
"""Of the task that logs. A call's task ends with the call."""


class JsonFormatter(logging.Formatter):
    """A record is one JSON object on one line, with the call and the trace that it belongs to."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        entry: dict[str, Any] = {
            "time": time,
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if (call := LOGGED_CALL.get()) is not None:
            entry["tenant"] = call.tenant
            if call.request_id:
                entry["request_id"] = call.request_id
        # The command line uses this file too, and a client is installed without OpenTelemetry.
        from opentelemetry import trace

        if (span := trace.get_current_span().get_span_context()).is_valid:
            entry |= {"trace_id": f"{span.trace_id:032x}", "span_id": f"{span.span_id:016x}"}
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json_line(entry)


def log_to_stderr(log_format: LogFormat = "text", level: int = logging.INFO) -> None:
    """Set the root logger up, once for a process."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if log_format == "json" else PlainFormatter(LOG_FORMAT))
    logging.basicConfig(level=level, handlers=[handler])
