"""Types of settings that take more than a line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator

RoutingPolicy = Literal[
    "least_ttft",
    "least_harm",
    "cheapest_feasible",
    "lmetric",
    "least_tokens",
    "prefix_affinity",
    "session_hash",
    "power_of_two",
    "round_robin",
]


def _none_if_empty(value: Any) -> Any:
    return None if value == "" else value


def _found_from_anywhere(file: Path | None) -> Path | None:
    """Absolute, since `memserve up` starts processes in another directory. Raises ValueError."""
    try:
        return None if file is None else file.expanduser().absolute()
    except RuntimeError:
        raise ValueError("cannot be found, since there is no home directory") from None


TemplateFile = Annotated[Path | None, BeforeValidator(_none_if_empty), AfterValidator(_found_from_anywhere)]
