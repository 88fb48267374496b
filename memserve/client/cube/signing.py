"""Signatures of cubes: Ed25519 over the bytes of `cube.json`, which has the sha256 of all the rest."""

from __future__ import annotations

import contextlib
import os
from os import PathLike
from pathlib import Path
from types import ModuleType
from typing import Any

from memserve.client.cube.layout import SIGNATURE
from memserve.client.cube.records import encoded, json_object
from memserve.client.cube.values import CubeRefused
from memserve.errors import UsageError

# What else the same key may sign begins otherwise.
_WHAT = b"memserve cube 1\n"
KEY_MAX_BYTES = 64 << 10
File = str | PathLike[str]


def new_keys(private_file: Path, public_file: Path) -> str:
    """Make a key, and write both halves as PEM, or neither. No file is overwritten.

    Returns the public key, hex.

    Raises UsageError without the package cryptography, and OSError.
    """
    serialization, ed25519 = _library("key")
    key = ed25519.Ed25519PrivateKey.generate()
    plain = serialization.NoEncryption()
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    with contextlib.ExitStack() as undo:
        for file, content, mode in ((private_file, private, 0o600), (public_file, public, 0o644)):
            descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
            undo.callback(file.unlink, missing_ok=True)
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(content)
        undo.pop_all()  # both are there
    return _hex(serialization, key.public_key())


class Signer:
    """Signs with the private key of a PEM file."""

    def __init__(self, key_file: File) -> None:
        """Raises UsageError."""
        self._serialization, ed25519 = _library("sign")
        from cryptography.exceptions import UnsupportedAlgorithm

        try:
            key = self._serialization.load_pem_private_key(_pem("sign", key_file), password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise UsageError("sign", f"{key_file} is no private key without a password: {error}") from None
        if not isinstance(key, ed25519.Ed25519PrivateKey):
            raise UsageError("sign", f"{key_file} is no Ed25519 key; `memserve cube new-key` makes one")
        self._key: Any = key

    def signature(self, manifest: bytes) -> bytes:
        """The content of the entry with the signature."""
        return encoded(
            {
                "algorithm": "ed25519",
                "public_key": _hex(self._serialization, self._key.public_key()),
                "signature": self._key.sign(_WHAT + manifest).hex(),
            }
        )


class Verifier:
    """Checks signatures with the public key of a PEM file."""

    def __init__(self, key_file: File) -> None:
        """Raises UsageError."""
        self._serialization, ed25519 = _library("verify")
        from cryptography.exceptions import UnsupportedAlgorithm

        try:
            key = self._serialization.load_pem_public_key(_pem("verify", key_file))
        except (ValueError, UnsupportedAlgorithm) as error:
            raise UsageError("verify", f"{key_file} is no public key: {error}") from None
        if not isinstance(key, ed25519.Ed25519PublicKey):
            raise UsageError("verify", f"{key_file} is no Ed25519 key")
        self._key: Any = key

    def check(self, manifest: bytes, signature: bytes | None) -> None:
        """signature: None where the cube has none. Raises CubeRefused."""
        from cryptography.exceptions import InvalidSignature

        if signature is None:
            raise CubeRefused(SIGNATURE, "is missing: the cube is not signed")
        signer, signed = read_signature(signature)
        wanted = _hex(self._serialization, self._key)
        if signer != wanted:
            raise CubeRefused(SIGNATURE, f"is of another key ({signer[:16]}…), not of {wanted[:16]}…")
        try:
            self._key.verify(signed, _WHAT + manifest)
        except InvalidSignature:
            raise CubeRefused(SIGNATURE, "does not fit cube.json") from None


def read_signature(content: bytes) -> tuple[str, bytes]:
    """The public key, hex, and the signature. Raises CubeRefused."""
    fields = json_object(SIGNATURE, content)
    try:
        key, signed = bytes.fromhex(fields["public_key"]), bytes.fromhex(fields["signature"])
    except (KeyError, TypeError, ValueError):
        raise CubeRefused(SIGNATURE, "is no signature") from None
    if fields.get("algorithm") != "ed25519" or (len(key), len(signed)) != (32, 64):
        raise CubeRefused(SIGNATURE, "is no Ed25519 signature")
    return key.hex(), signed


def _pem(field: str, file: File) -> bytes:
    try:
        with Path(file).open("rb") as stream:
            return stream.read(KEY_MAX_BYTES)
    except OSError as error:
        raise UsageError(field, f"{file} cannot be read: {error.strerror}") from None


def _hex(serialization: Any, key: Any) -> str:
    raw: bytes = key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    return raw.hex()


def _library(field: str) -> tuple[Any, ModuleType]:
    """The parts of cryptography that are needed. The client is installed without it. Raises UsageError."""
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError:
        raise UsageError(
            field, "this needs the package cryptography: pip install 'memserve[gateway]'"
        ) from None
    return serialization, ed25519
