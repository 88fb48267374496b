"""Traces of requests in the format of Mooncake (Qin et al., FAST'25).

One JSON object a line with `timestamp` (milliseconds), `input_length`, `output_length` (tokens) and
`hash_ids`, one for each 512-token block of the prompt; equal ids at equal places are an equal prefix.
"""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from pathlib import Path

BLOCK_TOKENS = 512


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request of a trace."""

    at_s: float
    prompt_tokens: int
    output_tokens: int
    blocks: tuple[int, ...]
    tenant: str = ""
    band: int = 0
    adapter: str = ""
    session: str = ""


def read_trace(path: Path) -> list[Arrival]:
    """A trace file, gzip or plain, in order of time. Raises ValueError with the line that is wrong."""
    arrivals = []
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as stream:
        for number, line in enumerate(stream, 1):
            try:
                each = json.loads(line)
                prompt, output = int(each["input_length"]), int(each["output_length"])
                blocks = tuple(map(int, each["hash_ids"]))
                at_s = float(each["timestamp"]) / 1000
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f"{path}, line {number}: {error}") from None
            if prompt < 1 or output < 1 or len(blocks) * BLOCK_TOKENS < prompt:
                raise ValueError(
                    f"{path}, line {number}: lengths below 1, or fewer blocks than the prompt has"
                )
            arrivals.append(Arrival(at_s, prompt, output, blocks))
    return sorted(arrivals, key=lambda arrival: arrival.at_s)
