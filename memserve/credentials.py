"""What is derived from the salt key. Every gateway and every worker of one memserve has the same salt key."""

from __future__ import annotations

import hashlib
import hmac

from memserve.config import Settings
from memserve.errors import StartupError
from memserve.private_files import SECRET_MIN_BYTES, kept_secret


def salt_key(settings: Settings) -> bytes:
    """The configured key, or else the key that data_dir keeps. The first call creates the latter.

    Raises StartupError.
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
    """The salt in the block keys of all of the tenant's KV."""
    return _derived(key, tenant)


def worker_credential(key: bytes) -> str:
    """The credential by which a worker knows its gateways."""
    return _derived(key, "\0worker port")


def operator_credential(key: bytes) -> str:
    """The API key of `memserve up` itself, which publishes the demo modules and has no tenant's key."""
    return _derived(key, "\0operator")


def anonymous_principal(key: bytes, api_key: str) -> str:
    """A name for a nameless API key. Nobody without the salt key can tell which key it is."""
    return f"key {_derived(key, chr(0) + 'principal ' + api_key)[:12]}"


def _derived(key: bytes, purpose: str) -> str:
    return hmac.new(key, purpose.encode(), hashlib.sha256).hexdigest()
