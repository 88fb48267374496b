"""Errors that are kept as JSON, and raised again elsewhere."""

from __future__ import annotations

import json

from memserve import errors
from memserve.errors import DistillationFailed, MemserveError


def kept(error: MemserveError) -> str:
    """JSON that `restored` reads. Empty: this error cannot be kept."""
    record = {"class": type(error).__name__, "args": error.args, "state": error.__dict__}
    try:
        return json.dumps(record)
    except (TypeError, ValueError):
        return ""


def restored(text: str, module: str, reason: str) -> MemserveError:
    """The error that was kept. DistillationFailed, with the reason, where there is none that can be read."""
    try:
        record = json.loads(text)
        kind = getattr(errors, record["class"])
        if isinstance(kind, type) and issubclass(kind, MemserveError):
            error = kind.__new__(kind, *record["args"])
            error.__dict__.update(record["state"])
            return error
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    return DistillationFailed(module, reason)
