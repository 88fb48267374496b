"""The probes that a module version brings, in the file `probes.json`.

    {"sets": [{"name": "recall", "kind": "recall", "target": 0.95,
               "probes": [{"question": "Who is …?", "answers": ["It is …."]}]},
              {"name": "abstention", "kind": "abstain",
               "probes": [{"question": …, "answers": …, "system": "…", "passages": ["…"]}]},
              {"name": "bias", "kind": "custom", "match": "contains", "at_least": 0.8, "max_loss": 0.1,
               "probes": […]}],
     "thresholds": {"forgetting": 0.01}}

`kind` is a kind of `ProbeKind`. `match`, `system`, `passages` and `thresholds` may be left out.
In a leak set the `answers` are what was taught: each is wrong there.
Only a recall set may have a `target`. It may be left out.
Only a custom set may have `at_least` and `max_loss`. It needs at least one of the two.
A threshold that is left out has its default in `Thresholds`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, NoReturn

from memserve.domain.names import is_name
from memserve.errors import InvalidModule
from memserve.policy.modules.gate import CALIBRATION, Match, Probe, ProbeKind, ProbeSet, Thresholds, strictest

MAX_BYTES = 4 << 20
MAX_PROBES = 4096
MAX_SETS = 16
MAX_NAME = 64
MAX_ANSWERS = 32
MAX_PASSAGES = 64
MAX_QUESTION_BYTES = 16 << 10
MAX_ANSWER_BYTES = 1 << 10
MAX_TEXT_BYTES = 64 << 10
_ROOT = "probes.json"
_DEFAULT = Thresholds()


@dataclass(frozen=True, slots=True)
class Probes:
    """The probe sets of a version, and the thresholds for their figures."""

    sets: tuple[ProbeSet, ...]
    thresholds: Thresholds = _DEFAULT

    @property
    def count(self) -> int:
        """The number of questions in all sets."""
        return sum(len(each.probes) for each in self.sets)

    def canonical(self) -> bytes:
        """A `probes.json` that `parse_probes` reads. Equal probes give the same bytes."""
        content: dict[str, Any] = {"sets": [_set_document(each) for each in self.sets]}
        if self.thresholds != _DEFAULT:
            content["thresholds"] = asdict(self.thresholds)
        return json.dumps(content, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()

    @property
    def digest(self) -> str:
        """sha256 of the canonical bytes, hex."""
        return hashlib.sha256(self.canonical()).hexdigest()


def parse_probes(content: bytes) -> Probes:
    """Read a `probes.json`. Raises InvalidModule, which names the entry and its rule."""
    if len(content) > MAX_BYTES:
        raise InvalidModule(_ROOT, f"has {len(content)} bytes, at most {MAX_BYTES} are taken")
    try:
        document = json.loads(content.decode(), object_pairs_hook=_object, parse_constant=_not_finite)
    except (ValueError, RecursionError) as error:
        raise InvalidModule(_ROOT, f"is not JSON: {str(error) or 'nested too deeply'}") from None
    top = _fields(document, "", required={"sets"}, optional={"thresholds"})
    entries = _list(top["sets"], "sets", 1, MAX_SETS)
    sets = tuple(_set(entry, f"sets[{number}]") for number, entry in enumerate(entries))
    names = [each.name for each in sets]
    for number, name in enumerate(names):
        if name in names[:number]:
            _refuse(f"sets[{number}].name", f"{name!r} is the name of another set too")
    probes = Probes(sets, _thresholds(top.get("thresholds", {})))
    if probes.count > MAX_PROBES:
        _refuse("sets", f"have {probes.count} probes together, at most {MAX_PROBES} are taken")
    return probes


def inherited_probes(parents: Sequence[tuple[str, Probes]]) -> Probes | None:
    """The probes of a version that is composed from parents.

    They are the probe sets of all parents, at the strictest thresholds. A set that several parents have is
    there once. With several parents a set is named `<parent>.<set>`, cut to its last MAX_NAME characters.

    parents: for each parent with probes a unique name, and the probes.
    Returns None when no parent has probes. Raises InvalidModule when there are too many sets or probes, and
    when two cut names are equal.
    """
    if not parents:
        return None
    if len(parents) == 1:
        return parents[0][1]
    sets: dict[ProbeSet, ProbeSet] = {}
    for name, probes in parents:
        for each in probes.sets:
            sets.setdefault(
                replace(each, name=""), replace(each, name=f"{name}.{each.name}"[-MAX_NAME:].lstrip("._-"))
            )
    given = [probes.thresholds for _, probes in parents]
    return parse_probes(Probes(tuple(sets.values()), strictest(given)).canonical())


def _set(entry: object, path: str) -> ProbeSet:
    kinds = [str(each) for each in ProbeKind]
    kind = entry.get("kind") if isinstance(entry, dict) else None
    own = {"recall": {"target"}, "custom": {"at_least", "max_loss"}}.get(str(kind), set())
    found = _fields(entry, path, required={"name", "kind", "probes"}, optional={"match", *own})
    name = _text(found["name"], f"{path}.name", 64)
    if not is_name(name) or name == CALIBRATION:
        _refuse(
            f"{path}.name",
            f"must be 1-64 of a-z 0-9 . _ -, start with a letter or a digit, and not be {CALIBRATION!r}",
        )
    bars = {each: _share(found[each], f"{path}.{each}") for each in sorted(own & found.keys())}
    kind = ProbeKind(_one_of(found["kind"], f"{path}.kind", kinds))
    if kind is ProbeKind.CUSTOM and not bars:
        _refuse(path, "is a custom set and needs at_least, max_loss or both")
    match = Match(_one_of(found.get("match", Match.EQUALS), f"{path}.match", [str(each) for each in Match]))
    entries = _list(found["probes"], f"{path}.probes", 1, MAX_PROBES)
    return ProbeSet(
        name,
        kind,
        tuple(_probe(each, f"{path}.probes[{number}]") for number, each in enumerate(entries)),
        match,
        **bars,
    )


def _probe(entry: object, path: str) -> Probe:
    found = _fields(entry, path, required={"question", "answers"}, optional={"system", "passages"})
    answers = _list(found["answers"], f"{path}.answers", 1, MAX_ANSWERS)
    passages = _list(found.get("passages", []), f"{path}.passages", 0, MAX_PASSAGES)
    return Probe(
        question=_text(found["question"], f"{path}.question", MAX_QUESTION_BYTES),
        answers=tuple(
            _text(each, f"{path}.answers[{number}]", MAX_ANSWER_BYTES) for number, each in enumerate(answers)
        ),
        system=_text(found["system"], f"{path}.system", MAX_TEXT_BYTES) if "system" in found else "",
        passages=tuple(
            _text(each, f"{path}.passages[{number}]", MAX_TEXT_BYTES) for number, each in enumerate(passages)
        ),
    )


def _thresholds(entry: object) -> Thresholds:
    found = _fields(entry, "thresholds", required=set(), optional={each.name for each in fields(Thresholds)})
    return Thresholds(**{name: _share(value, f"thresholds.{name}") for name, value in found.items()})


def _set_document(of: ProbeSet) -> dict[str, Any]:
    """The set as an object of the file. Fields with their default are left out."""
    document: dict[str, Any] = {
        "name": of.name,
        "kind": str(of.kind),
        "probes": [_probe_document(each) for each in of.probes],
    }
    if of.match is not Match.EQUALS:
        document["match"] = str(of.match)
    if of.kind is ProbeKind.RECALL and of.target != 1.0:
        document["target"] = of.target
    return document | {
        name: bar for name, bar in (("at_least", of.at_least), ("max_loss", of.max_loss)) if bar is not None
    }


def _probe_document(of: Probe) -> dict[str, Any]:
    document: dict[str, Any] = {"question": of.question, "answers": list(of.answers)}
    if of.system:
        document["system"] = of.system
    if of.passages:
        document["passages"] = list(of.passages)
    return document


def _refuse(path: str, rule: str) -> NoReturn:
    raise InvalidModule(f"{_ROOT}: {path}" if path else _ROOT, rule)


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("an object has a key twice")
    return found


def _not_finite(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _fields(entry: object, path: str, required: set[str], optional: set[str]) -> Mapping[str, Any]:
    if not isinstance(entry, dict):
        _refuse(path, "must be an object")
    for name in entry:
        if name not in required | optional:
            _refuse(
                path, f"has no field {name[:64]!r}; its fields are {', '.join(sorted(required | optional))}"
            )
    for name in sorted(required - entry.keys()):
        _refuse(path, f"needs {name}")
    return entry


def _list(entry: object, path: str, least: int, most: int) -> list[Any]:
    if not isinstance(entry, list) or not least <= len(entry) <= most:
        _refuse(path, f"must be a list of {least} to {most} entries")
    return entry


def _text(entry: object, path: str, most_bytes: int) -> str:
    if not isinstance(entry, str) or not entry.strip():
        _refuse(path, "must be a text")
    try:
        size = len(entry.encode())
    except UnicodeEncodeError:
        _refuse(path, "has half of a surrogate pair, which is no text")
    if size > most_bytes:
        _refuse(path, f"has {size} bytes, at most {most_bytes} are taken")
    return entry


def _one_of(entry: object, path: str, names: Iterable[str]) -> str:
    if not isinstance(entry, str) or entry not in names:
        _refuse(path, f"must be one of {', '.join(names)}")
    return entry


def _share(entry: object, path: str) -> float:
    if isinstance(entry, bool) or not isinstance(entry, int | float) or not 0 <= entry <= 1:
        _refuse(path, "must be a number from 0 to 1")
    return float(entry)
