"""Who calls: authentication, tenant salts, and limits on the answers under way at the same time."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import ipaddress
import logging
import time
from collections import Counter
from collections.abc import Iterator, Sequence

from memserve import credentials
from memserve.config import Settings
from memserve.domain import KeyRole, Priority, Tenant, TokenFault
from memserve.errors import (
    PermissionDenied,
    QuotaExceeded,
    StartupError,
    TokenKeysUnavailable,
    TokenRefused,
    Unauthenticated,
)
from memserve.gateway.access.keys import ApiKey, keys_file, read_keys
from memserve.gateway.access.roles import NEEDED
from memserve.gateway.access.tokens import Tokens, looks_like_token, open_tokens
from memserve.private_files import signature_of

log = logging.getLogger("memserve.gateway.access.callers")

DEFAULT_TENANT = "default"
ANONYMOUS = "anonymous"
OPERATOR = "memserve up"
RETRY_AFTER_S = 0.5


class Access:
    """Maps an API key or a token to a tenant and a role.

    Where neither keys nor tokens are configured, every caller is the tenant `default`, as its administrator.
    """

    def __init__(self, keys: Sequence[ApiKey] | None, salt_key: bytes, tokens: Tokens | None = None) -> None:
        """keys: None where no keys are configured. An empty list admits only the operator's credential.

        tokens: None where no tokens are taken.
        """
        self.tokens = tokens
        self._salt_key = salt_key
        self._operator = hashlib.sha256(credentials.operator_credential(salt_key).encode()).hexdigest()
        self.replace_keys(keys)

    def replace_keys(self, keys: Sequence[ApiKey] | None) -> None:
        """Accept these keys from now on, and refuse all keys from before."""
        self._open = keys is None and self.tokens is None
        # Keys are looked up by their digest, so that the time of a look-up reveals nothing about a key.
        self._keys = {key.sha256: key for key in keys or ()}

    @property
    def is_open(self) -> bool:
        """Whether neither keys nor tokens are configured."""
        return self._open

    def tenant(self, authorization: str) -> Tenant:
        """The tenant and the role of a caller. Raises Unauthenticated and TokenKeysUnavailable.

        The operator's credential, which is derived from the salt key, makes the caller an administrator of
        the first key's tenant, or of `default` where there are no keys.

        authorization: the metadata value of that name, "Bearer <key or token>".
        """
        scheme, _, key = authorization.partition(" ")
        digest = hashlib.sha256(key.strip().encode()).hexdigest()
        if scheme.lower() == "bearer" and hmac.compare_digest(digest, self._operator):
            first = next((known.tenant for known in self._keys.values()), DEFAULT_TENANT)
            return self.named(first, OPERATOR)
        if self._open:
            return self.named(DEFAULT_TENANT, ANONYMOUS)
        known = self._keys.get(digest)
        if known is None and self.tokens and scheme.lower() == "bearer" and looks_like_token(key):
            who = self.tokens.caller(key.strip(), digest, time.time())
            return self.named(who.tenant, f"token {who.subject}", who.role, Priority.NORMAL)
        if scheme.lower() != "bearer" or known is None:
            raise Unauthenticated
        principal = (
            f"key {known.name}"
            if known.name
            else credentials.anonymous_principal(self._salt_key, key.strip())
        )
        return self.named(known.tenant, principal, known.role, known.priority)

    def caller(self, rpc: str, authorization: str) -> Tenant:
        """The tenant that calls `rpc`.

        Raises what `tenant` raises, and PermissionDenied when the caller's role does not allow the RPC.
        """
        tenant = self.tenant(authorization)
        if not tenant.role.covers(NEEDED[rpc]):
            raise PermissionDenied(rpc, NEEDED[rpc], tenant.role)
        return tenant

    async def admitted(self, rpc: str, authorization: str) -> Tenant:
        """As `caller`, but a token of a key that the identity provider has only just got is taken too."""
        try:
            return self.caller(rpc, authorization)
        except TokenRefused as error:
            if error.why != TokenFault.KEY or self.tokens is None:
                raise
        await self.tokens.keys.renewed()
        return self.caller(rpc, authorization)

    def known_tenants(self) -> list[str]:
        """The tenants of keys; `default` where anybody may call. Those of tokens are not known ahead."""
        return [DEFAULT_TENANT] if self._open else sorted({key.tenant for key in self._keys.values()})

    def named(
        self,
        name: str,
        principal: str,
        role: KeyRole = KeyRole.ADMIN,
        highest: Priority = Priority.HIGH,
    ) -> Tenant:
        return Tenant(name, credentials.tenant_salt(self._salt_key, name), principal, role, highest)


class KeyFile:
    """Brings changes of the key file into an Access, while the gateway runs.

    A file that cannot be read changes nothing: the keys from before stay.
    """

    def __init__(self, access: Access, settings: Settings) -> None:
        self._access = access
        self._file = keys_file(settings)
        self._seen = signature_of(self._file)

    async def follow(self) -> None:
        """`look` as the step of a loop."""
        self.look()

    def look(self, *, even_unchanged: bool = False) -> None:
        """Read the file again if it has changed.

        even_unchanged: read it in any case.
        """
        seen = signature_of(self._file)
        if seen == self._seen and not even_unchanged:
            return
        self._seen = seen
        try:
            keys = read_keys(self._file, must_exist=True)
        except StartupError as error:
            log.error("the API keys stay as they were: %s", error)
            return
        self._access.replace_keys(keys)
        log.info("%d API keys count from now on", len(keys or ()))


def load_access(settings: Settings) -> Access:
    """Read the API keys, the keys of tokens from a file, and the salt key.

    Without a configured salt key, a random salt key is created once and kept in data_dir.

    Raises StartupError when a file cannot be used. Raises it too when other machines could call without a
    key and `allow_anonymous` is not set.
    """
    keys = read_keys(keys_file(settings), must_exist=settings.api_keys_file is not None)
    if keys is not None and keys_file(settings).stat().st_mode & 0o007:
        log.warning("every user of this machine can read %s; `chmod 600` it", keys_file(settings))
    tokens = open_tokens(settings)
    is_open = keys is None and tokens is None
    if is_open and not is_loopback(settings.host) and not settings.allow_anonymous:
        raise StartupError(
            f"host {settings.host} lets other machines call, and there are no API keys: make one "
            "with `memserve keys add`, take tokens (jwt_jwks), "
            "or set allow_anonymous"
        )
    return Access(keys, credentials.salt_key(settings), tokens)


async def first_token_keys(access: Access) -> None:
    """Ask the identity provider for its keys. Without an answer tokens are refused until there is one."""
    if access.tokens is not None:
        try:
            await access.tokens.keys.read()
        except TokenKeysUnavailable:
            log.warning("tokens are refused until the identity provider answers; API keys are taken")


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a port of this host."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Inflight:
    """Counts the answers under way in this gateway, and refuses more than the limits allow."""

    def __init__(self, limit: int, limit_per_tenant: int) -> None:
        self._limit = limit
        self._limit_per_tenant = limit_per_tenant
        self._by_tenant: Counter[str] = Counter()

    @property
    def total(self) -> int:
        return self._by_tenant.total()

    @contextlib.contextmanager
    def one(self, tenant: str) -> Iterator[None]:
        """Count one answer while inside. Raises QuotaExceeded when a limit is reached."""
        if self.total >= self._limit:
            raise QuotaExceeded("answers under way in this gateway", self._limit, RETRY_AFTER_S)
        if self._by_tenant[tenant] >= self._limit_per_tenant:
            raise QuotaExceeded(
                f"answers under way for tenant {tenant}", self._limit_per_tenant, RETRY_AFTER_S
            )
        self._by_tenant[tenant] += 1
        try:
            yield
        finally:
            self._by_tenant[tenant] -= 1
            if not self._by_tenant[tenant]:
                del self._by_tenant[tenant]
