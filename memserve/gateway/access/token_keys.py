"""The keys that tokens are checked with (JWKS), from a file or from the identity provider."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import logging
import ssl
import time
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, Protocol

from jwt import PyJWK, PyJWTError

from memserve.errors import StartupError, TokenKeysUnavailable
from memserve.private_files import signature_of
from memserve.turns import on_own_thread

log = logging.getLogger("memserve.gateway.access.token_keys")

# The algorithms that a key is for, by its kind and curve. All are asymmetric: who checks a token cannot make
# one. Source: RFC 7518, section 3.1, and RFC 8037, section 3.1.
_RSA = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
_ALGORITHMS = {
    ("RSA", None): _RSA,
    ("EC", "P-256"): ("ES256",),
    ("EC", "P-384"): ("ES384",),
    ("EC", "P-521"): ("ES512",),
    ("OKP", "Ed25519"): ("EdDSA",),
}
ALGORITHMS = frozenset(name for names in _ALGORITHMS.values() for name in names)
# Of RSA keys. Shorter ones can be broken, and longer ones cost a gateway too much.
RSA_MIN_BITS, RSA_MAX_BITS = 2048, 8192
# Fields of keys that sign. A set that gateways read must not have them.
_PRIVATE = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k"})
KEYS_MAX = 100
SET_MAX_BYTES = 1 << 20

FILE_LOOK_S = 1.0
# How often an identity provider is asked, and how soon again: after a failure, and for a token that names a
# key which is not in the set.
URL_AGAIN_S = 300.0
URL_SOONEST_S = 10.0
# How long the last keys stay while the identity provider does not answer.
URL_KEPT_S = 24 * 3600.0
# Of one answer of the identity provider, to its last byte.
URL_TIMEOUT_S = 5.0
_PIECE_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class TokenKey:
    """A public key."""

    kid: str | None
    """Its name in the set, which tokens use. None: it has none."""
    algorithms: frozenset[str]
    key: Any
    """As `cryptography` has it."""


def parse_keys(content: bytes) -> tuple[TokenKey, ...]:
    """The keys of a JWKS that can check tokens, in its order. Other keys are left out, as RFC 7517 asks.

    Raises ValueError where there is none, or where two have one name.
    """
    try:
        entries = json.loads(content)["keys"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ValueError('is no JWKS: {"keys": [{"kty": …}, …]}') from None
    if not isinstance(entries, list) or len(entries) > KEYS_MAX:
        raise ValueError(f"`keys` must be a list of at most {KEYS_MAX} keys")
    keys = [key for entry in entries if isinstance(entry, dict) and (key := _key(entry)) is not None]
    if not keys:
        raise ValueError(
            f"has no public key for {', '.join(sorted(ALGORITHMS))} (RSA from {RSA_MIN_BITS} to "
            f"{RSA_MAX_BITS} bits)"
        )
    names = [key.kid for key in keys if key.kid is not None]
    if len(names) != len(set(names)):
        raise ValueError("two keys have the same `kid`")
    return tuple(keys)


def _key(entry: Mapping[str, Any]) -> TokenKey | None:
    """None: tokens are not checked with such a key."""
    kind = entry.get("kty")
    names = _ALGORITHMS.get((str(kind), None if kind == "RSA" else str(entry.get("crv"))), ())
    kid, named = entry.get("kid"), entry.get("alg")
    algorithms = frozenset(names if named is None else {named} & set(names) if isinstance(named, str) else ())
    operations = entry.get("key_ops")
    if not algorithms or entry.get("use", "sig") != "sig" or not isinstance(kid, str | None):
        return None
    if operations is not None and (not isinstance(operations, list) or "verify" not in operations):
        return None
    if secret := _PRIVATE & entry.keys():
        log.error("a key of jwt_jwks is private (%s): it is not used; publish public keys only", min(secret))
        return None
    try:
        key = PyJWK(dict(entry), algorithm=min(algorithms)).key
    except (PyJWTError, ValueError, TypeError, KeyError):
        return None
    if kind == "RSA" and not RSA_MIN_BITS <= key.key_size <= RSA_MAX_BITS:
        return None
    return TokenKey(kid, algorithms, key)


class TokenKeys(Protocol):
    """Where the keys come from. It belongs to one event loop."""

    pause_s: float
    """Of the loop that follows it."""

    def current(self) -> tuple[TokenKey, ...]:
        """The same object until the keys change. Raises TokenKeysUnavailable."""

    async def read(self) -> None:
        """Read the keys now. Raises TokenKeysUnavailable."""

    async def follow(self) -> None:
        """A step of the loop: wait until the keys are due, and read them. Raises TokenKeysUnavailable."""

    async def renewed(self) -> None:
        """A token names a key that is not in the set: have the set read, unless that was just done."""


class FileKeys:
    """Keys of a file. A change counts within a second. A file that breaks changes nothing."""

    pause_s = FILE_LOOK_S

    def __init__(self, file: Path) -> None:
        """Raises StartupError."""
        self._file = file
        self._seen = signature_of(file)
        self._keys = self._parsed()

    def current(self) -> tuple[TokenKey, ...]:
        return self._keys

    async def read(self) -> None:
        seen = signature_of(self._file)
        if seen == self._seen:
            return
        self._seen = seen
        try:
            self._keys = self._parsed()
        except StartupError as error:
            log.error("the keys of tokens stay as they were: %s", error)
        else:
            log.info("%d keys check tokens from now on", len(self._keys))

    async def follow(self) -> None:
        await self.read()

    async def renewed(self) -> None:
        await self.read()

    def _parsed(self) -> tuple[TokenKey, ...]:
        try:
            with self._file.open("rb") as stream:
                return parse_keys(_bounded(stream))
        except OSError as error:
            raise StartupError(f"jwt_jwks {self._file}: {error.strerror}") from None
        except ValueError as error:
            raise StartupError(f"jwt_jwks {self._file}: {error}") from None


class UrlKeys:
    """Keys of an identity provider, over https.

    They are asked for every few minutes, and when a token names a key that is not among them, but not more
    often than every `URL_SOONEST_S`. While no good answer comes the last keys stay, for `URL_KEPT_S`.
    """

    pause_s = URL_SOONEST_S

    def __init__(
        self,
        url: str,
        fetch: Callable[[str], bytes] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """fetch: None for `fetched`."""
        self._url = url
        self._fetch = fetch or fetched
        self._clock = clock
        self._keys: tuple[TokenKey, ...] = ()
        self._content = b""
        self._read_s = 0.0
        self._tried_s = -URL_SOONEST_S
        self._is_reading = False
        self._is_away = False
        """Whether the last try failed. Only the first failure in a row is said."""
        self._wanted, self._ended = asyncio.Event(), asyncio.Event()

    def current(self) -> tuple[TokenKey, ...]:
        if not self._keys or self._clock() - self._read_s > URL_KEPT_S:
            raise TokenKeysUnavailable
        return self._keys

    async def read(self) -> None:
        self._is_reading = True
        try:
            content = await on_own_thread(partial(self._fetch, self._url))
            if content != self._content:
                self._keys, self._content = parse_keys(content), content
                log.info("%d keys of %s check tokens from now on", len(self._keys), self._url)
            self._read_s = self._clock()
            self._is_away = False
        except (OSError, http.client.HTTPException, ValueError) as error:
            if not self._is_away:
                log.warning("jwt_jwks %s cannot be read: %s", self._url, error)
            self._is_away = True
            raise TokenKeysUnavailable from None
        finally:
            self._is_reading = False
            self._tried_s = self._clock()
            self._wanted.clear()
            self._ended.set()
            self._ended = asyncio.Event()

    async def follow(self) -> None:
        due_s = self._read_s + URL_AGAIN_S if self._keys else 0.0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(due_s - self._clock(), 0.0)):
                await self._wanted.wait()
        await self.read()

    async def renewed(self) -> None:
        if not self._is_reading:
            if self._clock() - self._tried_s < URL_SOONEST_S:
                return
            self._wanted.set()
        ended = self._ended
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(URL_TIMEOUT_S + 1.0):
                await ended.wait()


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect could lead to another host, or to plain http."""

    def redirect_request(self, *_: Any) -> None:
        return None


def fetched(url: str, context: ssl.SSLContext | None = None, timeout_s: float = URL_TIMEOUT_S) -> bytes:
    """What an https:// URL answers. Follows no redirect.

    context: None for the machine's own authorities (SSL_CERT_FILE names others).
    Raises OSError, HTTPException and ValueError.
    """
    context = context or ssl.create_default_context()
    opener = urllib.request.build_opener(urllib.request.HTTPSHandler(context=context), _NoRedirects)
    request = urllib.request.Request(url, headers={"accept": "application/json", "user-agent": "memserve"})
    end_s = time.monotonic() + timeout_s
    with opener.open(request, timeout=timeout_s) as response:
        return _bounded(response, end_s)


def _bounded(stream: IO[bytes] | http.client.HTTPResponse, end_s: float = float("inf")) -> bytes:
    """Raises ValueError where it is too long, and TimeoutError where it is not whole at `end_s`."""
    content = b""
    while piece := stream.read1(_PIECE_BYTES):  # type: ignore[union-attr]
        content += piece
        if len(content) > SET_MAX_BYTES:
            raise ValueError(f"has more than {SET_MAX_BYTES} bytes")
        if time.monotonic() > end_s:
            raise TimeoutError("no whole answer in time")
    return content
