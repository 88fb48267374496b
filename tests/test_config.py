"""Every setting is typed, named when it is wrong, and the same in a child process."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memserve.config import (
    CLIENT_SETTINGS,
    PREFIX,
    SETTINGS_DIR,
    SETTINGS_FILE,
    Settings,
    changed_settings,
    child_environment,
    load_settings,
)
from memserve.errors import StartupError


def refusal(environment: dict[str, str], **flags: Any) -> str:
    with pytest.raises(StartupError) as refused:
        load_settings(environment, **flags)
    return str(refused.value)


def test_without_an_environment_every_setting_has_its_default() -> None:
    assert load_settings({}) == Settings()


def test_flags_go_over_the_environment_and_the_environment_over_the_defaults() -> None:
    environment = {"MEMSERVE_PORT": "1", "MEMSERVE_WORKERS": "3", "PORT": "9", "memserve_port": "8"}
    settings = load_settings(environment, port=2, host=None)
    assert (settings.port, settings.workers, settings.host) == (2, 3, "127.0.0.1")


@pytest.mark.parametrize(
    ("variable", "hint"),
    [
        ("MEMSERVE_MAX_LORA_RANKS", "did you mean MEMSERVE_MAX_LORA_RANK?"),
        ("MEMSERVE_PROT", "did you mean MEMSERVE_PORT?"),
        ("MEMSERVE_REDIS_URI", "did you mean MEMSERVE_REDIS_URL?"),
        ("MEMSERVE_XYZZY", "`memserve settings` lists the known ones"),
        ("MEMSERVE_", "`memserve settings` lists the known ones"),
    ],
)
def test_a_misspelt_setting_is_refused_by_name_with_a_hint(variable: str, hint: str) -> None:
    message = refusal({variable: "1"})
    assert f"unknown setting {variable}" in message
    assert hint in message


def test_a_misspelt_flag_is_refused_by_name() -> None:
    assert "max_lora_ranks" in refusal({}, max_lora_ranks=8)


@pytest.mark.parametrize(
    ("name", "value"),
    [("port", "65536"), ("port", "-1"), ("port", "http"), ("workers", "0"), ("workers", "1.5"),
     ("block_tokens", "8"),
     ("lease_s", "nan"), ("lease_s", "0.5"), ("lease_s", "inf"), ("shutdown_grace_s", "nan"),
     ("shutdown_grace_s", "-1"),
     ("kv_ttl_s", "0"), ("max_inflight", ""), ("recall_limit", "65"), ("max_lora_rank", "513"),
     ("cache_max_bytes", "1GB"),
     ("kv_codec", "int4"), ("kv_codec", "")],
)  # fmt: skip
def test_a_value_that_breaks_a_rule_is_refused_by_its_setting(name: str, value: str) -> None:
    message = refusal({PREFIX + name.upper(): value})
    assert message.startswith(f"setting {name}: ")
    assert value in message
    assert "\n" not in message


def test_the_clients_own_settings_are_not_the_servers() -> None:
    assert load_settings({PREFIX + name.upper(): "x" for name in CLIENT_SETTINGS}) == Settings()
    assert not CLIENT_SETTINGS & set(Settings.model_fields)


def test_secrets_are_in_no_text_of_the_settings() -> None:
    settings = Settings(redis_url="redis://:hunter2@host", salt_key="hunter2")
    assert "hunter2" not in repr(settings) + str(settings) + settings.model_dump_json() + str(
        settings.model_dump()
    )
    assert settings.redis == "redis://:hunter2@host"


def test_a_refusal_quotes_no_secret() -> None:
    assert "hunter2" not in refusal(
        {"MEMSERVE_SALT_KEY": "hunter2", "MEMSERVE_REDIS_URL": "redis://:hunter2@host", "MEMSERVE_PORT": "x"}
    )


@pytest.mark.parametrize("scheme", ["redis+cluster", "rediss+cluster", "redis+sentinel", "rediss+sentinel"])
def test_a_cluster_or_sentinels_may_hold_the_cache_and_not_the_registry(scheme: str) -> None:
    url = f"{scheme}://:hunter2@host:1,other:2/service"
    assert load_settings({"MEMSERVE_CACHE_REDIS_URL": url}).cache_redis == url
    message = refusal({"MEMSERVE_REDIS_URL": url})
    assert message.startswith("setting redis_url: ") and f"{scheme}:// is for cache_redis_url only" in message
    assert "hunter2" not in message


def test_settings_do_not_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings().port = 1  # type: ignore[misc]


def test_every_setting_is_described() -> None:
    for name, entry in Settings.model_fields.items():
        assert entry.description, name
        assert entry.description.endswith((".", '".')), name


def test_a_data_directory_is_absolute_and_knows_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Settings().data == tmp_path / ".local/share/memserve"
    assert Settings(data_dir=Path("here")).data == Path(os.getcwd()) / "here"
    assert Settings(data_dir=tmp_path).vector_uri == str(tmp_path / "milvus.db")
    assert Settings(milvus_uri="http://milvus:19530").vector_uri == "http://milvus:19530"


def test_only_changed_settings_are_told_to_a_child() -> None:
    assert changed_settings(Settings()) == {}
    settings = Settings(port=1, salt_key="hunter2", api_keys_file=Path("/keys"), data_dir=Path("/data"))
    assert changed_settings(settings) == {
        "port": 1,
        "salt_key": "hunter2",
        "api_keys_file": Path("/keys"),
        "data_dir": Path("/data"),
    }


def test_no_setting_and_no_secret_stands_in_a_childs_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MEMSERVE_SALT_KEY", "hunter2")
    monkeypatch.setenv("MEMSERVE_API_KEY", "hunter3")
    environment = child_environment(load_settings(), tmp_path / "child.json")
    assert {name for name in environment if name.startswith(PREFIX)} == {SETTINGS_FILE}
    assert "hunter" not in "".join(environment.values())
    assert (tmp_path / "child.json").stat().st_mode & 0o777 == 0o600
    assert load_settings(environment).salt_key.get_secret_value() == "hunter2"


def test_the_environment_goes_over_the_file_of_settings(tmp_path: Path) -> None:
    file = tmp_path / "settings.json"
    file.write_text('{"port": 1, "workers": 3}', encoding="utf-8")
    settings = load_settings({SETTINGS_FILE: str(file), "MEMSERVE_PORT": "2"})
    assert (settings.port, settings.workers) == (2, 3)


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        ("{", "not JSON"),
        ("[]", "object"),
        ('{"prot": 1}', "did you mean port"),
        ('{"port": -1}', "setting port"),
        (None, "No such file"),
    ],
)
def test_a_file_of_settings_that_breaks_a_rule_is_refused(
    tmp_path: Path, content: str | None, rule: str
) -> None:
    file = tmp_path / "settings.json"
    if content is not None:
        file.write_text(content, encoding="utf-8")
    with pytest.raises(StartupError, match=rule):
        load_settings({SETTINGS_FILE: str(file)})


names = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=20)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "data_dir": names.filter(bool).map(lambda name: Path("/tmp") / name.replace("/", "_")),
            "redis_url": names.filter(lambda url: "+" not in url),
            "salt_key": names,
            "host": names,
            "port": st.integers(0, 65535),
            "shutdown_grace_s": st.floats(0, 1e6),
            "lease_s": st.floats(0.5, 1e6, exclude_min=True),
            "workers": st.integers(1, 64),
            "api_keys_file": st.just(Path("/keys.json")),
        },
    )
)
def test_a_child_reads_the_same_settings(given_settings: dict[str, Any]) -> None:
    settings = Settings(**given_settings)
    with tempfile.TemporaryDirectory() as folder:
        assert load_settings(child_environment(settings, Path(folder, "settings.json"))) == settings
    assert Settings(**changed_settings(settings)) == settings


def test_a_directory_holds_settings_as_files(tmp_path: Path) -> None:
    (tmp_path / "port").write_text("1\n", encoding="utf-8")
    (tmp_path / "salt_key").write_text("a secret\n", encoding="utf-8")
    (tmp_path / "..data").mkdir()
    file = tmp_path.with_suffix(".json")
    file.write_text('{"port": 3, "workers": 3}', encoding="utf-8")
    environment = {SETTINGS_DIR: str(tmp_path), SETTINGS_FILE: str(file)}
    settings = load_settings(environment)
    assert (settings.port, settings.workers, settings.salt_key.get_secret_value()) == (1, 3, "a secret")
    assert load_settings({**environment, "MEMSERVE_PORT": "2"}).port == 2


@pytest.mark.parametrize(
    ("name", "content", "rule"),
    [
        ("prot", b"1", "did you mean port?"),
        ("model", b"\xff", "model is not UTF-8"),
        ("model", b"x" * 70_000, "longer than 65536 bytes"),
        ("port", b"http", "setting port: "),
    ],
)
def test_a_setting_in_a_directory_that_breaks_a_rule_is_refused(
    tmp_path: Path, name: str, content: bytes, rule: str
) -> None:
    (tmp_path / name).write_bytes(content)
    assert rule in refusal({SETTINGS_DIR: str(tmp_path)})


def test_a_settings_directory_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert f"{SETTINGS_DIR} {tmp_path}/none: No such file" in refusal({SETTINGS_DIR: f"{tmp_path}/none"})
