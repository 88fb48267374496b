"""Of what the workers' logs say of a start that failed, the first cause is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from memserve.worker.fleet.fleet import _root_cause

FRONT = (
    "vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue. See stack trace (above) "
    "for the root cause."
)
ENGINE = (
    "(EngineCore pid=7) ERROR 11-27 13:06:54 [core.py:1512] AttributeError: module 'triton.language' has "
    "no attribute 'float32'"
)
CAUSE = "AttributeError: module 'triton.language' has no attribute 'float32'"


@pytest.mark.parametrize(
    ("err", "out", "told"),
    [
        (f"Traceback (most recent call last):\n{FRONT}\n", f"INFO fine\n{ENGINE}\n", CAUSE),
        ("RuntimeError: Engine core initialization failed. See root cause above.\n", f"{ENGINE}\n", CAUSE),
        ("ValueError: the first\nValueError: the second\n", "", "ValueError: the first"),
        ("", "", "replica died"),
        (f"{FRONT}\n", "INFO fine\n", "replica died"),
    ],
)
def test_the_first_cause_is_told_and_not_what_it_led_to(
    tmp_path: Path, err: str, out: str, told: str
) -> None:
    (tmp_path / "worker-1.err").write_text(err, encoding="utf-8")
    (tmp_path / "worker-1.out").write_text(out, encoding="utf-8")
    assert _root_cause(tmp_path, "replica died\nand more") == told
