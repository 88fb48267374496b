"""A model is fetched once for a machine: whole, the right one, by one process at a time."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from memserve.config import Settings
from memserve.demo import MODEL_DIR
from memserve.errors import StartupError
from memserve.model.checks import with_models
from memserve.model.fetch.fetching import Wish, fetch
from memserve.model.fetch.progress import Telling, told
from memserve.model.files import ModelFiles, open_model
from tests.model.fetch.model_server import COMMIT, ModelServer, serving

SMALL = ["chat_template.jinja", "config.json", "generation_config.json", "tokenizer.json"]
WEIGHTS = ["a.safetensors", "b.safetensors"]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The demo model's files with its weights twice, among files that are not wanted."""
    folder = tmp_path / "source" / "tiny"
    folder.mkdir(parents=True)
    for name in SMALL:
        shutil.copy(MODEL_DIR / name, folder / name)
    for name in WEIGHTS:
        shutil.copy(MODEL_DIR / "model.safetensors", folder / name)
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    (folder / "modeling.py").write_bytes(b"import os")
    (folder / "extra").mkdir()
    (folder / "extra" / "rag.jinja").write_text("x", encoding="utf-8")
    return folder


@pytest.fixture
def server(model: Path) -> Iterator[ModelServer]:
    with serving(model) as running:
        yield running


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


def names_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def wish(url: str, **fields: Any) -> Wish:
    return Wish(url, pauses_s=(0.0, 0.0), **fields)


def left(data: Path) -> list[str]:
    """The files of models below the data directory, without memserve's own notes."""
    notes = ("lock", "model.json", "partial.json", "manifest.json")
    return [name for name in names_in(data) if not name.endswith(notes)]


# What is fetched


def test_a_model_is_fetched_from_a_directory_of_a_store(model: Path, data: Path) -> None:
    path = fetch(wish(model.as_uri()), data)
    assert names_in(path) == [*WEIGHTS, *SMALL[:2], "extra/rag.jinja", *SMALL[2:]]
    assert path.name == "tiny"
    assert ModelFiles(path, 0, {}).model_digest() == ModelFiles(model, 0, {}).model_digest()
    assert open_model(path).tokenizer_digest() == open_model(model).tokenizer_digest()
    assert path.stat().st_mode & 0o077 == 0
    shutil.rmtree(model)
    assert fetch(wish(model.as_uri()), data) == path, "the store is asked once"


def test_a_model_is_fetched_from_memory(model: Path, data: Path) -> None:
    store = fsspec.filesystem("memory")
    store.put(str(model), "/models/tiny", recursive=True)
    try:
        assert names_in(fetch(wish("memory://models/tiny"), data))[: len(WEIGHTS)] == WEIGHTS
    finally:
        store.rm("/models", recursive=True)


def test_a_gateway_fetches_no_weights_and_takes_a_whole_model_where_one_is(
    server: ModelServer, data: Path
) -> None:
    small = fetch(wish(server.url, weights=False), data)
    assert names_in(small) == sorted([*SMALL, "extra/rag.jinja"])
    assert not set(server.gets) & {*WEIGHTS, "pytorch_model.bin", "modeling.py"}
    whole = fetch(wish(server.url), data)
    assert fetch(wish(server.url, weights=False), data) == whole


def test_settings_name_the_directory_of_what_was_fetched(server: ModelServer, data: Path) -> None:
    settings = Settings(data_dir=data, model=server.url, model_digest=digest_of(server.folder))
    found = Path(with_models(settings).model)
    assert found.is_dir() and found.is_relative_to(data)
    assert with_models(Settings(data_dir=data)).model == str(MODEL_DIR)


def test_how_far_it_is_is_told(data: Path) -> None:
    seen: list[tuple[int, int]] = []
    with told("m", 10, lambda: 4, Telling(moved=lambda done, total: seen.append((done, total)))):
        deadline_s = time.monotonic() + 10
        while not seen and time.monotonic() < deadline_s:
            time.sleep(0.01)
    assert seen[0] == (4, 10)


# What goes wrong


def digest_of(folder: Path) -> str:
    return ModelFiles(folder, 0, {}).model_digest()


def test_a_file_that_is_cut_off_on_its_way_is_fetched_again(server: ModelServer, data: Path) -> None:
    server.cut_off["a.safetensors"] = 2
    path = fetch(wish(server.url, digest=digest_of(server.folder)), data)
    assert server.gets["a.safetensors"] == 3
    assert server.gets["b.safetensors"] == 1
    assert digest_of(path) == digest_of(server.folder)


def test_a_file_that_is_always_cut_off_is_given_up_and_the_whole_files_stay(
    server: ModelServer, data: Path
) -> None:
    server.cut_off["b.safetensors"] = 9
    with pytest.raises(StartupError, match=r"cannot be fetched \(3 tries\): b\.safetensors"):
        fetch(wish(server.url), data)
    server.cut_off.clear()
    fetch(wish(server.url), data)
    assert server.gets["a.safetensors"] == 1
    assert server.gets["b.safetensors"] == 4


def test_a_file_that_changes_between_two_tries_is_fetched_again(server: ModelServer, data: Path) -> None:
    server.cut_off["b.safetensors"] = 9
    with pytest.raises(StartupError):
        fetch(wish(server.url), data)
    server.cut_off.clear()
    weights = server.folder / "a.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"new!")
    path = fetch(wish(server.url), data)
    assert (path / "a.safetensors").read_bytes().endswith(b"new!")


def test_weights_that_are_damaged_in_the_store_are_refused_and_nothing_is_kept(
    server: ModelServer, data: Path
) -> None:
    weights = server.folder / "b.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(StartupError, match=r"b\.safetensors is damaged or cut off.*nothing of it is kept"):
        fetch(wish(server.url), data)
    assert left(data) == []


@pytest.mark.parametrize(
    ("name", "without", "says"),
    [
        (
            "pytorch_model.bin",
            "*.safetensors",
            r"no weights in safetensors.*; pytorch_model\.bin is a pickle",
        ),
        ("b.gguf", "*.safetensors", r"b\.gguf is GGUF: bring the file here.*`memserve models convert`"),
        ("b.gguf", "config.json", r"there is no config\.json, so it is no model; b\.gguf is GGUF"),
    ],
)
def test_a_store_with_other_weights_alone_says_what_to_do(
    server: ModelServer, data: Path, name: str, without: str, says: str
) -> None:
    for file in server.folder.glob(without):
        file.unlink()
    (server.folder / name).write_bytes(b"x")
    with pytest.raises(StartupError, match=says):
        fetch(wish(server.url), data)
    assert left(data) == [] and name not in server.gets


def test_another_digest_is_refused_with_both_and_nothing_is_kept(server: ModelServer, data: Path) -> None:
    wrong = "0" * 64
    with pytest.raises(StartupError, match=f"{digest_of(server.folder)}.*{wrong}.*nothing"):
        fetch(wish(server.url, digest=wrong), data)
    assert left(data) == []


def test_a_wrong_digest_does_not_cost_a_model_that_is_there(server: ModelServer, data: Path) -> None:
    path = fetch(wish(server.url), data)
    with pytest.raises(StartupError, match="has the digest"):
        fetch(wish(server.url, digest="0" * 64), data)
    assert path.is_dir()
    assert server.gets["a.safetensors"] == 1, "the store has the same files, so they were not fetched again"


def test_a_model_that_has_changed_in_the_store_is_fetched_when_its_digest_is_asked_for(
    server: ModelServer, data: Path
) -> None:
    path = fetch(wish(server.url), data)
    config = server.folder / "config.json"
    config.write_text(config.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    assert fetch(wish(server.url), data) == path
    assert server.gets["config.json"] == 1
    assert fetch(wish(server.url, digest=digest_of(server.folder)), data) == path
    assert digest_of(path) == digest_of(server.folder)
    assert left(data) == [f"models/{path.parent.name}/tiny/{name}" for name in names_in(path)]


def test_a_directory_with_another_digest_is_refused(tmp_path: Path) -> None:
    for weights in (True, False):
        with pytest.raises(StartupError, match=f"{digest_of(MODEL_DIR)}.*model_digest is {'1' * 64}"):
            with_models(Settings(data_dir=tmp_path, model_digest="1" * 64), weights=weights)
    with_models(Settings(data_dir=tmp_path, model_digest=digest_of(MODEL_DIR)))


def test_a_disk_without_room_is_found_before_anything_is_fetched(server: ModelServer, data: Path) -> None:
    with pytest.raises(StartupError, match=r"needs .* MB, and the disk of data_dir has 0 B to give"):
        fetch(wish(server.url, reserve_bytes=1 << 60), data)
    assert not server.gets


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("{url}/nowhere", "cannot be fetched"),
        ("{url}/extra", "no config.json"),
        ("{folder}/nowhere", "cannot be fetched|no config.json"),
        ("s4://bucket/m", "Protocol not known"),
        ("memory://nowhere", "no config.json"),
    ],
)
def test_a_store_without_the_model_is_asked_once(
    server: ModelServer, data: Path, name: str, says: str
) -> None:
    with pytest.raises(StartupError, match=says) as refused:
        fetch(Wish(name.format(url=server.url, folder=server.folder.parent.as_uri()), pauses_s=(60.0,)), data)
    assert "\n" not in str(refused.value)


# Processes


def run(data: Path, *arguments: str, **variables: str) -> subprocess.Popen[str]:
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("MEMSERVE_", "HF_"))
    }
    return subprocess.Popen(
        [sys.executable, "-m", "memserve", "models", *arguments, "--data-dir", str(data)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        env={**environment, **variables},
    )


def printed(process: subprocess.Popen[str]) -> str:
    output, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    return output.strip()


@pytest.mark.timeout(120)
def test_two_processes_fetch_a_model_once(server: ModelServer, data: Path) -> None:
    server.stalled = "a.safetensors"
    first = run(data, "fetch", server.url)
    assert server.reached.wait(60)
    second = run(data, "fetch", server.url)
    assert second.stderr is not None
    assert "another process fetches or converts tiny" in second.stderr.readline()
    server.go_on.set()
    paths = {printed(first), printed(second)}
    assert len(paths) == 1
    assert open_model(Path(paths.pop())).checked_weights() == 2
    assert set(server.gets.values()) == {1}


@pytest.mark.timeout(120)
def test_a_fetch_that_is_killed_frees_the_way_and_is_taken_up(server: ModelServer, data: Path) -> None:
    server.stalled = "b.safetensors"
    killed = run(data, "fetch", server.url, "--json")
    assert server.reached.wait(60)
    killed.send_signal(signal.SIGKILL)
    killed.communicate(timeout=30)
    assert not any("/tiny/" in name for name in left(data)), "half of a model has no model's name"
    server.stalled = ""
    server.go_on.set()
    path = Path(json.loads(printed(run(data, "fetch", server.url, "--json")))["path"])
    assert digest_of(path) == digest_of(server.folder)
    assert (server.gets["a.safetensors"], server.gets["b.safetensors"]) == (1, 2)


@pytest.mark.timeout(120)
def test_a_hugging_face_name_is_fetched_from_the_hub_at_one_commit(server: ModelServer, data: Path) -> None:
    hub = f"http://127.0.0.1:{server.server_port}"
    variables = {"HF_ENDPOINT": hub, "HF_HOME": str(data / "hf"), "HF_HUB_DISABLE_XET": "1"}
    path = Path(printed(run(data, "fetch", "org/tiny", **variables)))
    assert path.name == "tiny"
    assert digest_of(path) == digest_of(server.folder)
    assert not set(server.gets) & {"pytorch_model.bin", "modeling.py"}
    wrong = run(data, "fetch", "org/other", **variables)
    said = wrong.communicate(timeout=60)[1]
    assert "cannot be fetched: Hugging Face: " in said
    assert "name a mirror in HF_ENDPOINT, or copy the model's directory to this machine" in said
    assert wrong.returncode == 1
    offline = run(data / "other", "fetch", "org/tiny", **variables, HF_HUB_OFFLINE="1")
    assert "HF_HUB_OFFLINE is set" in offline.communicate(timeout=60)[1]


@pytest.mark.timeout(120)
def test_what_hugging_faces_own_cache_has_is_not_fetched_again(model: Path, data: Path) -> None:
    repository = data / "hf" / "hub" / "models--org--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT, encoding="utf-8")
    shutil.copytree(model, repository / "snapshots" / COMMIT)
    nowhere = {"HF_ENDPOINT": "http://127.0.0.1:1", "HF_HOME": str(data / "hf")}
    path = Path(printed(run(data, "fetch", "org/tiny", **nowhere)))
    assert path.name == "tiny", "clients see this name, not that of a commit"
    assert path.resolve() == repository / "snapshots" / COMMIT


def test_the_digest_of_a_directory_is_printed(model: Path) -> None:
    from typer.testing import CliRunner

    from memserve.cli.app import app

    assert CliRunner().invoke(app, ["models", "digest", str(model)]).output.strip() == digest_of(model)
    assert isinstance(
        CliRunner().invoke(app, ["models", "digest", str(model.parent)]).exception, StartupError
    )
