"""The file of API keys: who may call, for which tenant, in which role.

memserve writes the sha256 of a key, never the key. A key is shown once, when it is added.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memserve.config import Settings
from memserve.domain import KeyRole, Priority
from memserve.domain.names import is_key_name, is_name, is_sha256
from memserve.errors import InvalidField, StartupError
from memserve.private_files import write_private

_NAME_WORDS = "1 to 64 of letters, digits, '.', '_' and '-', beginning with a letter or a digit"
TENANT_WORDS = "1 to 64 of a-z, 0-9, '.', '_' and '-', beginning with a letter or a digit"
_FIELDS = {"name", "tenant", "role", "sha256", "key", "created_s", "priority"}
KEY_MIN_CHARACTERS = 8
KEYS_MAX = 10_000
FILE_MAX_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key that callers may use, without the key itself."""

    name: str
    """Empty for a key of the short form."""
    tenant: str
    role: KeyRole
    sha256: str
    """Of the key, 64 hex digits."""
    created_s: float = 0.0
    """Seconds since the epoch; 0 where unknown."""
    priority: Priority = Priority.NORMAL
    """The highest that its requests may have."""


def keys_file(settings: Settings) -> Path:
    """The configured file, else `keys.json` in data_dir, which need not exist."""
    return settings.api_keys_file or settings.data / "keys.json"


def read_keys(file: Path, *, must_exist: bool) -> list[ApiKey] | None:
    """The keys of the file. None: it does not exist and need not, so that every caller is the tenant
    `default`.

    The file holds {"keys": [{"name", "tenant", "role", "sha256", "created_s", "priority"}, …]}. "created_s"
    and "priority" may be left out, and "key" may stand in place of "sha256". The short form
    {"key": "tenant", …} gives each key the role `write`.

    Raises StartupError that names the entry and the rule.
    """
    try:
        if file.stat().st_size > FILE_MAX_BYTES:
            raise StartupError(f"api_keys_file {file} is larger than {FILE_MAX_BYTES} bytes")
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if must_exist:
            raise StartupError(f"api_keys_file {file} does not exist; `memserve keys add` makes it") from None
        return None
    except OSError as error:
        raise StartupError(f"api_keys_file {file}: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise StartupError(f"api_keys_file {file} is not JSON") from None
    try:
        return _keys(content)
    except ValueError as error:
        raise StartupError(f"api_keys_file {file}: {error}") from None


def add_key(
    file: Path, name: str, tenant: str, role: KeyRole, now_s: float, priority: Priority = Priority.NORMAL
) -> str:
    """Add a new key to the file. Creates the file where it does not exist.

    Returns the key. The file has only its sha256, so that the key cannot be read again.

    Raises InvalidField for a name or a tenant that breaks a rule, for a name that is taken, and for a full
    file. Raises StartupError for a file that cannot be used.
    """
    if not is_key_name(name):
        raise InvalidField("name", f"must be {_NAME_WORDS}")
    if not is_name(tenant):
        raise InvalidField("tenant", f"must be {TENANT_WORDS}")
    with _held(file):
        keys = read_keys(file, must_exist=False) or []
        if any(key.name == name for key in keys):
            raise InvalidField("name", f"{name!r} is taken; revoke that key first or use another name")
        if len(keys) >= KEYS_MAX:
            raise InvalidField("name", f"the file has {KEYS_MAX} keys already, which is the most")
        made = f"ms-{secrets.token_urlsafe(32)}"
        keys.append(ApiKey(name, tenant, role, _digest(made), now_s, priority))
        _write(file, keys)
        return made


def revoke_key(file: Path, name: str) -> ApiKey:
    """Remove a key from the file.

    Raises InvalidField when no key has that name, and StartupError for a file that cannot be used.
    """
    with _held(file):
        keys = read_keys(file, must_exist=True) or []
        revoked = [key for key in keys if key.name == name]
        if not name or not revoked:
            raise InvalidField(
                "name", f"there is no key {name!r}; `memserve keys list` shows the ones there are"
            )
        _write(file, [key for key in keys if key.name != name])
        return revoked[0]


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def _keys(content: Any) -> list[ApiKey]:
    """The keys of either form. Raises ValueError."""
    if not isinstance(content, dict):
        raise ValueError('must hold an object: {"keys": [{"name": …, "tenant": …, "role": …, "sha256": …}]}')
    if isinstance(content.get("keys"), list):
        if set(content) != {"keys"}:
            raise ValueError(
                f"unknown fields beside `keys`: {', '.join(sorted(set(content) - {'keys'}))[:200]}"
            )
        keys = [_key(f"keys[{number}]", entry) for number, entry in enumerate(content["keys"])]
    else:
        if not content:
            raise ValueError('holds no key; write {"keys": []} where nobody is to be let in')
        keys = [_short(number, key, tenant) for number, (key, tenant) in enumerate(content.items())]
    if len(keys) > KEYS_MAX:
        raise ValueError(f"has {len(keys)} keys, at most {KEYS_MAX} are allowed")
    for field in ("sha256", "name"):
        values = [getattr(key, field) for key in keys if getattr(key, field)]
        if len(values) != len(set(values)):
            raise ValueError(f"two keys have the same {field}")
    return keys


def _key(where: str, entry: Any) -> ApiKey:
    if not isinstance(entry, dict):
        raise ValueError(f"{where} must be an object")
    if unknown := set(entry) - _FIELDS:
        raise ValueError(f"{where} has unknown fields: {', '.join(sorted(unknown))[:200]}")
    name, tenant, role = entry.get("name"), entry.get("tenant"), entry.get("role")
    if not isinstance(name, str) or not is_key_name(name):
        raise ValueError(f"{where}.name must be {_NAME_WORDS}")
    if not isinstance(tenant, str) or not is_name(tenant):
        raise ValueError(f"{where}.tenant must be {TENANT_WORDS}")
    if role not in tuple(KeyRole):
        raise ValueError(f"{where}.role must be one of {', '.join(KeyRole)}")
    key, digest = entry.get("key"), entry.get("sha256")
    if (key is None) == (digest is None):
        raise ValueError(f"{where} must have one of `key` and `sha256`")
    if key is not None:
        if not isinstance(key, str) or len(key) < KEY_MIN_CHARACTERS:
            raise ValueError(f"{where}.key must have at least {KEY_MIN_CHARACTERS} characters")
        digest = _digest(key)
    elif not isinstance(digest, str) or not is_sha256(digest):
        raise ValueError(f"{where}.sha256 must be 64 hex digits, in lower case")
    created_s = entry.get("created_s", 0.0)
    if isinstance(created_s, bool) or not isinstance(created_s, int | float):
        raise ValueError(f"{where}.created_s must be a number of seconds")
    priority = entry.get("priority", Priority.NORMAL)
    if priority not in Priority.of_callers():
        raise ValueError(f"{where}.priority must be one of {', '.join(Priority.of_callers())}")
    return ApiKey(name, tenant, KeyRole(role), digest, float(created_s), Priority(priority))


def _short(number: int, key: str, tenant: Any) -> ApiKey:
    # The errors do not quote the key, because it is a secret.
    if len(key) < KEY_MIN_CHARACTERS:
        raise ValueError(f"key number {number + 1} must have at least {KEY_MIN_CHARACTERS} characters")
    if not isinstance(tenant, str) or not is_name(tenant):
        raise ValueError(f"the tenant of key number {number + 1} must be {TENANT_WORDS}")
    return ApiKey("", tenant, KeyRole.WRITE, _digest(key))


def _write(file: Path, keys: Sequence[ApiKey]) -> None:
    entries = [
        {
            # A key of the short form gets a name, so that it can be revoked by name.
            "name": key.name or f"key-{key.sha256[:12]}",
            "tenant": key.tenant,
            "role": str(key.role),
            "sha256": key.sha256,
            **({"created_s": round(key.created_s)} if key.created_s else {}),
            **({} if key.priority is Priority.NORMAL else {"priority": str(key.priority)}),
        }
        for key in keys
    ]
    try:
        write_private(file, (json.dumps({"keys": entries}, indent=2) + "\n").encode())
    except OSError as error:
        raise StartupError(f"api_keys_file {file}: {error.strerror}") from None


@contextlib.contextmanager
def _held(file: Path) -> Iterator[None]:
    """Lock the file's directory while inside, so that one process at a time changes the file.

    Raises StartupError when the directory cannot be used, or is locked for ten seconds.
    """
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise StartupError(f"api_keys_file {file}: {error.strerror}") from None
    try:
        deadline_s = time.monotonic() + 10.0
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline_s:
                    raise StartupError(f"another process changes {file}; try again") from None
                time.sleep(0.05)
        yield
    finally:
        os.close(descriptor)
