"""`memserve models list`: what is here, and whether it can be served."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from memserve.cli.app import app
from memserve.demo import MODEL_DIR
from memserve.model.fetch.fetching import Wish, fetch
from memserve.model.files import ModelFiles
from memserve.model.known import PACKAGED, converted_place
from memserve.model.listing import ListedModel, listed_models
from memserve.model.manifest import MANIFEST, manifest_of, read_manifest
from tests.model.convert.test_choosing import have


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


def listed(data: Path, *, verify: bool = False) -> dict[str, ListedModel]:
    return {model.name: model for model in listed_models(data, verify=verify)}


def test_the_bundled_model_and_those_of_packages_are_always_listed(data: Path) -> None:
    models = listed(data)
    demo = models.pop("demo")
    assert (demo.why_not, demo.digest) == ("", ModelFiles(MODEL_DIR, 0, {}).model_digest())
    assert (demo.dtype, demo.context_tokens, demo.path) == ("float32", 8192, str(MODEL_DIR))
    assert models.keys() == PACKAGED.keys()
    for name, model in models.items():
        assert (model.path, model.digest) == ("", "")
        assert (model.why_not == "") == (PACKAGED[name].found(data) is not None)


def test_a_converted_and_a_fetched_model_are_listed_by_what_model_takes(data: Path, tmp_path: Path) -> None:
    source = tmp_path / "tiny"
    shutil.copytree(MODEL_DIR, source)
    path = fetch(Wish(source.as_uri()), data)
    fetch(Wish(f"{source.as_uri()}/", weights=False), data / "other")
    have(data, "mine")
    models = listed(data)
    assert (models["mine"].source, models["mine"].why_not) == ("a test", "")
    fetched = models[source.as_uri()]
    assert (fetched.path, fetched.digest, fetched.why_not) == (str(path), models["demo"].digest, "")
    assert fetched.size_bytes == sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    (small,) = [model for name, model in listed(data / "other").items() if "(no weights)" in name]
    assert small.why_not == "the tokenizer alone, for a gateway"


def test_what_is_damaged_unfinished_or_not_served_says_why(data: Path) -> None:
    have(data, "cut")
    weights = converted_place(data, "cut").model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    have(data, "mamba")
    config = converted_place(data, "mamba").model / "config.json"
    value = json.loads(config.read_text(encoding="utf-8")) | {"architectures": ["MambaForCausalLM"]}
    config.write_text(json.dumps(value), encoding="utf-8")
    have(data, "no-json")
    (converted_place(data, "no-json").model / "config.json").write_text("{", encoding="utf-8")
    place = converted_place(data, "half")
    place.partial.parent.mkdir(parents=True)
    place.fresh_partial()
    models = listed(data)
    assert models["cut"].why_not == "model.safetensors is damaged or cut off"
    assert models["mamba"].why_not.startswith("config.json: memserve serves no MambaForCausalLM")
    assert "config.json is not JSON" in models["no-json"].why_not
    assert models["half"].why_not == "it is being made, or was ended: run the command again"


def test_a_changed_weight_is_found_when_it_is_looked_for(data: Path) -> None:
    weights = have(data, "mine") / "model.safetensors"
    assert listed(data, verify=True)["mine"].why_not == ""
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert listed(data)["mine"].why_not == ""
    assert "have changed since it was made" in listed(data, verify=True)["mine"].why_not


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{}", b'{"format": 2}', b"\xff", b'{"format": true}', b"[" * 60_000]
)
def test_a_manifest_that_cannot_be_read_costs_no_model(data: Path, content: bytes) -> None:
    folder = have(data, "mine").parent
    assert read_manifest(folder) is not None
    (folder / MANIFEST).write_bytes(content)
    assert read_manifest(folder) is None
    mine = listed(data, verify=True)["mine"]
    assert (mine.source, mine.why_not, mine.digest) == ("an earlier memserve", "", "")


@pytest.mark.parametrize(
    "config",
    [
        b"[" * 100_000,
        b'{"architectures": 5}',
        b'{"architectures": [{"a": 1}]}',
        b'{"architectures": {"a": 1}}',
    ],
)
def test_a_strange_configuration_costs_no_list(data: Path, config: bytes) -> None:
    have(data, "odd")
    place = converted_place(data, "odd")
    (place.model / "config.json").write_bytes(config)
    (place.model.parent / MANIFEST).unlink()
    model = listed(data)["odd"]
    assert model.why_not and model.architecture == ""


def test_links_and_other_things_in_the_folder_are_left_alone(data: Path, tmp_path: Path) -> None:
    have(tmp_path / "elsewhere", "theirs")
    (data / "models").mkdir(parents=True)
    (data / "models" / "theirs").symlink_to(tmp_path / "elsewhere" / "models" / "theirs")
    (data / "models" / "note.txt").write_text("x", encoding="utf-8")
    (data / "models" / "empty").mkdir()
    assert listed(data).keys() == {"demo", *PACKAGED}


def test_the_command_prints_a_table_or_json(data: Path) -> None:
    have(data, "mine")
    arguments = ["models", "list", "--data-dir", str(data)]
    table = CliRunner().invoke(app, arguments).output
    assert "mine" in table and manifest_of(MODEL_DIR, "", weights=True).digest[:12] in table
    models = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).output)["models"]
    assert [model["name"] for model in models] == ["demo", "mine", "smollm2"]
