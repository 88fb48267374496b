"""Who may call, and what the parts show each other."""

from __future__ import annotations

from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

from pydantic import BaseModel, Field, SecretStr, field_validator, model_validator

from memserve.config.values import SettingFile, found_from_anywhere


class IdentitySettings(BaseModel):
    """Keys, tokens and certificates."""

    # Who may call
    api_keys_file: Path | None = Field(
        None,
        description="File of API keys, as `memserve keys` writes it. Empty: data_dir/keys.json; while "
        "that does "
        "not exist "
        'every caller is an administrator of the tenant "default".',
    )
    allow_anonymous: bool = Field(
        False, description="Serve callers without a key also where other machines reach the gateway."
    )
    salt_key: SecretStr = Field(
        SecretStr(""),
        description="Key that tenant salts and the workers' credential are derived with, 32 bytes or more; "
        "the same on every gateway and worker. Empty: kept in data_dir.",
    )
    jwt_jwks: str = Field(
        "",
        description="Keys that JSON Web Tokens are checked with, which callers may send in place of an API "
        "key: a JWKS file, or an https:// URL. Empty: no such tokens.",
    )
    jwt_issuer: str = Field("", description="The `iss` that a token must have. Needed with jwt_jwks.")
    jwt_audience: str = Field("", description="The `aud` that a token must have. Needed with jwt_jwks.")
    jwt_tenant_claim: str = Field(
        "tenant",
        min_length=1,
        description="The claim of a token that names the tenant, or a path to it with dots.",
    )
    jwt_role_claim: str = Field(
        "role",
        min_length=1,
        description="The claim of a token that names the role: a text, or a list whose highest role counts.",
    )

    # TLS
    tls_cert_file: SettingFile = Field(
        None,
        description="Certificate chain (PEM) that the gateway shows to clients on all of its ports. Read "
        "again when it changes. Empty: no TLS.",
    )
    tls_key_file: SettingFile = Field(None, description="The key (PEM) of tls_cert_file.")
    tls_client_ca_file: SettingFile = Field(
        None,
        description="Authorities (PEM) of clients' certificates. Where it is set, a client needs one. Empty: "
        "clients need none.",
    )
    internal_tls_ca_file: SettingFile = Field(
        None,
        description="Authorities (PEM) that gateways and workers check each other with, and Redis and Milvus "
        "where their URLs ask for TLS. Empty: no TLS between gateways and workers.",
    )
    internal_tls_cert_file: SettingFile = Field(
        None,
        description="Certificate chain (PEM) that this gateway or worker shows to workers, gateways, Redis "
        "and Milvus.",
    )
    internal_tls_key_file: SettingFile = Field(None, description="The key (PEM) of internal_tls_cert_file.")

    @field_validator("jwt_jwks")
    @classmethod
    def _a_file_or_https(cls, place: str) -> str:
        if "://" not in place:
            return str(found_from_anywhere(Path(place))) if place else ""
        address = urlsplit(place)
        if address.scheme != "https" or not address.hostname:
            raise ValueError("must be a file or an https:// URL")
        if "@" in address.netloc:
            raise ValueError("must have no user and no password; a set of public keys needs none")
        return place

    @model_validator(mode="after")
    def _tokens_are_of_one_issuer(self) -> Self:
        if self.jwt_jwks and not (self.jwt_issuer and self.jwt_audience):
            raise ValueError("jwt_jwks needs jwt_issuer and jwt_audience")
        if not self.jwt_jwks and (self.jwt_issuer or self.jwt_audience):
            raise ValueError("jwt_issuer and jwt_audience need jwt_jwks; without it no tokens are taken")
        return self
