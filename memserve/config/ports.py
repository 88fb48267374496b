"""The ports of every part, and what they serve."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field, SecretStr

from memserve.config.values import CorsOrigins, Port


class PortSettings(BaseModel):
    """Addresses and ports, metrics, traces and logs."""

    # Ports, and what they serve
    host: str = Field(
        "127.0.0.1", description="Address that the gateway listens on. Beyond loopback it needs API keys."
    )
    worker_host: str = Field(
        "127.0.0.1",
        description="Address that the workers listen on for gateways, whatever the gateway's host is.",
    )
    port: Port = Field(50051, description="gRPC port of the gateway. 0: any free port, which is printed.")
    http: bool = Field(True, description="Serve OpenAI's API over HTTP, on `host` and `http_port`.")
    page: bool = Field(
        True, description="Serve a page for people at `/` of the HTTP port: workers, memories, requests."
    )
    http_cors_origins: CorsOrigins = Field(
        "", description="Web pages that may call the HTTP port: origins, by comma, or *. Empty: none."
    )
    http_port: Port = Field(8000, description="HTTP port of the gateway. 0: any free port.")
    metrics_port: Port = Field(
        9464, description="HTTP port of the gateway's Prometheus metrics. 0: any free port."
    )
    metrics_host: str = Field(
        "127.0.0.1",
        description="Address of the gateway's and the workers' metrics, whatever their hosts are.",
    )
    metrics: bool = Field(True, description="Serve Prometheus metrics, of the gateway and of the workers.")
    metrics_key: SecretStr = Field(
        SecretStr(""),
        description="What a scraper must send as `authorization: Bearer <key>`. Empty: metrics need no key.",
    )
    traces_endpoint: str = Field(
        "",
        pattern=r"^(https?://[^/?#@\s]+)?$",
        description="OTLP receiver of traces over gRPC: http://host:4317, or https://. Empty: no traces.",
    )
    traces_sample: float = Field(
        1.0, ge=0, le=1, description="Share of requests that are traced, where the caller has not decided."
    )
    log_format: Literal["text", "json"] = Field(
        "text", description="Log lines of gateways and workers: for people, or one JSON object each."
    )
    reflection: bool = Field(
        True, description="Serve gRPC reflection, which needs no key and shows what RPCs there are."
    )
    health_port: Port = Field(
        0,
        description="Port of a gRPC health service for Kubernetes' probes, which speak no TLS, on `host`. "
        "0: none.",
    )
    drain_delay_s: float = Field(
        0.0,
        ge=0,
        le=3600,
        description="How long a gateway that is told to stop still takes calls, while its health says "
        "NOT_SERVING: the time that load balancers need to see it. gRPC connections are renewed more often "
        "than that, so that clients move on.",
    )
    worker_port: Port = Field(
        0,
        description="First port that the workers of a machine listen on for gateways; each takes the first "
        "that is free of 64. 0: any.",
    )
    worker_metrics_port: Port = Field(0, description="The same for the workers' metrics. 0: any.")
    worker_address: str = Field(
        "",
        pattern=r"^[^\s/@,]*$",
        description="Address of this machine that gateways and other nodes reach it by, where worker_host is "
        "0.0.0.0 or ::. Empty: the one that it reaches Ray's head from.",
    )
    worker_health_port: Port = Field(
        0,
        description="Port of a gRPC health service of a machine's workers for Kubernetes' probes, on "
        "`worker_host`. 0: none.",
    )
