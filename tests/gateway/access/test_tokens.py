"""Which tokens are taken, who their caller is, and what forged, stale and odd ones are told."""

from __future__ import annotations

import hashlib
import hmac
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jwt
import pytest

from memserve.config import Settings, load_settings
from memserve.domain import KeyRole, Priority, TokenFault
from memserve.errors import PermissionDenied, StartupError, TokenRefused, Unauthenticated
from memserve.gateway.access.callers import Access, load_access
from memserve.gateway.access.keys import add_key
from memserve.gateway.access.token_keys import ALGORITHMS, TokenKey, parse_keys
from memserve.gateway.access.tokens import TokenCaller, TokenRules, Tokens, checked
from tests.gateway.access.issuer import (
    AUDIENCE,
    ISSUER,
    claims,
    encoded,
    jwks,
    public_jwk,
    signed_text,
    signing_key,
    token,
    token_settings,
)

RULES = TokenRules(ISSUER, AUDIENCE, "tenant", "role")
KEYS = parse_keys(jwks("ES256-a", "RS256-b", "EdDSA-c"))


def caller_of(text: str, keys: tuple[TokenKey, ...] = KEYS, rules: TokenRules = RULES) -> tuple[str, ...]:
    caller, _ = checked(text, keys, rules)
    return caller.tenant, caller.role.value, caller.subject


def fault_of(text: str, keys: tuple[TokenKey, ...] = KEYS, rules: TokenRules = RULES) -> str:
    with pytest.raises(TokenRefused) as refused:
        checked(text, keys, rules)
    return refused.value.why


# Tokens that are taken


@pytest.mark.parametrize("algorithm", sorted(ALGORITHMS))
def test_a_token_of_each_algorithm_is_taken(algorithm: str) -> None:
    name = f"{algorithm}-x"
    assert caller_of(token(name), parse_keys(jwks(name))) == ("acme", "write", "ada")


def test_a_list_of_audiences_has_to_have_this_one() -> None:
    assert caller_of(token(aud=["other", AUDIENCE]))[0] == "acme"
    assert fault_of(token(aud=["other", AUDIENCE + "x"])) == TokenFault.AUDIENCE


def test_of_a_list_of_roles_the_highest_that_is_known_counts() -> None:
    assert caller_of(token(role=["admins", "read", "write", "ask"]))[1] == "write"
    assert caller_of(token(role="admin"))[1] == "admin"


def test_claims_may_lie_deeper_and_may_have_dots_in_their_names() -> None:
    deep = TokenRules(ISSUER, AUDIENCE, "resource.tenant", "resource_access.memserve.roles")
    resource = {"resource": {"tenant": "bolt"}, "resource_access": {"memserve": {"roles": ["read"]}}}
    assert caller_of(token(tenant=None, role=None, **resource), rules=deep) == ("bolt", "read", "ada")
    dotted = TokenRules(ISSUER, AUDIENCE, "https://example.com/tenant", "role")
    assert caller_of(token(**{"https://example.com/tenant": "crow"}), rules=dotted)[0] == "crow"
    assert fault_of(token(resource={"tenant": None}), rules=deep) == TokenFault.TENANT
    assert fault_of(token(resource="bolt"), rules=deep) == TokenFault.TENANT


def test_clocks_may_differ_by_half_a_minute() -> None:
    now_s = int(time.time())
    assert caller_of(token(exp=now_s - 20, nbf=now_s + 20, iat=now_s + 20))[0] == "acme"


def test_a_token_needs_no_kid_where_the_set_has_one_key() -> None:
    assert caller_of(without_kid(), parse_keys(jwks("ES256-a")))[0] == "acme"


# Tokens that are refused


def without_kid() -> str:
    return jwt.encode(claims(), signing_key("ES256-a"), algorithm="ES256")


def hs256_with_the_public_key() -> str:
    """The classic: the gateway's public key, taken for a shared secret."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    public = signing_key("RS256-b").public_key()
    pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    head = encoded(json.dumps({"alg": "HS256", "kid": "RS256-b"}).encode())
    body = encoded(json.dumps(claims()).encode())
    return f"{head}.{body}.{encoded(hmac.digest(pem, f'{head}.{body}'.encode(), 'sha256'))}"


def changed_claims() -> str:
    """Another tenant under the signature of the first."""
    head, _, signature = token().split(".")
    return f"{head}.{encoded(json.dumps(claims(tenant='other')).encode())}.{signature}"


REFUSED: dict[str, tuple[Callable[[], str], TokenFault]] = {
    "no signature (alg none)": (
        lambda: jwt.encode(claims(), None, algorithm="none", headers={"kid": "ES256-a"}),  # type: ignore[arg-type]
        TokenFault.ALGORITHM,
    ),
    "alg None in odd letters": (
        lambda: signed_text(json.dumps(claims()), header='{"alg": "nOnE", "kid": "ES256-a"}'),
        TokenFault.ALGORITHM,
    ),
    "HS256 with the public key": (hs256_with_the_public_key, TokenFault.ALGORITHM),
    "alg is a list": (
        lambda: signed_text(json.dumps(claims()), header='{"alg": ["ES256"], "kid": "ES256-a"}'),
        TokenFault.ALGORITHM,
    ),
    "alg of another kind of key": (
        lambda: signed_text(json.dumps(claims()), header='{"alg": "RS256", "kid": "ES256-a"}'),
        TokenFault.ALGORITHM,
    ),
    "an empty signature": (lambda: token().rpartition(".")[0] + ".", TokenFault.SIGNATURE),
    "another's signature": (lambda: token("ES256-z", {"kid": "ES256-a"}), TokenFault.SIGNATURE),
    "changed claims": (changed_claims, TokenFault.SIGNATURE),
    "a key of its own in the header": (
        lambda: token("ES256-z", {"kid": "ES256-a", "jwk": public_jwk("ES256-z")}),
        TokenFault.SIGNATURE,
    ),
    "no kid and several keys": (without_kid, TokenFault.KEY),
    "an unknown kid": (lambda: token("ES256-z"), TokenFault.KEY),
    "a kid like a path": (lambda: token(header={"kid": "../../../../dev/null"}), TokenFault.KEY),
    "a kid like a query": (lambda: token(header={"kid": "x' UNION SELECT 'k"}), TokenFault.KEY),
    "a long kid": (lambda: token(header={"kid": "k" * 300}), TokenFault.KEY),
    "a kid that is a number": (
        lambda: signed_text(json.dumps(claims()), header='{"alg": "ES256", "kid": 7}'),
        TokenFault.KEY,
    ),
    "an extension that must be understood": (
        lambda: signed_text(
            json.dumps(claims()), header='{"alg": "ES256", "kid": "ES256-a", "crit": ["b64"], "b64": true}'
        ),
        TokenFault.MALFORMED,
    ),
    "another issuer": (lambda: token(iss="https://identity.example.evil"), TokenFault.ISSUER),
    "an issuer with a slash more": (lambda: token(iss=ISSUER + "/"), TokenFault.ISSUER),
    "no issuer": (lambda: token(iss=None), TokenFault.ISSUER),
    "another audience": (lambda: token(aud="grafana"), TokenFault.AUDIENCE),
    "no audience": (lambda: token(aud=None), TokenFault.AUDIENCE),
    "expired": (lambda: token(exp=int(time.time()) - 60), TokenFault.EXPIRED),
    "no expiry": (lambda: token(exp=None), TokenFault.EXPIRED),
    "not valid yet": (lambda: token(nbf=int(time.time()) + 60), TokenFault.NOT_YET),
    "issued in the future": (lambda: token(iat=int(time.time()) + 600), TokenFault.NOT_YET),
    "an endless expiry": (
        lambda: signed_text(json.dumps(claims()).replace('"exp": ', '"exp": 1e999, "x": ')),
        TokenFault.MALFORMED,
    ),
    "an expiry that is a list": (
        lambda: signed_text(json.dumps({**claims(), "exp": [9_999_999_999]})),
        TokenFault.MALFORMED,
    ),
    "no subject": (lambda: token(sub=None), TokenFault.SUBJECT),
    "an empty subject": (lambda: token(sub=""), TokenFault.SUBJECT),
    "a subject that is an object": (
        lambda: signed_text(json.dumps({**claims(), "sub": {"a": 1}})),
        TokenFault.SUBJECT,
    ),
    "a subject with a line break": (lambda: token(sub="ada\nkey root"), TokenFault.SUBJECT),
    "a subject turned round": (lambda: token(sub="ada\u202eniam"), TokenFault.SUBJECT),
    "a long subject": (lambda: token(sub="a" * 256), TokenFault.SUBJECT),
    "no tenant": (lambda: token(tenant=None), TokenFault.TENANT),
    "a tenant with capitals": (lambda: token(tenant="Acme"), TokenFault.TENANT),
    "a tenant like a path": (lambda: token(tenant="acme/../other"), TokenFault.TENANT),
    "several tenants": (lambda: token(tenant=["acme", "other"]), TokenFault.TENANT),
    "a tenant that is an object": (lambda: token(tenant={"name": "acme"}), TokenFault.TENANT),
    "an empty tenant": (lambda: token(tenant=""), TokenFault.TENANT),
    "no role": (lambda: token(role=None), TokenFault.ROLE),
    "an unknown role": (lambda: token(role="root"), TokenFault.ROLE),
    "a role that is an object": (lambda: token(role={"admin": True}), TokenFault.ROLE),
    "roles one list too deep": (lambda: token(role=[["admin"]]), TokenFault.ROLE),
    "roles in one text": (lambda: token(role="read write"), TokenFault.ROLE),
    "the tenant twice": (
        lambda: signed_text(json.dumps(claims()).replace("{", '{"tenant": "other", ', 1)),
        TokenFault.MALFORMED,
    ),
    "the algorithm twice": (
        lambda: signed_text(json.dumps(claims()), header='{"alg": "none", "alg": "ES256", "kid": "ES256-a"}'),
        TokenFault.MALFORMED,
    ),
    "claims that are a list": (lambda: signed_text('["acme"]'), TokenFault.MALFORMED),
    "claims that are no JSON": (lambda: signed_text("{"), TokenFault.MALFORMED),
    "a header that is no JSON": (lambda: "e30x.e30.x", TokenFault.MALFORMED),
    "a header of nothing": (lambda: "..", TokenFault.MALFORMED),
    "letters that base64url has not": (lambda: "a+/=.b.c", TokenFault.MALFORMED),
    "brackets without end": (lambda: encoded(b"[" * 5000) + ".e30.x", TokenFault.MALFORMED),
    "too long": (lambda: token(note="n" * 9000), TokenFault.LENGTH),
    "far too long": (lambda: "e" * 5_000_000 + ".e30.x", TokenFault.LENGTH),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_token_that_breaks_a_rule_is_refused_by_that_rule(what: str) -> None:
    made, fault = REFUSED[what]
    assert fault_of(made()) == fault


def test_a_refusal_quotes_nothing_of_the_token_and_nothing_of_the_settings() -> None:
    rules = TokenRules("https://private.example/realm", "secret-audience", "tenant", "role")
    for changed in (
        {"iss": "claimed"}, {"aud": "claimed"}, {"sub": "claimed\n"}, {"tenant": "CLAIMED"},
        {"role": "claimed"}, {"exp": 1},
    ):  # fmt: skip
        with pytest.raises(TokenRefused) as refused:
            checked(token(**{"iss": rules.issuer, "aud": rules.audience, **changed}), KEYS, rules)
        assert "claimed" not in str(refused.value).lower()
        assert "private" not in str(refused.value) and "secret" not in str(refused.value)


# The tokens of one gateway


class Held:
    """Keys that a test changes."""

    pause_s = 1.0

    def __init__(self, *names: str) -> None:
        self.keys = parse_keys(jwks(*names))
        self.renewals = 0

    def current(self) -> tuple[TokenKey, ...]:
        return self.keys

    async def read(self) -> None:
        """Nothing changes by itself."""

    async def follow(self) -> None:
        """Nothing changes by itself."""

    async def renewed(self) -> None:
        self.renewals += 1
        self.keys = parse_keys(jwks("ES256-a", "ES256-new"))


def asked(tokens: Tokens, text: str, now_s: float | None = None) -> str:
    digest = hashlib.sha256(text.encode()).hexdigest()
    return tokens.caller(text, digest, time.time() if now_s is None else now_s).tenant


class Counting:
    """Checks tokens, and counts them."""

    def __init__(self) -> None:
        self.checks = 0

    def __call__(self, text: str, keys: tuple[TokenKey, ...], rules: TokenRules) -> tuple[TokenCaller, float]:
        self.checks += 1
        return checked(text, keys, rules)


def test_a_token_is_checked_once_until_it_expires() -> None:
    check = Counting()
    tokens, text = Tokens(RULES, Held("ES256-a"), check), token()
    assert [asked(tokens, text) for _ in range(3)] == ["acme"] * 3
    assert check.checks == 1
    asked(tokens, text, time.time() + 400)  # by this clock it has expired, so it is checked again
    assert check.checks == 2


def test_an_expired_token_is_refused_though_it_was_taken_before() -> None:
    tokens, text = Tokens(RULES, Held("ES256-a")), token(exp=int(time.time()) - 29)
    assert asked(tokens, text) == "acme"
    time.sleep(1.2)
    with pytest.raises(TokenRefused, match="expired"):
        asked(tokens, text)


def test_a_key_that_leaves_the_set_takes_its_tokens_along() -> None:
    keys = Held("ES256-a", "ES256-b")
    tokens, text = Tokens(RULES, keys), token()
    assert asked(tokens, text) == "acme"
    keys.keys = parse_keys(jwks("ES256-b"))
    with pytest.raises(TokenRefused, match="does not have"):
        asked(tokens, text)


def test_no_more_tokens_are_remembered_than_the_bound() -> None:
    check = Counting()
    tokens = Tokens(RULES, Held("ES256-a"), check, remembered=3)
    texts = [token(sub=f"user-{number}") for number in range(4)]
    for text in (*texts, *texts[1:]):
        asked(tokens, text)
    assert check.checks == 4, "the last three are known"
    asked(tokens, texts[0])
    assert check.checks == 5


async def test_a_token_of_a_key_that_is_new_is_taken_after_one_look() -> None:
    keys = Held("ES256-a")
    access = Access(None, b"s" * 32, Tokens(RULES, keys))
    assert (await access.admitted("GetStatus", f"Bearer {token('ES256-new')}")).name == "acme"
    assert keys.renewals == 1
    with pytest.raises(TokenRefused):
        await access.admitted("GetStatus", f"Bearer {token(aud='other')}")
    assert keys.renewals == 1, "only a key that is not there is asked for"


# Tokens beside API keys


def test_tokens_and_keys_are_taken_side_by_side(tmp_path: Path) -> None:
    key = add_key(tmp_path / "keys.json", "ci", "builds", KeyRole.READ, 0.0)
    access = load_access(Settings(data_dir=tmp_path, **token_settings(tmp_path)))
    by_key, by_token = access.tenant(f"Bearer {key}"), access.tenant(f"bearer  {token(role='ask')} ")
    assert (by_key.name, by_key.principal, by_key.role) == ("builds", "key ci", KeyRole.READ)
    assert (by_token.name, by_token.principal, by_token.role) == ("acme", "token ada", KeyRole.ASK)
    assert by_token.highest is Priority.NORMAL
    again = access.tenant(f"Bearer {token(sub='eve', tenant='builds')}")
    assert again.cache_salt == by_key.cache_salt, "a tenant is one, whoever calls for it"
    with pytest.raises(PermissionDenied, match="role write; this one has the role ask"):
        access.caller("Remember", f"Bearer {token(role='ask')}")


@pytest.mark.parametrize(
    "authorization", ["", "Bearer", "Bearer x", "Bearer a.b", "Basic {}", "Token {}", "{}"]
)
def test_without_a_token_or_key_nobody_is_let_in_once_tokens_are_configured(
    tmp_path: Path, authorization: str
) -> None:
    access = load_access(Settings(data_dir=tmp_path, **token_settings(tmp_path)))
    assert not access.is_open
    with pytest.raises(Unauthenticated):
        access.tenant(authorization.format(token()))


def test_with_tokens_other_machines_may_call_without_a_file_of_keys(tmp_path: Path) -> None:
    access = load_access(Settings(data_dir=tmp_path, host="0.0.0.0", **token_settings(tmp_path)))
    assert access.tenant(f"Bearer {token()}").name == "acme"


def test_where_no_tokens_are_configured_one_is_like_any_wrong_key(tmp_path: Path) -> None:
    add_key(tmp_path / "keys.json", "ci", "builds", KeyRole.READ, 0.0)
    with pytest.raises(Unauthenticated) as refused:
        load_access(Settings(data_dir=tmp_path)).tenant(f"Bearer {token()}")
    assert not isinstance(refused.value, TokenRefused)


# Settings


@pytest.mark.parametrize(
    ("given", "rule"),
    [
        ({"jwt_jwks": "keys.json"}, "needs jwt_issuer and jwt_audience"),
        ({"jwt_jwks": "keys.json", "jwt_issuer": "i"}, "needs jwt_issuer and jwt_audience"),
        ({"jwt_issuer": "i", "jwt_audience": "a"}, "without it no tokens are taken"),
        ({"jwt_jwks": "http://i/keys", "jwt_issuer": "i", "jwt_audience": "a"}, "https://"),
        ({"jwt_jwks": "file:///keys", "jwt_issuer": "i", "jwt_audience": "a"}, "https://"),
        ({"jwt_jwks": "https://", "jwt_issuer": "i", "jwt_audience": "a"}, "https://"),
        ({"jwt_jwks": "https://u:pw@i/k", "jwt_issuer": "i", "jwt_audience": "a"}, "no user"),
        ({"jwt_tenant_claim": ""}, "jwt_tenant_claim"),
    ],
)
def test_settings_of_tokens_that_do_not_go_together_are_refused(given: dict[str, Any], rule: str) -> None:
    with pytest.raises(StartupError, match=rule) as refused:
        load_settings({}, salt_key="s" * 40, **given)
    assert "sss" not in str(refused.value), "a rule over several settings shows none of them"
    assert "pw" not in str(refused.value)
