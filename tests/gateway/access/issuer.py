"""An identity provider: keys of its own, their JWKS, and tokens that it signs."""

from __future__ import annotations

import base64
import json
import time
from functools import cache
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

ISSUER, AUDIENCE = "https://identity.example", "memserve"


@cache
def signing_key(name: str) -> Any:
    """By the algorithm that its name begins with; the same name is the same key."""
    kind = name.partition("-")[0]
    if kind.startswith(("RS", "PS")):
        return rsa.generate_private_key(65537, 2048)
    if kind.startswith("ES"):
        curve = {"ES256": ec.SECP256R1, "ES384": ec.SECP384R1, "ES512": ec.SECP521R1}[kind]
        return ec.generate_private_key(curve())
    return ed25519.Ed25519PrivateKey.generate()


def algorithm_of(name: str) -> Any:
    kind = name.partition("-")[0]
    return jwt.get_algorithm_by_name(kind)


def public_jwk(name: str, **fields: Any) -> dict[str, Any]:
    """`kid` is the name, unless the fields say otherwise. A field that is None is left out."""
    entry = algorithm_of(name).to_jwk(signing_key(name).public_key(), as_dict=True)
    entry.pop("key_ops", None)
    entry = {**entry, "kid": name, **fields}
    return {field: value for field, value in entry.items() if value is not None}


def jwks(*names: str) -> bytes:
    return json.dumps({"keys": [public_jwk(name) for name in names]}).encode()


def claims(**changed: Any) -> dict[str, Any]:
    """Of a good token. A claim that is None is left out."""
    now_s = int(time.time())
    every = {
        "iss": ISSUER, "aud": AUDIENCE, "sub": "ada", "exp": now_s + 300, "iat": now_s,
        "tenant": "acme", "role": "write", **changed,
    }  # fmt: skip
    return {name: value for name, value in every.items() if value is not None}


def token(name: str = "ES256-a", header: dict[str, Any] | None = None, **changed: Any) -> str:
    """Signed by the key of this name, in the algorithm that the name begins with."""
    return jwt.encode(
        claims(**changed),
        signing_key(name),
        algorithm=name.partition("-")[0],
        headers={"kid": name, **(header or {})},
    )


def signed_text(payload: str, name: str = "ES256-a", header: str | None = None) -> str:
    """A token with exactly this text as its claims, well signed."""
    head = header or json.dumps({"alg": name.partition("-")[0], "kid": name})
    signed = ".".join(encoded(part.encode()) for part in (head, payload))
    algorithm = algorithm_of(name)
    return f"{signed}.{encoded(algorithm.sign(signed.encode(), signing_key(name)))}"


def encoded(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def token_settings(folder: Path, *names: str) -> dict[str, Any]:
    """The settings of a gateway that takes tokens by a file of keys."""
    file = folder / "jwks.json"
    file.write_bytes(jwks(*(names or ("ES256-a",))))
    return {"jwt_jwks": str(file), "jwt_issuer": ISSUER, "jwt_audience": AUDIENCE}
