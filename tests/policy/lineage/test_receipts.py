"""Which facts of a module the text corrects."""

from __future__ import annotations

import pytest

from memserve.domain import Link, LinkKind, Memory
from memserve.domain.lineage import MemoryVersionName
from memserve.policy.lineage.receipts import Taught, facts_of, outdated_facts

KNOWN = "The founder of Velmora is Ida Kern."
TAUGHT = [
    Taught(MemoryVersionName("town", "a", 2), facts_of(KNOWN)),
    Taught(MemoryVersionName("town", "b", 1), facts_of("The code of Amber is 4821.")),
]


def passage(text: str, memory_id: str = "x", version: int = 1, links: tuple[Link, ...] = ()) -> Memory:
    return Memory(memory_id, "town", text, "", (), 0.0, version=version, links=links)


@pytest.mark.parametrize(
    ("memory", "corrected"),
    [
        (passage(KNOWN, "a", 2), []),
        (passage(KNOWN, "a", 3), []),
        (passage("The founder of Velmora is Ada Lund.", "a", 3), ["a"]),
        (passage("Ada Lund is the founder of Velmora."), ["a"]),
        (passage("The founder of Velmora is  IDA KERN."), []),
        (passage("The code of Amber is 1188. The founder of Velmora is Ada."), ["a", "b"]),
        (passage("Nothing of it holds.", links=(Link(LinkKind.SUPERSEDES, "b", "town"),)), ["b"]),
        (passage("Nothing of it holds.", links=(Link(LinkKind.CONTRADICTS, "a", ""),)), ["a"]),
        # A summary takes the place of its sources, and says what they say.
        (passage(f"{KNOWN} It is far.", links=(Link(LinkKind.SUPERSEDES, "a", "town"),)), []),
        (passage("It is so.", links=(Link(LinkKind.NEXT, "a", "town"),)), []),
        (passage("The motto of Velmora is Light."), []),
    ],
)
def test_a_passage_corrects_what_it_says_otherwise_or_takes_the_place_of(
    memory: Memory, corrected: list[str]
) -> None:
    found = outdated_facts("m@1", TAUGHT, [memory])
    assert sorted(fact.memory_id for fact in found) == corrected
    assert all(fact.text_version == memory.version and fact.why for fact in found)
