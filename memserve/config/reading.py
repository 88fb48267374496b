"""Where settings come from. The only reader of memserve's environment variables, `MEMSERVE_<NAME>`.

Flags of the command line count more than the environment. The environment counts more than the directory that
MEMSERVE_SETTINGS_DIR names, the directory more than the file that MEMSERVE_SETTINGS_FILE names, and the file
more than the defaults. A misspelt setting is refused by name.
"""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import SecretStr, ValidationError

from memserve.config.settings import Settings
from memserve.errors import StartupError
from memserve.private_files import keep_private

PREFIX = "MEMSERVE_"
# Names a JSON file with settings by their names. Secrets are better kept there than in the environment.
SETTINGS_FILE = "MEMSERVE_SETTINGS_FILE"
# Names a directory with a file for each setting, by its name: a mounted Secret of Kubernetes.
SETTINGS_DIR = "MEMSERVE_SETTINGS_DIR"
MAX_SETTING_BYTES = 64 * 1024
# The command line reads these for its client commands. No server has them.
CLIENT_SETTINGS = {"address", "api_key", "tls_ca_file", "tls_client_cert_file", "tls_client_key_file"}
_PASSWORD = re.compile(r"//[^/@\s]*@")
# By this environment variable every process of a `memserve up` carries its data directory.
STACK_MARK = "_MEMSERVE_STACK"


def load_settings(environment: Mapping[str, str] | None = None, **flags: Any) -> Settings:
    """Read the settings from the file, the directory, the environment and the flags.

    flags: by setting; None means not set.
    Raises StartupError that names the setting and its rule.
    """
    environment = os.environ if environment is None else environment
    values = _of_file(environment[SETTINGS_FILE]) if environment.get(SETTINGS_FILE) else {}
    if environment.get(SETTINGS_DIR):
        values.update(_of_directory(environment[SETTINGS_DIR]))
    for variable, value in environment.items():
        name = variable.removeprefix(PREFIX).lower()
        elsewhere = variable in (SETTINGS_FILE, SETTINGS_DIR) or name in CLIENT_SETTINGS
        if not variable.startswith(PREFIX) or elsewhere:
            continue
        _check_known(variable, name)
        values[name] = value
    values.update({name: value for name, value in flags.items() if value is not None})
    try:
        return Settings(**values)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else "settings"
        # A rule over several settings has no name, and all settings as its input, secrets among them.
        secret = not first["loc"] or (
            name in Settings.model_fields and Settings.model_fields[name].annotation is SecretStr
        )
        given = _PASSWORD.sub("//…@", repr(first.get("input")))
        value_text = "" if secret else f" (given: {given})"
        raise StartupError(f"setting {name}: {first['msg']}{value_text}") from None


def changed_settings(settings: Settings) -> dict[str, Any]:
    """The settings that differ from the defaults, as plain values. Secrets are revealed."""
    changed = {
        name: getattr(settings, name)
        for name, entry in Settings.model_fields.items()
        if getattr(settings, name) != entry.default
    }
    return {
        name: value.get_secret_value() if isinstance(value, SecretStr) else value
        for name, value in changed.items()
    }


def child_environment(settings: Settings, file: Path) -> dict[str, str]:
    """The environment of a child process with these settings.

    The settings go through a file that only its owner can read. A process hands its environment on to its own
    children, so that no secret may stand there.

    Raises OSError when the file cannot be written.
    """
    keep_private(file, json.dumps(changed_settings(settings), default=str).encode())
    return {**environment_without_settings(), SETTINGS_FILE: str(file)}


def environment_without_settings() -> dict[str, str]:
    """This process's environment, without memserve's settings and the secrets among them."""
    return {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}


def _of_file(name: str) -> dict[str, Any]:
    """A JSON object of settings by their names. Raises StartupError."""
    try:
        values = json.loads(Path(name).expanduser().read_text(encoding="utf-8"))
    except OSError as error:
        raise StartupError(f"{SETTINGS_FILE} {name}: {error.strerror}") from None
    except ValueError:
        raise StartupError(f"{SETTINGS_FILE} {name} is not JSON") from None
    if not isinstance(values, dict):
        raise StartupError(f"{SETTINGS_FILE} {name} must hold an object of settings")
    for setting in values:
        _check_known(setting, setting)
    return values


def _of_directory(name: str) -> dict[str, str]:
    """The settings that a directory has as files. A newline at a file's end does not count, and names that
    begin with a dot are Kubernetes' own. Raises StartupError.
    """
    values = {}
    try:
        for file in sorted(Path(name).expanduser().iterdir()):
            if file.name.startswith("."):
                continue
            _check_known(file.name, file.name)
            with file.open("rb") as opened:
                content = opened.read(MAX_SETTING_BYTES + 1)
            if len(content) > MAX_SETTING_BYTES:
                raise StartupError(f"{SETTINGS_DIR} {file}: longer than {MAX_SETTING_BYTES} bytes")
            values[file.name] = content.decode().removesuffix("\n")
    except OSError as error:
        raise StartupError(f"{SETTINGS_DIR} {error.filename or name}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise StartupError(f"{SETTINGS_DIR} {name}: {file.name} is not UTF-8") from None
    return values


def _check_known(spelled: str, name: str) -> None:
    """Raises StartupError with the setting that may have been meant."""
    if name in Settings.model_fields:
        return
    close = difflib.get_close_matches(name, Settings.model_fields, n=1)
    meant = (
        f"{PREFIX}{close[0].upper()}" if close and spelled.startswith(PREFIX) else close[0] if close else ""
    )
    hint = f"; did you mean {meant}?" if close else "; `memserve settings` lists the known ones"
    raise StartupError(f"unknown setting {spelled}{hint}")
