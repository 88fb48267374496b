"""Types of settings that take more than a line, and addresses made of them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

Port = Annotated[int, Field(ge=0, le=65535)]

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


def at(host: str, port: int) -> str:
    """host:port, with the brackets that an IPv6 address needs."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _none_if_empty(value: Any) -> Any:
    return None if value == "" else value


def found_from_anywhere(file: Path | None) -> Path | None:
    """Absolute, since `memserve up` starts processes in another directory. Raises ValueError."""
    try:
        return None if file is None else file.expanduser().absolute()
    except RuntimeError:
        raise ValueError("cannot be found, since there is no home directory") from None


def _origins(text: str) -> str:
    """Raises ValueError."""
    for origin in text.split(",") if text not in ("", "*") else ():
        if not _ORIGIN.fullmatch(origin.strip()):
            raise ValueError(f"{origin.strip()!r} is no origin: write https://host or http://host:port")
    return text


_ORIGIN = re.compile(r"https?://[^/\s,*?#@]+")
CorsOrigins = Annotated[str, AfterValidator(_origins)]
SettingFile = Annotated[Path | None, BeforeValidator(_none_if_empty), AfterValidator(found_from_anywhere)]
