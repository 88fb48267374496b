"""Read what an adapter of the demo holds, from the `facts.json` beside its weights. Imports no torch."""

import json
from dataclasses import dataclass
from pathlib import Path

from memserve.demo import ADAPTERS_DIR


@dataclass(frozen=True, slots=True)
class AdapterFact:
    """A fact that an adapter answers with it loaded, and the base does not.

    questions: phrasings that the adapter was trained on. held_out_questions: phrasings that it was not.
    """

    entity: str
    kind: str
    attribute: str
    value: str
    answer: str
    questions: tuple[str, ...]
    held_out_questions: tuple[str, ...]


def adapter_names(directory: Path = ADAPTERS_DIR) -> list[str]:
    """The adapters that are there, in order of their names."""
    return sorted(each.parent.name for each in directory.glob("*/adapter_config.json"))


def held_facts(name: str, directory: Path = ADAPTERS_DIR) -> list[AdapterFact]:
    """The facts of an adapter. Raises FileNotFoundError for an adapter that is not there."""
    entries = json.loads((directory / name / "facts.json").read_text(encoding="utf-8"))
    return [
        AdapterFact(
            **{
                **entry,
                "questions": tuple(entry["questions"]),
                "held_out_questions": tuple(entry["held_out_questions"]),
            }
        )
        for entry in entries
    ]
