"""The fuzzers, each in a process of its own, and what they count."""

from __future__ import annotations

import base64
import mmap
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from enum import IntEnum
from functools import partial
from pathlib import Path
from typing import Final

from hypothesis import HealthCheck, Phase, given, seed, settings

from loadtests.harness.figures import report
from loadtests.kv.kv_fuzz.chunks import check_chunk
from loadtests.kv.kv_fuzz.faults import Hang, WrongValue
from loadtests.kv.kv_fuzz.inputs import cases, seeds
from loadtests.kv.kv_fuzz.reader import check_reader
from loadtests.kv.kv_fuzz.stored import check_codec

EXAMPLES = 1000
HANG_S = 10
MAX_INPUT_BYTES = 48 << 10
RSS_LIMIT_MIB = 1024
# libFuzzer's exit status after a case that took longer than -timeout.
LIBFUZZER_TIMEOUT: Final = 70


class Count(IntEnum):
    """What is counted for each fuzzer and check. Values are accepted; values and streams are refused."""

    CASES = 0
    ACCEPTED = 1
    REFUSED = 2
    CRASHES = 3
    HANGS = 4
    WRONG = 5


CHECKS: Final[dict[str, Callable[[bytes], tuple[int, int]]]] = {
    "reader": check_reader,
    "codec": check_codec,
    "chunk": check_chunk,
}


def open_tally(path: Path) -> memoryview:
    """[len(Count)] numbers in a file, which outlive the process that counts."""
    with path.open("r+b") as file:
        return memoryview(mmap.mmap(file.fileno(), 8 * len(Count))).cast("Q")


def check_and_count(check: str, tally: memoryview, case: bytes) -> None:
    """Raises what the check raises, so that the fuzzer keeps the case."""
    tally[Count.CASES] += 1
    try:
        accepted, refused = CHECKS[check](case)
    except Exception as error:
        tally[{WrongValue: Count.WRONG, Hang: Count.HANGS}.get(type(error), Count.CRASHES)] += 1
        report(f"{check}: {type(error).__name__}: {error}: {base64.b64encode(case).decode()}")
        raise
    tally[Count.ACCEPTED] += accepted
    tally[Count.REFUSED] += refused


def fuzz_with_hypothesis(check: str, tally: memoryview, lasts_s: float, folder: Path) -> None:
    plan = settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    until_s, rounds = time.monotonic() + lasts_s, 0
    while time.monotonic() < until_s:
        try:
            seed(rounds)(plan(given(cases(check))(lambda case: check_and_count(check, tally, case))))()
        except Exception as error:  # counted and reported already
            report(f"round {rounds}: {type(error).__name__}")
        rounds += 1


def fuzz_with_atheris(check: str, tally: memoryview, lasts_s: float, folder: Path) -> None:
    """Does not return: libFuzzer ends the process."""
    import atheris  # type: ignore[import-untyped]

    corpus = folder / "corpus"
    corpus.mkdir()
    for number, case in enumerate(seeds(check)):
        (corpus / str(number)).write_bytes(case)
    limits = [
        f"-max_total_time={lasts_s:.0f}",
        f"-timeout={HANG_S}",
        f"-rss_limit_mb={RSS_LIMIT_MIB}",
        f"-max_len={MAX_INPUT_BYTES}",
    ]
    quiet = ["-verbosity=0", "-print_final_stats=0"]
    atheris.Setup(
        [sys.argv[0], *limits, *quiet, f"-artifact_prefix={folder}/", str(corpus)],
        partial(check_and_count, check, tally),
    )
    atheris.Fuzz()


# The program of each fuzzer's process. Atheris sees only the code that is imported under its hook.
PROGRAMS: Final = {
    "hypothesis": (
        "from loadtests.kv.kv_fuzz.fuzzers import fuzz_with_hypothesis as fuzz, run_child\nrun_child(fuzz)"
    ),
    "atheris": (
        "import atheris\n"
        "with atheris.instrument_imports(include=['memserve']):\n"
        "    from loadtests.kv.kv_fuzz.fuzzers import fuzz_with_atheris as fuzz, run_child\n"
        "run_child(fuzz)"
    ),
}


def run_child(fuzz: Callable[[str, memoryview, float, Path], None]) -> None:
    """The whole of a fuzzer's process. Arguments: check, seconds, folder."""
    check, lasts_s, folder = sys.argv[1:]
    fuzz(check, open_tally(Path(folder) / "tally"), float(lasts_s), Path(folder))


def run_fuzzer(fuzzer: str, check: str, lasts_s: float) -> list[int]:
    """Run one fuzzer on one check. Returns [len(Count)] numbers."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tally"
        path.write_bytes(bytes(8 * len(Count)))
        tally = open_tally(path)
        child = subprocess.Popen(
            [sys.executable, "-c", PROGRAMS[fuzzer], check, str(lasts_s), folder], stdout=sys.stderr
        )
        seen, since_s = 0, time.monotonic()
        while child.poll() is None:
            time.sleep(0.2)
            if tally[Count.CASES] != seen:
                seen, since_s = tally[Count.CASES], time.monotonic()
            # Longer than libFuzzer's own limit, which tells more. Before the first case everything is
            # imported.
            elif time.monotonic() - since_s > 3 * HANG_S:
                tally[Count.HANGS] += 1
                child.kill()
                child.wait()
        counts = list(tally)
    if child.returncode == LIBFUZZER_TIMEOUT:
        counts[Count.HANGS] += 1
    elif child.returncode and not sum(counts[Count.CRASHES :]):
        counts[Count.CRASHES] += 1
    report(
        f"{fuzzer}, {check}: {counts[Count.CASES]:,} cases in {lasts_s:.0f} s, exit status {child.returncode}"
    )
    return counts
