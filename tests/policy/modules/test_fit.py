"""Which module fits a question."""

from __future__ import annotations

from memserve.domain import ModuleKind, ModuleVersion, WeightFigures
from memserve.policy.modules.fit import FITS_MAX, FitPolicy, Nearest, judge_fits

POLICY = FitPolicy(least=0.6, least_question=0.8, lead=0.05)


def version(name: str) -> ModuleVersion:
    return ModuleVersion(
        name, 1, f"digest-{name}", ModuleKind.LORA, "base", 8, (), 0, 0.0, "", (), (), "", "",
        WeightFigures(0, 0.0, 0.0), "",
    )  # fmt: skip


def told(cosine: float) -> Nearest:
    return Nearest(cosine, "Ships and stations of the harbour.")


def asked(cosine: float) -> Nearest:
    return Nearest(cosine, "Which captain has Silver Falcon?", is_question=True)


def chosen(**nearest: list[Nearest]) -> list[str]:
    found = judge_fits(
        [version(name) for name in nearest],
        {f"digest-{name}": texts for name, texts in nearest.items()},
        POLICY,
    )
    return [fit.name for fit in found if fit.chosen]


def test_a_question_must_be_nearer_to_another_question_than_to_a_description() -> None:
    assert chosen(harbour=[told(0.62)]) == ["harbour"]
    assert chosen(harbour=[asked(0.72)]) == []
    assert chosen(harbour=[asked(0.82)]) == ["harbour"]
    assert chosen(harbour=[told(0.62), asked(0.72)]) == ["harbour"]
    assert chosen(harbour=[told(0.5), asked(0.82)]) == ["harbour"]


def test_of_two_modules_that_fit_alike_none_is_chosen() -> None:
    assert chosen(harbour=[asked(0.9)], archive=[asked(0.87)]) == []
    assert chosen(harbour=[asked(0.9)], archive=[asked(0.84)]) == ["harbour"]
    # Both are as far over what such a text must have.
    assert chosen(harbour=[asked(0.9)], archive=[told(0.7)]) == []


def test_a_module_that_is_not_known_yet_is_not_judged() -> None:
    assert judge_fits([version("harbour")], {}, POLICY) == ()
    assert judge_fits([version("harbour")], {"digest-harbour": []}, POLICY) == ()


def test_the_best_modules_are_told_with_why_they_fit_or_do_not() -> None:
    names = [f"module-{number}" for number in range(FITS_MAX + 2)]
    found = judge_fits(
        [version(name) for name in names],
        {f"digest-{name}": [asked(0.5 + number / 100)] for number, name in enumerate(names)},
        POLICY,
    )
    assert [fit.name for fit in found] == names[: -FITS_MAX - 1 : -1]
    assert all("below 0.8" in fit.reason for fit in found)
