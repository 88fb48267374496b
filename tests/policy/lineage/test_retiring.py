"""Where an alias goes when versions leave, and which modules are made again."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from memserve.domain import (
    Alias,
    AliasChange,
    GateReport,
    ModuleKind,
    ModuleVersion,
    TrafficShare,
    WeightFigures,
)
from memserve.domain.lineage import MemoryVersionName, memories_of, source_of
from memserve.policy.lineage.retiring import deletion_order, moved_alias, retrained_by, retrainings
from memserve.policy.lineage.sources import Versions


def version(
    number: int, *sources: str, passed: bool = False, parents: tuple[str, ...] = (), name: str = "m"
) -> ModuleVersion:
    return ModuleVersion(
        module=name, version=number, digest=f"{name}{number}", kind=ModuleKind.LORA, base_digest="",
        rank=8, target_modules=(), size_bytes=1, created_s=float(number), author="", sources=sources,
        parents=parents, recipe=json.dumps({"seed": 5, "budget_s": 60}), notes="",
        figures=WeightFigures(0, 0, 0), probes_digest="",
        gate=GateReport(passed, (), "w", 0.0, ""),
    )  # fmt: skip


def shares(*numbers: int) -> tuple[TrafficShare, ...]:
    return tuple(TrafficShare(number, 1.0) for number in numbers)


def change(revision: int, *numbers: int) -> AliasChange:
    return AliasChange(revision, shares(*numbers), 0.0, "", "promote", "", False)


@pytest.mark.parametrize(
    ("present", "retired", "passed", "history", "after"),
    [
        ((1,), {2}, (), (), None),
        ((1, 2), {2}, (1,), (), (1,)),
        # A canary alone would get all of the traffic: it goes back instead.
        ((1, 2), {1}, (), ((3,), (1,), (1, 2)), (3,)),
        ((2,), {2, 3}, (), ((1,), (3,), (2,)), (1,)),
        ((2,), {1, 2}, (3,), ((1,), (2,)), (3,)),
        ((2,), {1, 2}, (), ((1,), (2,)), ()),
    ],
)
def test_an_alias_goes_where_nothing_retired_is(
    present: tuple[int, ...],
    retired: set[int],
    passed: tuple[int, ...],
    history: tuple[tuple[int, ...], ...],
    after: tuple[int, ...] | None,
) -> None:
    versions = [version(number, passed=number in passed) for number in (1, 2, 3)]
    changes = [change(place, *targets) for place, targets in enumerate(history, start=1)]
    moved = moved_alias("m", Alias("live", shares(*present), 7, 0.0), retired, versions, changes)
    if after is None:
        assert moved is None
        return
    assert moved is not None and moved.why
    assert (moved.before, moved.after, moved.revision) == (shares(*present), shares(*after), 7)


def test_a_target_of_the_history_that_was_deleted_is_passed_over() -> None:
    moved = moved_alias(
        "m", Alias("live", shares(2), 3, 0.0), {2}, [version(2)], [change(1, 1), change(2, 2)]
    )
    assert moved is not None and moved.after == ()


def test_sources_name_memories_several_on_a_line_and_texts_for_people_beside_them() -> None:
    name = MemoryVersionName("town", "a.b:c-d", 12)
    assert memories_of([f"a book {source_of(name)}", "memory:town/x", "memory:town/x@0", "x"]) == (name,)
    assert memories_of(["memory:a/b@1 memory:a/c@2", "memory:a/b@1"]) == (("a", "b", 1), ("a", "c", 2))
    by_hand = "(memory:a/b@1, memory:a/c@2; and memory:a/d.e:f@3.)"
    assert memories_of([by_hand]) == (("a", "b", 1), ("a", "c", 2), ("a", "d.e:f", 3))
    assert memories_of(["xmemory:a/b@1", "memory:a/b@1x", "memory:a/b@1234567890"]) == ()


def test_what_was_composed_of_it_and_what_has_its_content_is_made_of_it_too() -> None:
    direct, other = version(1, "memory:town/a@1"), version(2, "memory:town/b@1")
    composed, again = version(3, parents=("m1", "m2")), version(4, parents=("m3",))
    copy = ModuleVersion(**{field: getattr(direct, field) for field in direct.__slots__} | {"module": "copy"})
    every = Versions([direct, other, composed, again, copy])
    made = every.made_of(lambda name: name.memory == ("town", "a"))
    assert [each.reference for each in made] == ["m@1", "m@3", "m@4", "copy@1"]
    assert deletion_order(made)[0].version == 4


def test_a_module_is_made_again_of_what_is_left_of_its_newest_version() -> None:
    def is_erased(name: MemoryVersionName) -> bool:
        return name.memory == ("town", "a")

    old, new = version(1, "memory:town/a@1"), version(2, "memory:town/a@1 memory:town/b@3")
    composed = version(3, parents=("m1",), name="both")
    [entry] = retrainings([old, new, composed], is_erased, 10.0)
    assert (entry.retired, entry.memories, entry.seed, entry.budget_s) == ("m@2", (("town", "b"),), 5, 60.0)
    later = version(11, "memory:town/b@3")
    assert retrained_by(entry, [later], is_erased) == "m@11"
    assert (
        retrained_by(entry, [version(11, "memory:town/a@1"), version(9, "memory:town/b@3")], is_erased) == ""
    )


def test_a_long_chain_of_compositions_and_a_circle_are_followed_at_once() -> None:
    chain = [version(1, "memory:town/x@1")]
    chain += [version(number, parents=(f"m{number - 1}",)) for number in range(2, 5001)]
    circle = [version(number, parents=(f"c{number % 3 + 1}",), name="c") for number in (1, 2, 3)]
    every = Versions([*reversed(chain), *circle])
    assert len(every.made_of(lambda source: source.memory_id == "x")) == 5000
    assert len(every.with_compositions(circle[:1])) == 3
    gone = Versions(chain[1:])
    assert len(gone.made_of(lambda source: False, {"m1"})) == 4999
    assert gone.made_of(lambda source: False) == []


@pytest.mark.parametrize(
    "recipe", ['{"seed": -1}', '{"seed": 1e30}', f'{{"seed": {2**63}}}', '{"budget_s": NaN}']
)
def test_a_recipe_that_a_publisher_has_made_up_is_left_out(recipe: str) -> None:
    odd = replace(version(1, "memory:town/x@1"), recipe=recipe)
    [entry] = retrainings([odd], lambda name: True, 5.0)
    assert (entry.seed, entry.budget_s) == (0, 0.0)
