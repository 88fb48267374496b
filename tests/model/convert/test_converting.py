"""A model is converted once for a machine: whole, the right one, by one process at a time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from memserve.demo import MODEL_DIR
from memserve.errors import StartupError
from memserve.model.convert.converting import Conversion, check_room, convert, digest_of
from memserve.model.fetch.progress import Telling
from memserve.model.files import ModelFiles
from memserve.model.known import converted_place
from tests.model.convert.tiny_gguf import TinyGguf

FAKE = Path(__file__).with_name("fake_converter.py")
ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return TinyGguf().write(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


def conversion(file: Path, manner: str = "well", **fields: Any) -> Conversion:
    """One whose process writes the demo model in place of the file's."""
    command = (sys.executable, str(FAKE), manner)
    return Conversion(
        **{"name": "tiny", "file": file, "source": "a test", "dtype": "float32"} | fields, command=command
    )


def names_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_a_model_is_converted_once_and_its_manifest_says_what_it_is(file: Path, data: Path) -> None:
    said: list[str] = []
    path = convert(conversion(file), data, Telling(said.append))
    assert path == data / "models" / "tiny" / "tiny"
    manifest = converted_place(data, "tiny").manifest
    assert manifest is not None
    assert manifest.digest == ModelFiles(MODEL_DIR, 0, {}).model_digest()
    assert (manifest.source, manifest.source_digest) == ("a test", digest_of(file))
    assert (manifest.dtype, manifest.architecture) == ("float32", "LlamaForCausalLM")
    assert manifest.size_bytes == sum((path / name).stat().st_size for name in names_in(path))
    assert "gguf 0.19" in manifest.made_by and manifest.made_at.endswith("+00:00")
    assert said[0] == "converting tiny: 20 tensors, 314 kB in float32, from a test"
    assert said[-1].startswith("converted tiny in ")
    before = path.stat().st_ino
    assert convert(conversion(file, "dies"), data) == path
    assert path.stat().st_ino == before, "it was not made again"
    assert convert(conversion(file, again=True), data).stat().st_ino != before


def test_a_bar_goes_up_to_the_whole(file: Path, data: Path) -> None:
    seen: list[tuple[int, int]] = []
    convert(conversion(file), data, Telling(moved=lambda done, total: seen.append((done, total))))
    assert {total for _, total in seen} == {78464 * 4}
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1][0] > 78464 * 2


@pytest.mark.parametrize(
    ("manner", "says"),
    [
        ("refuses", "the header lies"),
        ("dies", "has ended early, with 7; is there enough memory"),
        ("cuts off", "damaged or cut off"),
    ],
)
def test_a_conversion_that_fails_leaves_nothing(file: Path, data: Path, manner: str, says: str) -> None:
    with pytest.raises(StartupError, match=says):
        convert(conversion(file, manner), data)
    assert names_in(data) == ["models/tiny/lock"]


def test_a_failed_conversion_costs_no_model_that_is_there(file: Path, data: Path) -> None:
    path = convert(conversion(file), data)
    with pytest.raises(StartupError):
        convert(conversion(file, "dies", again=True), data)
    assert ModelFiles(path, 0, {}).checked_weights() == 1


def test_a_model_without_a_template_is_made_and_says_what_it_needs(file: Path, data: Path) -> None:
    said: list[str] = []
    convert(conversion(file, "without template"), data, Telling(said.append))
    assert any("note: " in line and "--chat-template" in line for line in said)


def test_another_model_does_not_take_a_name_that_is_taken(file: Path, data: Path, tmp_path: Path) -> None:
    convert(conversion(file), data)
    other = TinyGguf(kind="Q8_0").write(tmp_path / "other.gguf")
    for wish in (conversion(other), conversion(file, dtype="bfloat16")):
        with pytest.raises(StartupError, match=r"a model tiny already, from a test in float32; .*--again"):
            convert(wish, data)
    with pytest.raises(StartupError, match=r"has the digest .*and model_digest is 0000"):
        convert(conversion(file, digest="0" * 64), data)


def test_another_digest_is_refused_with_both(file: Path, data: Path) -> None:
    with pytest.raises(
        StartupError, match=r"has the digest .*, and model_digest is 0000.*nothing of it is kept"
    ):
        convert(conversion(file, digest="0" * 64), data)
    with pytest.raises(StartupError, match=r"has the digest .* it is damaged, or another file"):
        convert(conversion(file, file_digest="0" * 64), data)
    assert names_in(data) == ["models/tiny/lock"]


@pytest.mark.parametrize(
    "name",
    ["../up", "a/b", "", ".hidden", "-x", "x" * 65, "white space", "a\nb", "demo", "0" * 16, "smollm2", "é",
     "lock", "partial", "model.json", "wheel"],
)  # fmt: skip
def test_a_name_that_is_a_path_or_memserves_own_is_refused(file: Path, data: Path, name: str) -> None:
    with pytest.raises(StartupError, match="name "):
        convert(conversion(file, name=name), data)
    assert not data.exists()


def test_nothing_is_written_through_a_link(file: Path, data: Path, tmp_path: Path) -> None:
    (data / "models").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (data / "models" / "tiny").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StartupError, match="is a link"):
        convert(conversion(file), data)
    assert names_in(tmp_path / "elsewhere") == []


def test_a_disk_without_room_is_found_before_anything_is_made(file: Path, data: Path) -> None:
    with pytest.raises(
        StartupError, match=r"tiny needs 67\.4 MB in float32, and the disk .* has 0 B to give"
    ):
        convert(conversion(file, reserve_bytes=1 << 60), data)
    assert names_in(data) == ["models/tiny/lock"]


def test_a_machine_with_too_little_memory_is_found_too(file: Path) -> None:
    wish = conversion(file)
    check_room(wish, 10**9, 10 << 30, 20 << 30)
    check_room(wish, 10**9, 10 << 30, None)
    with pytest.raises(StartupError, match=r"needs about 9\.61 GB of memory, and 4\.29 GB are free"):
        check_room(wish, 10**9, 10 << 30, 4 << 30)


def run(file: Path, data: Path, manner: str) -> subprocess.Popen[str]:
    code = (
        "import sys; from pathlib import Path; from tests.model.convert.test_converting import conversion; "
        "from memserve.model.convert.converting import convert; from memserve.model.fetch.progress import *; "
        "print(convert(conversion(Path(sys.argv[1]), sys.argv[3]), Path(sys.argv[2]), "
        "Telling(lambda line: print(line, file=sys.stderr, flush=True))))"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, str(file), str(data), manner],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )


def wait_for(file: Path) -> None:
    deadline_s = time.monotonic() + 60
    while not file.exists():
        assert time.monotonic() < deadline_s, file
        time.sleep(0.02)


@pytest.mark.timeout(120)
def test_a_conversion_that_is_killed_leaves_no_model_and_the_next_begins_anew(file: Path, data: Path) -> None:
    partial = data / "models" / "tiny" / "partial"
    killed = run(file, data, "stalls")
    wait_for(partial / "config.json")
    second = run(file, data, "well")
    assert second.stderr is not None
    assert "another process fetches or converts tiny" in second.stderr.readline()
    assert not converted_place(data, "tiny").is_complete
    killed.send_signal(signal.SIGKILL)
    killed.communicate(timeout=30)
    output, said = second.communicate(timeout=60)
    assert second.returncode == 0, said
    assert ModelFiles(Path(output.strip()), 0, {}).checked_weights() == 1
    assert not partial.exists()


@pytest.mark.timeout(120)
def test_two_processes_convert_a_model_once(file: Path, data: Path) -> None:
    processes = [run(file, data, "well") for _ in range(2)]
    ended = [process.communicate(timeout=60) for process in processes]
    assert {output for output, _ in ended} == {f"{data / 'models' / 'tiny' / 'tiny'}\n"}
    assert sum("converted tiny in" in said for _, said in ended) == 1
