"""What became of answers with a module: bounded, whatever tenants publish and ask for."""

from __future__ import annotations

from memserve.gateway.outcomes import OutcomeCounts, Outcomes


def test_only_the_most_recently_used_modules_are_remembered() -> None:
    counts = OutcomeCounts(kept=3)
    for number in range(1000):
        counts.add("canary", answered=1)
        counts.add(f"module {number}", answered=1, refused=2)
    assert len(counts) == 3
    assert counts.of("canary") == Outcomes(1000, 0)
    assert counts.of("module 999") == Outcomes(1, 2)
    assert counts.of("module 0") == Outcomes()


def test_a_count_that_has_begun_anew_is_taken_whole() -> None:
    assert Outcomes(12, 3).since(Outcomes(10, 1)) == Outcomes(2, 2)
    assert Outcomes(2, 1).since(Outcomes(10, 1)) == Outcomes(2, 1)
