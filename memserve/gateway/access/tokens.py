"""JSON Web Tokens (RFC 7519) as a caller's credential: which are taken, and who their caller is."""

from __future__ import annotations

import base64
import json
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import jwt

from memserve.config import Settings
from memserve.domain import KeyRole, TokenFault
from memserve.domain.names import is_name
from memserve.errors import TokenRefused
from memserve.gateway.access.keys import TENANT_WORDS
from memserve.gateway.access.token_keys import ALGORITHMS, FileKeys, TokenKey, TokenKeys, UrlKeys

# As much as the headers of one call may have over gRPC.
TOKEN_MAX_CHARACTERS = 8192
KID_MAX_CHARACTERS = 256
SUBJECT_MAX_CHARACTERS = 255
# How far the clocks of the gateway and of the identity provider may differ.
LEEWAY_S = 30
# Tokens that have been checked and are not checked again.
CHECKED_MAX = 10_000
_FAULTS: tuple[tuple[type[jwt.PyJWTError], TokenFault, str], ...] = (
    (jwt.InvalidSignatureError, TokenFault.SIGNATURE, "its signature is not of the key that it names"),
    (jwt.ExpiredSignatureError, TokenFault.EXPIRED, "it has expired (`exp`)"),
    (jwt.ImmatureSignatureError, TokenFault.NOT_YET, "it is not valid yet (`nbf`, `iat`)"),
    (jwt.InvalidIssuerError, TokenFault.ISSUER, "its `iss` is not the issuer of this gateway's tokens"),
    (jwt.InvalidAudienceError, TokenFault.AUDIENCE, "its `aud` does not have this gateway"),
    (jwt.exceptions.InvalidSubjectError, TokenFault.SUBJECT, "its `sub` must be a text"),
)
# A claim that a token must have: what the token lacks without it.
_LACKING = {
    "exp": TokenFault.EXPIRED,
    "iss": TokenFault.ISSUER,
    "aud": TokenFault.AUDIENCE,
    "sub": TokenFault.SUBJECT,
}


@dataclass(frozen=True, slots=True)
class TokenCaller:
    """Who calls, as a token says."""

    tenant: str
    role: KeyRole
    subject: str


@dataclass(frozen=True, slots=True)
class TokenRules:
    """What a token must say. The claims are names, or paths with dots."""

    issuer: str
    audience: str
    tenant_claim: str
    role_claim: str


Check = Callable[[str, tuple[TokenKey, ...], TokenRules], tuple[TokenCaller, float]]


def looks_like_token(credential: str) -> bool:
    """Whether a credential has the three parts of a signed token. API keys of memserve have no dot."""
    return credential.count(".") == 2


class Tokens:
    """Checks tokens. A token that passed is not checked again until it expires or the keys change."""

    def __init__(
        self,
        rules: TokenRules,
        keys: TokenKeys,
        check: Check | None = None,
        remembered: int = CHECKED_MAX,
    ) -> None:
        """check: None for `checked`. remembered: how many tokens that passed are known again."""
        self.keys = keys
        self._check = check or checked
        self._remembered = remembered
        self._rules = rules
        self._checked: OrderedDict[str, tuple[TokenCaller, float]] = OrderedDict()
        self._checked_with: tuple[TokenKey, ...] = ()

    def caller(self, token: str, digest: str, now_s: float) -> TokenCaller:
        """Raises TokenRefused and TokenKeysUnavailable.

        digest: of the token, by which it is known again. now_s: since the epoch.
        """
        keys = self.keys.current()
        if keys is not self._checked_with:
            self._checked.clear()
            self._checked_with = keys
        caller, until_s = self._checked.get(digest, (None, 0.0))
        if caller is not None and now_s < until_s:
            self._checked.move_to_end(digest)
            return caller
        caller, until_s = self._check(token, keys, self._rules)
        self._checked[digest] = caller, until_s
        if len(self._checked) > self._remembered:
            self._checked.popitem(last=False)
        return caller


def open_tokens(settings: Settings) -> Tokens | None:
    """None: no tokens are taken. Raises StartupError for a file of keys that cannot be used."""
    if not settings.jwt_jwks:
        return None
    is_url = "://" in settings.jwt_jwks
    keys: TokenKeys = UrlKeys(settings.jwt_jwks) if is_url else FileKeys(Path(settings.jwt_jwks))
    rules = TokenRules(
        settings.jwt_issuer, settings.jwt_audience, settings.jwt_tenant_claim, settings.jwt_role_claim
    )
    return Tokens(rules, keys)


def checked(token: str, keys: tuple[TokenKey, ...], rules: TokenRules) -> tuple[TokenCaller, float]:
    """Check a token by the clock of this machine. Returns its caller, and until when it is valid.

    Raises TokenRefused. Nothing that the token claims is quoted, since nobody may have signed it.
    """
    if len(token) > TOKEN_MAX_CHARACTERS:
        _refuse(TokenFault.LENGTH, f"it has more than {TOKEN_MAX_CHARACTERS} characters")
    algorithm, kid = _header(token)
    key = _key(keys, algorithm, kid)
    try:
        jwt.decode(
            token,
            key.key,
            algorithms=[algorithm],
            issuer=rules.issuer,
            audience=rules.audience,
            leeway=LEEWAY_S,
            options={"require": list(_LACKING)},
        )
    except jwt.MissingRequiredClaimError as error:
        _refuse(_LACKING[error.claim], f"it has no `{error.claim}`")
    except jwt.PyJWTError as error:
        for kind, fault, rule in _FAULTS:
            if isinstance(error, kind):
                _refuse(fault, rule)
        _refuse(TokenFault.MALFORMED, "it is no JSON Web Token, or a claim has the wrong type")
    except (ValueError, TypeError, OverflowError, RecursionError):
        _refuse(TokenFault.MALFORMED, "a claim has the wrong type")
    claims = _object(token.split(".")[1])
    caller = TokenCaller(_tenant(claims, rules), _role(claims, rules), _subject(claims))
    return caller, float(claims["exp"]) + LEEWAY_S


def _header(token: str) -> tuple[str, str | None]:
    """Its algorithm, and the name of its key. Raises TokenRefused."""
    header = _object(token.split(".")[0])
    algorithm, kid = header.get("alg"), header.get("kid")
    if not isinstance(algorithm, str) or algorithm not in ALGORITHMS:
        _refuse(TokenFault.ALGORITHM, f"its `alg` must be one of {', '.join(sorted(ALGORITHMS))}")
    # Extensions that must be understood (RFC 7515, section 4.1.11). None is.
    if "crit" in header or "b64" in header:
        _refuse(TokenFault.MALFORMED, "its header asks for an extension (`crit`)")
    if kid is not None and (not isinstance(kid, str) or len(kid) > KID_MAX_CHARACTERS):
        _refuse(TokenFault.KEY, f"its `kid` must be a text of at most {KID_MAX_CHARACTERS} characters")
    return algorithm, kid


def _key(keys: tuple[TokenKey, ...], algorithm: str, kid: str | None) -> TokenKey:
    """The key that the token names. `kid` is compared and used for nothing else. Raises TokenRefused."""
    if kid is None and len(keys) > 1:
        _refuse(TokenFault.KEY, "it names no key (`kid`), and there are several")
    named = [key for key in keys if kid is None or key.kid == kid]
    if not named:
        _refuse(TokenFault.KEY, "it names a key (`kid`) that the identity provider does not have")
    if algorithm not in named[0].algorithms:
        _refuse(TokenFault.ALGORITHM, "its `alg` is not that of the key that it names")
    return named[0]


def _tenant(claims: Mapping[str, Any], rules: TokenRules) -> str:
    tenant = _claim(claims, rules.tenant_claim)
    if not isinstance(tenant, str) or not is_name(tenant):
        _refuse(TokenFault.TENANT, f"its claim `{rules.tenant_claim}` must be a tenant: {TENANT_WORDS}")
    return tenant


def _role(claims: Mapping[str, Any], rules: TokenRules) -> KeyRole:
    """The highest of those that the claim has."""
    claimed = _claim(claims, rules.role_claim)
    texts = claimed if isinstance(claimed, list) else [claimed]
    roles = [role for role in KeyRole if role.value in texts]
    if not roles:
        _refuse(TokenFault.ROLE, f"its claim `{rules.role_claim}` has none of {', '.join(KeyRole)}")
    return roles[-1]


def _subject(claims: Mapping[str, Any]) -> str:
    subject = claims["sub"]
    if not subject or len(subject) > SUBJECT_MAX_CHARACTERS or not subject.isprintable():
        rule = f"its `sub` must have 1 to {SUBJECT_MAX_CHARACTERS} printable characters"
        _refuse(TokenFault.SUBJECT, rule)
    return str(subject)


def _claim(claims: Mapping[str, Any], path: str) -> Any:
    """The claim of this name, else what the path leads to. None: there is none."""
    if path in claims:
        return claims[path]
    value: Any = claims
    for step in path.split("."):
        value = value.get(step) if isinstance(value, dict) else None
    return value


def _object(part: str) -> dict[str, Any]:
    """The JSON object of a token's part. Raises TokenRefused.

    A name that stands twice is refused: other readers may take the other value.
    """
    try:
        content = base64.b64decode(part + "=" * (-len(part) % 4), altchars=b"-_", validate=True)
        value = json.loads(content, object_pairs_hook=_without_repeats, parse_constant=_no_constant)
    except _Repeated:
        _refuse(TokenFault.MALFORMED, "a name stands twice in its header or its claims")
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        _refuse(TokenFault.MALFORMED, "its parts must be JSON objects in base64url")
    return value


class _Repeated(ValueError):
    """A JSON object has a name twice."""


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) < len(pairs):
        raise _Repeated
    return entries


def _no_constant(name: str) -> NoReturn:
    raise ValueError(name)


def _refuse(fault: TokenFault, rule: str) -> NoReturn:
    raise TokenRefused(fault, rule)
