"""Values that cannot work are refused, with the key that is at fault."""

from __future__ import annotations

from typing import Any

import helm_python
import pytest

from memserve.config import Settings
from tests.helm.charts import NAMES, at, example, manifests, render, with_values

SERVERS = at("milvus.uri", "http://milvus:19530")
SHARED = at("moduleStore.claim.enabled", True)
PUBLIC_TLS = at("tls.public.enabled", True)
INTERNAL_TLS = at("tls.internal", {"enabled": True, "certManager": {"enabled": True}})
SCALED = at("workers.autoscaling", {"enabled": True, "prometheusAddress": "http://prometheus:9090"})

# By the schema: the place of the key as JSON pointers name it, and the rule.
BY_SCHEMA: list[tuple[dict[str, Any], str]] = [
    (at("gatway", {}), "additional properties 'gatway' not allowed"),
    (at("gateway.replica", 2), "at '/gateway': additional properties 'replica' not allowed"),
    (at("gateway.image.repo", "x"), "at '/gateway/image': additional properties 'repo' not allowed"),
    (at("gateway.image.repository", ""), "at '/gateway/image/repository'"),
    (at("gateway.image.digest", "sha256:abc"), "at '/gateway/image/digest'"),
    (at("gateway.image.pullPolicy", "Sometimes"), "at '/gateway/image/pullPolicy': value must be one of"),
    (at("gateway.replicas", 0), "at '/gateway/replicas': minimum"),
    (at("gateway.replicas", "two"), "at '/gateway/replicas': got string, want null or integer"),
    (at("gateway.drainDelaySeconds", -1), "at '/gateway/drainDelaySeconds': minimum"),
    (at("gateway.resources.limit", {}), "at '/gateway/resources': additional properties 'limit'"),
    (at("gateway.resources.limits.memory", "2 GB"), "at '/gateway/resources/limits/memory'"),
    (at("gateway.service.grpc.type", "External"), "at '/gateway/service/grpc/type'"),
    (at("gateway.service.grpc.port", 0), "at '/gateway/service/grpc/port'"),
    (at("gateway.tolerations", [{"keys": "a"}]), "at '/gateway/tolerations/0': additional properties 'keys'"),
    (at("gateway.affinity.nodeAfinity", {}), "at '/gateway/affinity': additional properties 'nodeAfinity'"),
    (at("gateway.extraEnv", [{"value": "a"}]), "at '/gateway/extraEnv/0': missing property 'name'"),
    (at("gateway.pdb.maxUnavailable", "half"), "at '/gateway/pdb/maxUnavailable'"),
    (at("settings.kv_codecs", "raw"), "at '/settings': additional properties 'kv_codecs' not allowed"),
    (at("settings.kv_codec", "zip"), "at '/settings/kv_codec': value must be one of"),
    (at("settings.max_inflight", 0), "at '/settings/max_inflight': minimum"),
    (at("settings.kv_always_load", "yes"), "at '/settings/kv_always_load': got string, want boolean"),
    (at("settings.traces_endpoint", "otel:4317"), "at '/settings/traces_endpoint'"),
    (at("workers.settings.block_tokens", 8), "at '/workers/settings/block_tokens': minimum"),
    (at("workers.mode", "deployment"), "at '/workers/mode': value must be one of"),
    (at("workers.shmSize", "big"), "at '/workers/shmSize'"),
    (at("workers.gpu.count", "one"), "at '/workers/gpu/count'"),
    (at("workers.kuberay.rayVersion", "latest"), "at '/workers/kuberay/rayVersion'"),
    (at("workers.autoscaling.threshold", 2), "at '/workers/autoscaling/threshold': got number, want string"),
    (at("workers.replicas", 65), "at '/workers/replicas': maximum"),
    (at("modelCache.type", "hostPath"), "at '/modelCache/type': value must be one of"),
    (at("redis.mode", "none"), "at '/redis/mode': value must be one of 'external', 'trial'"),
    (at("redis.external.url", "localhost:6379"), "at '/redis/external/url'"),
    (at("redis.trial.cache.maxBytes", 1024), "at '/redis/trial/cache/maxBytes'"),
    (at("milvus.uri", "milvus.db"), "at '/milvus/uri'"),
    (at("tls.public.certManager.issuerRef.kind", "Vault"), "at '/tls/public/certManager/issuerRef/kind'"),
    (at("metrics.serviceMonitor.interval", "often"), "at '/metrics/serviceMonitor/interval'"),
    (at("networkPolicy.clients", [{"podSelectors": {}}]), "at '/networkPolicy/clients/0': additional"),
    (at("networkPolicy.clients", [{}]), "at '/networkPolicy/clients/0': minProperties"),
    (at("networkPolicy.kubeletCidrs", ["10.0.0.1"]), "at '/networkPolicy/kubeletCidrs/0'"),
    (at("networkPolicy.redis.ports", []), "at '/networkPolicy/redis/ports': minItems"),
    (at("routes.parentRefs", [{"namespace": "x"}]), "at '/routes/parentRefs/0': missing property 'name'"),
    (at("podIds.runAsUser", 0), "at '/podIds/runAsUser': minimum"),
    (at("fullnameOverride", "Big_Name"), "at '/fullnameOverride'"),
]

# By the chart: the key, and what to do.
BY_CHART: list[tuple[dict[str, Any], str]] = [
    (at("gateway.replicas", 2), "milvus.uri: Milvus Lite serves one gateway; name a Milvus server"),
    (at("gateway.autoscaling.enabled", True), "milvus.uri: Milvus Lite serves one gateway"),
    (
        with_values(SERVERS, at("gateway.replicas", 2)),
        "moduleStore: several gateways need one that they share; set moduleStore.url or",
    ),
    (
        with_values(SERVERS, SHARED, at("gateway", {"replicas": 2, "autoscaling": {"enabled": True}})),
        "gateway.replicas: leave it out while gateway.autoscaling.enabled",
    ),
    (
        with_values(SERVERS, SHARED, at("gateway.autoscaling", {"enabled": True, "minReplicas": 9})),
        "gateway.autoscaling.minReplicas: more than maxReplicas",
    ),
    (
        with_values(
            SERVERS,
            SHARED,
            at("gateway.autoscaling", {"enabled": True, "targetCPUUtilizationPercentage": 0}),
        ),
        "gateway.autoscaling.metrics: name a metric",
    ),
    (
        with_values(SCALED, at("workers.replicas", 2)),
        "workers.replicas: leave it out while workers.autoscaling.enabled",
    ),
    (with_values(SCALED, at("workers.autoscaling.minReplicas", 9)), "workers.autoscaling.minReplicas: more"),
    (
        with_values(SCALED, at("workers.mode", "kuberay")),
        "workers.autoscaling: KEDA scales a StatefulSet; with workers.mode kuberay set workers.kuberay.auto",
    ),
    (at("workers.autoscaling.enabled", True), "workers.autoscaling.prometheusAddress: KEDA needs Prometheus"),
    (
        at("workers.kuberay.autoscaler.enabled", True),
        "workers.kuberay.autoscaler: needs workers.mode kuberay",
    ),
    (
        at("workers", {"mode": "kuberay", "replicas": 2, "kuberay": {"autoscaler": {"enabled": True}}}),
        "workers.replicas: leave it out while workers.kuberay.autoscaler.enabled",
    ),
    (
        at("workers.kuberay.gcsFaultTolerance.enabled", True),
        "workers.kuberay.gcsFaultTolerance.redisAddress: name the Redis",
    ),
    (
        at("workers", {"onePerNode": True, "affinity": {"podAffinity": {}}}),
        "workers.onePerNode: workers.affinity is set",
    ),
    (
        at("workers.podLabels", {"app.kubernetes.io/name": "x"}),
        "workers.podLabels: app.kubernetes.io/name is",
    ),
    (at("commonLabels", {"helm.sh/chart": "x"}), "commonLabels: helm.sh/chart is the chart's own"),
    (at("gateway.extraEnv", [{"name": "MEMSERVE_PORT"}]), "gateway.extraEnv: MEMSERVE_PORT is a setting"),
    (at("workers.shmSize", "256Mi"), "workers.shmSize: 256Mi is less than kv_host_bytes of 1 engines"),
    (at("settings.kv_host_bytes", 2**31), "workers.shmSize: 2Gi is less than kv_host_bytes"),
    (at("workers.resources.limits.memory", "2Gi"), "workers.resources.limits.memory: 2Gi is not more than"),
    (at("workers.head.shmSize", "100M"), "workers.head.shmSize: Ray needs 128Mi"),
    (at("redis.trial.cache.maxBytes", 2**31), "redis.trial.cache.maxBytes: the limit of its memory, 1536Mi"),
    (at("modelCache.type", "existingClaim"), "modelCache.existingClaim: name the claim"),
    (at("modelCache.existingClaim", "x"), "modelCache.existingClaim: set modelCache.type"),
    (at("moduleStore", {"url": "s3://a/b", "claim": {"enabled": True}}), "moduleStore.url: give a URL or a"),
    (
        at("moduleStore.url", "s3://a/b"),
        "moduleStore.url: s3://a/b is outside of the cluster; set networkPol",
    ),
    (
        at("settings.model", "org/model"),
        "settings.model: org/model is outside of the cluster; set networkPol",
    ),
    (at("moduleStore.claim.existingClaim", "x"), "moduleStore.claim.existingClaim: set moduleStore.claim.en"),
    (at("redis.mode", "external"), "redis.external.existingSecret: no Redis is named; name a Secret"),
    (
        at("redis", {"mode": "external", "external": {"url": "redis://a", "existingSecret": "b"}}),
        "redis.external.url: give a URL or a Secret",
    ),
    (at("redis.external.existingSecret", "b"), "redis.external: redis.mode is trial"),
    (at("milvus.existingSecret", "x"), "milvus.existingSecret: a token without milvus.uri"),
    (PUBLIC_TLS, "tls.public.existingSecret: TLS needs a certificate; name a Secret, or set"),
    (
        with_values(PUBLIC_TLS, at("tls.public.certManager.enabled", True)),
        "tls.public.certManager.issuerRef.name: name the issuer",
    ),
    (
        with_values(PUBLIC_TLS, at("tls.public", {"existingSecret": "x", "clientCertificates": True})),
        "tls.public.testClientSecret: clients need certificates",
    ),
    (at("tls.public.existingSecret", "x"), "tls.public.enabled: it is false"),
    (at("tls.internal.enabled", True), "tls.internal.workerSecret: TLS needs a certificate"),
    (
        with_values(INTERNAL_TLS, at("tls.internal.workerSecret", "x")),
        "tls.internal.gatewaySecret: cert-manager makes the certificates",
    ),
    (at("tls.internal.workerSecret", "x"), "tls.internal.enabled: it is false"),
    (
        at("metrics", {"enabled": False, "serviceMonitor": {"enabled": True}}),
        "metrics.enabled: it is false, while a monitor",
    ),
    (at("routes.http.enabled", True), "routes.parentRefs: name the Gateway"),
    (at("ingress.http.enabled", True), "ingress.http.hosts: name at least one host"),
    (
        at("ingress.grpc", {"enabled": True, "hosts": ["a.b"]}),
        "ingress.grpc.tlsSecret: controllers speak gRPC",
    ),
    (
        at("gateway.service.grpc", {"headless": True, "type": "LoadBalancer"}),
        "gateway.service.grpc.headless: goes with the type ClusterIP only",
    ),
    (at("serviceAccount.name", "x"), "serviceAccount.name: set serviceAccount.create to false"),
    (at("settings.redis_url", "redis://a"), "settings.redis_url: the chart sets it: redis.external"),
    (at("gateway.settings.port", 1), "gateway.settings.port: the chart sets it: gateway.service.grpc.port"),
    (at("settings.jwt_issuer", "https://i"), "settings.jwt_issuer: tokens need keys to check them with"),
    (at("secrets.jwks.existingSecret", "x"), "settings.jwt_audience: tokens are checked with it"),
    (at("workers.settings.jwt_role_claim", "r"), "workers.settings.jwt_role_claim: gateways check tokens"),
    (at("workers", {"replicas": 33, "gpu": {"count": 2}}), "workers.replicas: more than 64 workers"),
    (at("workers.settings.workers", 3), "workers.settings.workers: the chart sets it: workers.replicas"),
]


def identity(value: tuple[dict[str, Any], str]) -> str:
    return value[1][:60]


@pytest.mark.parametrize("refused", BY_SCHEMA, ids=identity)
def test_the_schema_names_the_key_and_the_rule(refused: tuple[dict[str, Any], str]) -> None:
    values, words = refused
    with pytest.raises(helm_python.HelmError) as error:
        render(values)
    assert words in str(error.value)


@pytest.mark.parametrize("refused", BY_CHART, ids=identity)
def test_the_chart_names_the_key_and_what_to_do(refused: tuple[dict[str, Any], str]) -> None:
    values, words = refused
    with pytest.raises(helm_python.HelmError) as error:
        render(values)
    assert words in str(error.value)


def test_all_faults_are_said_at_once() -> None:
    with pytest.raises(helm_python.HelmError) as error:
        render(
            {"gateway": {"replicas": 2}, "redis": {"mode": "external"}, "tls": {"public": {"enabled": True}}}
        )
    assert str(error.value).count("\n  - ") == 4


@pytest.mark.parametrize("name", sorted(Settings.model_fields))
def test_a_setting_is_taken_or_refused_with_the_value_to_use(name: str) -> None:
    """No setting is forgotten: what the chart does not set may be set, by its default."""
    default = Settings.model_fields[name].default
    plain = default if isinstance(default, str | int | float | bool) else ""
    refusal = ""
    try:
        objects = manifests(at(f"settings.{name}", plain))
    except helm_python.HelmError as error:
        refusal = str(error)
    if refusal:
        assert f"settings.{name}: the chart sets it: " in refusal
    else:
        text = next(
            each for each in objects if each["metadata"]["name"] == "memserve-gateway" and "data" in each
        )
        assert f"MEMSERVE_{name.upper()}" in text["data"]


def unknown_at_every_level(schema: dict[str, Any], path: str = "") -> list[str]:
    """Where a schema takes keys that it does not name."""
    found = []
    if "properties" in schema and schema.get("additionalProperties") is not False:
        found.append(path)
    for name, below in schema.get("properties", {}).items():
        if path or name != "global":
            found += unknown_at_every_level(below, f"{path}/{name}")
    return found


def test_unknown_keys_are_refused_at_every_level() -> None:
    from tests.helm.charts import chart

    schema = chart().schema
    assert schema is not None
    assert unknown_at_every_level(schema) == []
    assert unknown_at_every_level({"properties": {"a": {"properties": {}}}}) == ["", "/a"]
    for name in ("resources", "tolerations", "affinity", "peers", "settings", "parentRef", "reference"):
        definition = schema["$defs"][name]
        assert definition.get("items", definition)["additionalProperties"] is False


@pytest.mark.parametrize("name", NAMES)
def test_the_examples_are_not_refused(name: str) -> None:
    assert render(example(name))
