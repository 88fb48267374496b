"""`make test` runs its parts at once and fails when any of them does."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.run import run

PASSES = "print('.. [100%]'); print('====== 2 passed in 0.01s ======')"
FAILS = "print('FAILED x.py::test_y'); print('=== 1 failed, 2 passed in 0.01s ==='); raise SystemExit(1)"
TEARDOWN_FAILS = "print('=== 3 passed, 1 error in 0.01s ==='); raise SystemExit(1)"
NOTHING = "print('=== 4 deselected in 0.01s ==='); raise SystemExit(5)"
# A test that ends its own process.
ENDS_EARLY = "print('.. [ 50%]', flush=True); import os; os._exit(0)"
KILLED = "import os; os.kill(os.getpid(), 9)"


def outcome(**programs: str) -> tuple[bool, list[str]]:
    """Whether all passed, and the lines."""
    lines: list[str] = []
    passed = run({name: [sys.executable, "-c", program] for name, program in programs.items()}, lines.append)
    return passed, lines


def test_what_passes_in_both_parts_passes_and_every_line_names_its_part() -> None:
    passed, lines = outcome(engines=PASSES, others=PASSES)
    assert passed
    assert lines.count("engines | .. [100%]") == lines.count("others  | .. [100%]") == 1
    assert lines[-2:] == [
        "engines : 2 passed in 0.01s, exit status 0",
        "others  : 2 passed in 0.01s, exit status 0",
    ]


@pytest.mark.parametrize(
    "program",
    [FAILS, TEARDOWN_FAILS, NOTHING, ENDS_EARLY, KILLED],
    ids=["a test", "a teardown", "no test", "ends early", "killed"],
)
def test_one_part_that_fails_fails_all_and_the_other_runs_to_its_end(program: str) -> None:
    for first, second in ((program, PASSES), (PASSES, program)):
        passed, lines = outcome(engines=first, others=second)
        assert not passed
        assert sum("2 passed in 0.01s, exit status 0" in line for line in lines[-2:]) == 1


def test_what_failed_is_said_again_at_the_end() -> None:
    _, lines = outcome(engines=FAILS, others=PASSES)
    assert lines[-3] == "FAILED x.py::test_y"


def test_the_parts_run_at_the_same_time(tmp_path: Path) -> None:
    """Each waits for the other."""
    meet = "import pathlib, time; folder = pathlib.Path({folder!r}); (folder / {mine!r}).touch()\n"
    meet += "while not (folder / {other!r}).exists(): time.sleep(0.01)\n" + PASSES
    folder = str(tmp_path)
    passed, _ = outcome(
        engines=meet.format(folder=folder, mine="a", other="b"),
        others=meet.format(folder=folder, mine="b", other="a"),
    )
    assert passed


def test_what_a_part_leaves_behind_does_not_hold_up_the_end(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tests.run.LAST_LINES_TIMEOUT_S", 1.0)
    ended = tmp_path / "ended"
    left = f"import pathlib, time\nwhile not pathlib.Path({str(ended)!r}).exists(): time.sleep(0.01)"
    leaves = f"{PASSES}; import subprocess, sys; sys.stdout.flush(); "
    leaves += f"subprocess.Popen([sys.executable, '-c', {left!r}])"
    assert outcome(engines=leaves, others=PASSES)[0]
    ended.touch()
