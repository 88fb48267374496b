"""Who may call, and what the parts show each other."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, Field, SecretStr

from memserve.config.values import SettingFile


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
    jwt_tenant_claim: str = Field("tenant", min_length=1, description="The claim that names the tenant.")
    jwt_role_claim: str = Field("role", min_length=1, description="The claim that names the role.")

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
