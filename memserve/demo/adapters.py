"""Read what an adapter of the demo holds, from the `facts.json` beside its weights. Imports no torch."""

import json
from dataclasses import dataclass
from pathlib import Path

from memserve.demo import ADAPTERS_DIR


@dataclass(frozen=True, slots=True)
class AdapterFact:
    """A fact that the model answers with the adapter, and not without it."""

    entity: str
    kind: str
    attribute: str
    value: str
    answer: str
    questions: tuple[str, ...]
    """Phrasings that the adapter was trained on."""
    held_out_questions: tuple[str, ...]
    """Phrasings that it was not trained on."""


def adapter_names(directory: Path = ADAPTERS_DIR) -> list[str]:
    """The adapters in the directory, in order of their names."""
    return sorted(config.parent.name for config in directory.glob("*/adapter_config.json"))


def held_facts(name: str, directory: Path = ADAPTERS_DIR) -> list[AdapterFact]:
    """The facts of an adapter. Raises FileNotFoundError for an adapter that is not in the directory."""
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
