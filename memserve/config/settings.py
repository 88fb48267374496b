"""Every setting of memserve, typed and documented."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import (
    ConfigDict,
    Field,
    SecretStr,
    field_validator,
    model_validator,
)

from memserve.config.distilling import DistillingSettings
from memserve.config.embedding import EmbeddingSettings
from memserve.config.held_modules import HeldModuleSettings
from memserve.config.identity import IdentitySettings
from memserve.config.ladder import LadderSettings
from memserve.config.ports import PortSettings
from memserve.config.redis_urls import with_certificates
from memserve.config.values import RoutingPolicy, SettingFile
from memserve.errors import StartupError

MIB = 1 << 20
GIB = 1 << 30


class Settings(
    PortSettings,
    IdentitySettings,
    EmbeddingSettings,
    HeldModuleSettings,
    LadderSettings,
    DistillingSettings,
):
    """The settings of one memserve process. Units are in the names."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    # Where things are
    data_dir: Path = Field(
        Path("~/.local/share/memserve"),
        description="Directory of everything that memserve keeps on this machine.",
    )
    model: str = Field(
        "",
        description="Model directory, a name of `memserve models list` such as smollm2, Hugging Face name, "
        "or fsspec URL (s3://, gs:// …) of a directory. The last two are fetched into data_dir/models, once "
        "for a machine. Empty: the bundled demo model.",
    )
    model_digest: str = Field(
        "",
        pattern=r"^([0-9a-f]{64})?$",
        description="SHA-256 that the model must have, as `memserve models digest` prints it. Another model "
        "is refused. Empty: any.",
    )
    chat_template: SettingFile = Field(
        None,
        description="File of a chat template in Jinja, for a model without one or in place of its own.",
    )
    redis_url: SecretStr = Field(
        SecretStr(""),
        description="Redis for the registry, which must keep all it is given. Empty: `memserve up` starts a "
        "private one.",
    )
    cache_redis_url: SecretStr = Field(
        SecretStr(""),
        description="Redis for the KV cache, which may evict: redis://, redis+cluster:// or "
        "redis+sentinel://. Empty: the registry's, or a second private one.",
    )
    cache_max_bytes: int = Field(
        1 * GIB, ge=64 * MIB, description="Memory limit of the private Redis that holds the KV cache."
    )
    module_store_url: str = Field(
        "",
        description="Where modules are kept: a directory, or an fsspec URL (s3://, gs:// …) that all "
        "gateways and workers reach. Empty: data_dir/modules.",
    )
    milvus_uri: str = Field(
        "", description="Milvus by URI, or a file for Milvus Lite. Empty: a file in data_dir."
    )
    milvus_token: SecretStr = Field(
        SecretStr(""), description="What a Milvus server asks for: user:password, or a token."
    )
    disk_reserve_bytes: int = Field(
        64 * MIB,
        ge=0,
        description="Room held back on the disks of data_dir and of a local module store, at most an eighth "
        "of each. Below it changes are refused; reads and answers go on.",
    )

    # Limits of the gateway
    max_inflight: int = Field(
        256,
        ge=1,
        description="Answers under way in one gateway; above it calls are refused with a retry time.",
    )
    max_inflight_per_tenant: int = Field(
        128, ge=1, description="Answers under way for one tenant in one gateway."
    )
    max_calls_per_tenant: int = Field(
        64, ge=1, description="Calls of one RPC, but answers, under way for one tenant in one gateway."
    )
    gateway_share_per_tenant: float = Field(
        0.4,
        gt=0,
        description="Part of a gateway's time that the calls of one tenant may take while others call too, "
        "as reckoned from their kinds and bytes on two cores: 8 searches or 13 memories a second. Quicker "
        "ones wait, at most 5 s. Raise it on more and faster cores.",
    )
    module_changes_per_minute_per_tenant: int = Field(
        600,
        ge=1,
        description="Changes of modules a minute of one tenant in one gateway; a gate's run and a preload "
        "are changes.",
    )
    memory_changes_per_minute_per_tenant: int = Field(
        6000,
        ge=1,
        description="Calls of one tenant a minute, in one gateway, that store, change, forget or "
        "erase memories; a batch, an import and a document are one call each, paced by the tenant's share.",
    )
    tokens_per_minute_per_tenant: int = Field(
        0,
        ge=0,
        description="Tokens that one tenant may have computed in a minute, whichever gateways it asks: of "
        "prompts, less what was cached, and of answers. 0: any number.",
    )
    routing_policy: RoutingPolicy = Field(
        "least_harm",
        description="How a worker is picked: "
        "least_harm, the least time of an engine; least_ttft, the least predicted time to the first token; "
        "cheapest_feasible; lmetric; least_tokens; prefix_affinity; session_hash; power_of_two; round_robin.",
    )
    routing_exploration: float = Field(
        0.01,
        ge=0,
        le=1,
        description="The part of the requests that go to any worker that would be in time, so that what is "
        "known of each stays true. None with a policy that takes no forecast, such as session_hash.",
    )
    default_ttft_ms: float = Field(
        5_000.0,
        gt=0,
        le=600_000,
        description="The time to first token that requests without slo.ttft_ms are queued by. It refuses "
        "none of them.",
    )
    max_wait_s: float = Field(
        60.0, gt=0, le=3600, description="A request that would wait longer for an engine is refused at once."
    )
    hold_s: float = Field(
        0.0,
        ge=0,
        le=3600,
        description="How long a request is held while no worker is ready, for a fleet that scales from none. "
        "0: it is refused at once.",
    )
    write_timeout_s: float = Field(
        30.0, gt=0, description="How long a stream waits for a caller that does not read it."
    )
    max_message_bytes: int = Field(
        4 * MIB, ge=64 * 1024, description="Largest gRPC message, and body over HTTP, that the gateway takes."
    )
    max_module_bytes: int = Field(512 * MIB, ge=1 * MIB, description="Largest module that can be published.")
    max_staging_bytes_per_tenant: int = Field(
        1 * GIB,
        ge=1 * MIB,
        description="Bytes of one tenant's unfinished uploads; the idle ones make room. Not less than "
        "max_module_bytes.",
    )
    max_memories_per_tenant: int = Field(
        100_000,
        ge=1,
        description="Live memories of one tenant. Superseded and forgotten ones count as bytes.",
    )
    max_memory_bytes_per_tenant: int = Field(
        1 << 30, ge=1 << 20, description="Bytes of one tenant's memories, with their histories and vectors."
    )
    forgotten_days: float = Field(
        30.0, gt=0, le=3650, description="Days after which a forgotten memory is erased, with its history."
    )
    max_namespaces_per_tenant: int = Field(
        1000, ge=1, description="Namespaces of one tenant, with those that are empty."
    )
    max_modules_per_tenant: int = Field(256, ge=1, description="Modules of one tenant.")
    max_versions_per_module: int = Field(
        1000, ge=1, description="Versions of one module, deleted ones not counted."
    )
    audit_retention_days: int = Field(
        400,
        ge=0,
        description="Days that the audit keeps an event; then it goes, and an event says so. 0: for ever.",
    )
    audit_max_bytes: int = Field(
        64 * MIB,
        ge=0,
        description="Memory of the registry for one tenant's audit. Full: what was exported and released "
        "goes, else changes are refused. 0: no limit.",
    )
    canary_interval_s: float = Field(
        30.0,
        ge=0.1,
        description="Time between two runs of the probes of a canary, a version that serves before it has "
        "passed the gate.",
    )
    default_max_tokens: int = Field(128, ge=1, description="Output tokens when a request names no limit.")
    recall_limit: int = Field(4, ge=1, le=64, description="Recalled passages when a request names no limit.")
    recall_template: SettingFile = Field(
        None,
        description="File of the Jinja template that puts recalled passages into the prompt. Empty: "
        "`recall_template.jinja` in the model's directory, else memserve's own.",
    )
    answers_kept_s: float = Field(
        86_400.0,
        ge=0,
        le=31_536_000,
        description="How long it is kept what an answer used, for `memserve explain`: passages, modules, "
        "cached share. At most 10,000 answers of a tenant. 0: not at all.",
    )
    keep_prompts: Literal["never", "on_request"] = Field(
        "on_request",
        description="Whether the exact prompt and the answer's tokens are kept with it, where the request "
        "asks for it (`keep_prompt`). At most 256 prompts of a tenant.",
    )
    passage_order: Literal["use", "score"] = Field(
        "use",
        description="Order of recalled passages in a prompt. use: the most used one first, whatever the "
        "scores, so that computed prefixes are found again. score: the best one first.",
    )
    warm_pinned: bool = Field(
        True,
        description="Whether the beginning of prompts with a namespace's pinned passages is computed ahead "
        "of requests, and again when they change.",
    )
    recall_timeout_ms: int = Field(
        500, ge=1, le=60_000, description="Time that recall may take when a request names none."
    )
    lookup_timeout_ms: int = Field(
        20, ge=1, le=1000, description="Time that the look-up of cached prefixes in Redis may take."
    )
    shutdown_grace_s: float = Field(
        10.0, ge=0, description="Time that answers under way get to finish at shutdown."
    )

    # Workers
    ray_address: str = Field(
        "",
        description="Ray cluster that the workers run on, host:port of its head. Empty: a Ray of their own "
        "on this machine.",
    )
    ray_token_file: SettingFile = Field(
        None, description="File of the token that Ray's processes show each other. Empty: kept in data_dir."
    )
    workers: int = Field(
        2,
        ge=1,
        le=64,
        description="vLLM workers that `memserve up` starts, or that a Ray cluster is asked for.",
    )
    worker_gpus: int = Field(
        0, ge=0, le=1, description="GPUs that a worker asks Ray for. 0: it runs on the CPU, one on a node."
    )
    max_context_tokens: int = Field(
        0, ge=0, description="Longest prompt and answer together. 0: the model's own limit, at most 8192."
    )
    max_workers: int = Field(
        0,
        ge=0,
        le=64,
        description="More than workers: as many may be started while so much is asked for. 0: none.",
    )
    scale_up_s: float = Field(
        10.0, ge=0, le=3600, description="How long more must be asked for before a worker is added."
    )
    scale_down_s: float = Field(
        300.0, ge=0, le=86_400, description="How long less must be asked for before a worker goes."
    )
    max_concurrent: int = Field(
        32, ge=1, le=1024, description="Answers that one engine decodes at the same time."
    )
    block_tokens: int = Field(32, ge=16, description="Tokens in a KV block. A multiple of 32 on the CPU.")
    kv_device_bytes: int = Field(
        512 * MIB, ge=64 * MIB, description="KV memory of an engine on the CPU. On CUDA vLLM sizes it itself."
    )
    kv_host_bytes: int = Field(
        256 * MIB, ge=16 * MIB, description="Host memory of an engine's KV tier, a file in /dev/shm."
    )
    kv_ttl_s: int = Field(24 * 3600, ge=1, description="How long an unused KV entry stays in Redis.")
    kv_quota_bytes: int = Field(
        0,
        ge=0,
        description="Bytes of KV in Redis for all tenants together. 0: nine tenths of cache_max_bytes where "
        "Redis is private, else none.",
    )
    kv_tenant_quota_bytes: int = Field(
        0, ge=0, description="Bytes of KV in Redis for each tenant. 0: no limit but kv_quota_bytes."
    )
    kv_admit_on_use: int = Field(
        1, ge=1, le=2, description="Store KV in Redis when it is first computed (1), or the second time (2)."
    )
    kv_always_load: bool = Field(
        False, description="Load KV from Redis even where computing it again would be quicker."
    )
    kv_codec: Literal["raw", "lossless", "int8"] = Field(
        "raw",
        description="How KV is stored in Redis: raw, lossless (bfloat16 only, a third smaller) or int8 "
        "(about a byte a number, not exact).",
    )
    kv_io_timeout_ms: int = Field(
        500,
        ge=1,
        le=60_000,
        description="How long a worker waits for one Redis answer before it computes instead.",
    )
    omp_threads: int = Field(1, ge=1, description="OpenMP threads of an engine on the CPU.")
    worker_nice: int = Field(
        10,
        ge=0,
        le=19,
        description="How far the workers' processes stand back for the gateway and Redis on the processor, "
        "as nice has it.",
    )
    lease_s: float = Field(
        3.0, gt=0.5, description="How long a worker's registration outlives its last sign of life."
    )

    @model_validator(mode="after")
    def _a_module_fits_into_staging(self) -> Self:
        if self.max_staging_bytes_per_tenant < self.max_module_bytes:
            raise ValueError("max_staging_bytes_per_tenant must not be less than max_module_bytes")
        return self

    @field_validator("redis_url")
    @classmethod
    def _one_server(cls, url: SecretStr) -> SecretStr:
        scheme = url.get_secret_value().partition("://")[0]
        if scheme.partition("+")[2] in ("cluster", "sentinel"):
            raise ValueError(
                f"the registry is one server, redis://, rediss:// or unix://; {scheme}:// is for "
                "cache_redis_url only"
            )
        return url

    @property
    def data(self) -> Path:
        """Raises StartupError."""
        try:
            return self.data_dir.expanduser().absolute()
        except RuntimeError:
            raise StartupError(
                f"setting data_dir: {self.data_dir} cannot be found, since there is no home directory; name "
                "another"
            ) from None

    @property
    def modules_root(self) -> Path:
        """The directory that workers run in.

        Workers name modules `modules/<digest>`, so that a module's path is the same on every machine.
        """
        return self.data

    @property
    def most_workers(self) -> int:
        """How many there may be at a time."""
        return max(self.workers, self.max_workers)

    @property
    def redis(self) -> str:
        """The registry's URL, with internal_tls_* where it asks for TLS and does not say with what."""
        return self._with_certificates(self.redis_url)

    @property
    def cache_redis(self) -> str:
        """As `redis`, of the cache."""
        return self._with_certificates(self.cache_redis_url) or self.redis

    def _with_certificates(self, url: SecretStr) -> str:
        files = self.internal_tls_ca_file, self.internal_tls_cert_file, self.internal_tls_key_file
        return with_certificates(url.get_secret_value(), *files)

    @property
    def vector_uri(self) -> str:
        return self.milvus_uri or str(self.data / "milvus.db")
