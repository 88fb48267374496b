"""Who calls, and how much at once: authentication, tenant salts and limits on concurrent answers."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import re
import secrets
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from memserve.config import Settings
from memserve.domain import Tenant
from memserve.errors import QuotaExceeded, StartupError, Unauthenticated

DEFAULT_TENANT = "default"
ANONYMOUS = "anonymous"
TENANT_RULE = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
RETRY_AFTER_S = 0.5


class Access:
    """Maps an API key to a tenant. Without keys every caller is the tenant `default`."""

    def __init__(self, keys: Mapping[str, str], salt_key: bytes) -> None:
        # Compared by digest, so that the time of a look-up says nothing about a key.
        self._tenants = {hashlib.sha256(key.encode()).digest(): tenant for key, tenant in keys.items()}
        self._salt_key = salt_key

    def tenant(self, authorization: str) -> Tenant:
        """authorization: the metadata value of that name, "Bearer <key>".

        Raises Unauthenticated.
        """
        if not self._tenants:
            return self.named(DEFAULT_TENANT, ANONYMOUS)
        scheme, _, key = authorization.partition(" ")
        digest = hashlib.sha256(key.strip().encode()).digest()
        name = self._tenants.get(digest)
        if scheme.lower() != "bearer" or name is None:
            raise Unauthenticated
        # Tells one key of a tenant from another, and nobody the key.
        return self.named(name, f"key {digest.hex()[:12]}")

    def named(self, name: str, principal: str) -> Tenant:
        return Tenant(name, hmac.new(self._salt_key, name.encode(), hashlib.sha256).hexdigest(), principal)


def read_api_keys(settings: Settings) -> dict[str, str]:
    """API key to tenant; empty where none are configured. Raises StartupError."""
    if settings.api_keys_file is None:
        return {}
    try:
        keys = json.loads(settings.api_keys_file.read_text())
    except (OSError, ValueError) as error:
        raise StartupError(f"api_keys_file {settings.api_keys_file}: {error}") from None
    if not isinstance(keys, dict) or not keys:
        raise StartupError(f'api_keys_file {settings.api_keys_file} must hold an object like {{"key": "tenant"}}')
    for key, tenant in keys.items():
        if not isinstance(tenant, str) or not TENANT_RULE.fullmatch(tenant) or len(key) < 8:
            raise StartupError(f"api_keys_file: keys have at least 8 characters, tenants 1-64 of a-z 0-9 . _ -; not so: {tenant!r}")
    return keys


def load_access(settings: Settings) -> Access:
    """Read the API keys and the salt key; without a configured salt key, one is made and kept in data_dir.

    Raises StartupError.
    """
    keys = read_api_keys(settings)
    salt_key = settings.salt_key.get_secret_value()
    return Access(keys, salt_key.encode() if salt_key else _kept_salt_key(settings.data / "salt_key"))


class Inflight:
    """Counts answers under way and refuses those above the limits."""

    def __init__(self, limit: int, limit_per_tenant: int) -> None:
        self._limit = limit
        self._limit_per_tenant = limit_per_tenant
        self._by_tenant: Counter[str] = Counter()

    @property
    def total(self) -> int:
        return self._by_tenant.total()

    @contextlib.contextmanager
    def one(self, tenant: str) -> Iterator[None]:
        """Hold a place. Raises QuotaExceeded when there is none."""
        if self.total >= self._limit:
            raise QuotaExceeded("answers under way in this gateway", self._limit, RETRY_AFTER_S)
        if self._by_tenant[tenant] >= self._limit_per_tenant:
            raise QuotaExceeded(f"answers under way for tenant {tenant}", self._limit_per_tenant, RETRY_AFTER_S)
        self._by_tenant[tenant] += 1
        try:
            yield
        finally:
            self._by_tenant[tenant] -= 1
            if not self._by_tenant[tenant]:
                del self._by_tenant[tenant]


def _kept_salt_key(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except FileNotFoundError:
        file.parent.mkdir(parents=True, exist_ok=True)
        made = secrets.token_hex(32).encode()
        try:
            descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            return file.read_bytes()
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(made)
        return made
