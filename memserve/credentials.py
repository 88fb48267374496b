"""What the salt key is for. Every gateway and every worker of one memserve has the same; nobody else has
it.
"""

from __future__ import annotations

import hashlib
import hmac

from memserve.config import Settings
from memserve.errors import StartupError
from memserve.private_files import SECRET_MIN_BYTES, kept_secret


def salt_key(settings: Settings) -> bytes:
    """The configured one, else the one that data_dir keeps and that is made at the first call. Raises
    StartupError.
    """
    configured = settings.salt_key.get_secret_value().encode()
    if not configured:
        return kept_secret(settings.data / "salt_key")
    if len(configured) < SECRET_MIN_BYTES:
        raise StartupError(
            f"setting salt_key has {len(configured)} bytes, at least {SECRET_MIN_BYTES} are needed: "
            "`openssl rand -hex 32` makes one"
        )
    return configured


def tenant_salt(key: bytes, tenant: str) -> str:
    """Enters the block keys of all KV of the tenant."""
    return _derived(key, tenant)


def worker_credential(key: bytes) -> str:
    """What a gateway proves itself to a worker with."""
    return _derived(key, "\0worker port")


def operator_credential(key: bytes) -> str:
    """The API key of `memserve up` itself, which has no key of a tenant: it publishes the demo modules."""
    return _derived(key, "\0operator")


def anonymous_principal(key: bytes, api_key: str) -> str:
    """Tells one nameless API key from another, and nobody without the salt key which."""
    return f"key {_derived(key, chr(0) + 'principal ' + api_key)[:12]}"


def _derived(key: bytes, purpose: str) -> str:
    return hmac.new(key, purpose.encode(), hashlib.sha256).hexdigest()
