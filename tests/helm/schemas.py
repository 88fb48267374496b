"""Schemas of the kinds that operators define.

cert-manager, KEDA and Prometheus' operator: models that the packages cloudcoil-models-… make of the
operators' own definitions. KubeRay and the Gateway API have no such package: what the chart uses of them is
written down here by their documents, and a Ray pod is checked as a pod of Kubernetes.
"""

from __future__ import annotations

import copy
import re
from functools import cache
from typing import Any

import jsonschema
from cloudcoil.models.cert_manager.v1 import Certificate, Issuer
from cloudcoil.models.keda.v1alpha1 import ScaledObject
from cloudcoil.models.prometheus_operator.v1 import PodMonitor, PrometheusRule, ServiceMonitor
from kubernetes_validate.utils import schema_contents
from referencing import Registry, Resource

Schema = dict[str, Any]
TEXT: Schema = {"type": "string", "minLength": 1}
WHOLE: Schema = {"type": "integer", "minimum": 0}
METADATA: Schema = {"type": "object", "required": ["name"]}
ANY: Schema = {"type": "object"}


def closed(required: list[str], **properties: Schema) -> Schema:
    return {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


def resource(group: str, kind: str, spec: Schema) -> Schema:
    return closed(
        ["apiVersion", "kind", "metadata", "spec"],
        apiVersion={"const": group},
        kind={"const": kind},
        metadata=METADATA,
        spec=spec,
    )


def a_list(items: Schema) -> Schema:
    return {"type": "array", "items": items, "minItems": 1}


HOSTS = a_list({"type": "string", "pattern": r"^(\*\.)?[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"})
BACKENDS = a_list(closed(["name", "port"], name=TEXT, port=WHOLE))
PARENTS = a_list(
    closed(["name"], group=TEXT, kind=TEXT, name=TEXT, namespace=TEXT, sectionName=TEXT, port=WHOLE)
)
DURATION: Schema = {"type": "string", "pattern": r"^([0-9]{1,5}(h|m|s|ms)){1,4}$"}
GRPC_ROUTE = resource(
    "gateway.networking.k8s.io/v1",
    "GRPCRoute",
    closed(
        [],
        parentRefs=PARENTS,
        hostnames=HOSTS,
        rules=a_list(closed([], backendRefs=BACKENDS)),
    ),
)
HTTP_ROUTE = resource(
    "gateway.networking.k8s.io/v1",
    "HTTPRoute",
    closed(
        [],
        parentRefs=PARENTS,
        hostnames=HOSTS,
        rules=a_list(closed([], backendRefs=BACKENDS, timeouts=closed([], request=DURATION))),
    ),
)
START_PARAMETERS: Schema = {"type": "object", "additionalProperties": {"type": "string"}}
SECRET_KEY = closed(["secretKeyRef"], secretKeyRef=closed(["name", "key"], name=TEXT, key=TEXT))
RAY_CLUSTER = closed(
    ["headGroupSpec"],
    rayVersion=TEXT,
    authOptions=closed([], mode={"enum": ["disabled", "token"]}),
    enableInTreeAutoscaling={"type": "boolean"},
    autoscalerOptions=closed(
        [], version={"enum": ["v1", "v2"]}, idleTimeoutSeconds=WHOLE, securityContext=ANY
    ),
    gcsFaultToleranceOptions=closed([], redisAddress=TEXT, redisPassword=closed([], valueFrom=SECRET_KEY)),
    headGroupSpec=closed(
        ["template"],
        serviceType={"enum": ["ClusterIP", "NodePort", "LoadBalancer"]},
        rayStartParams=START_PARAMETERS,
        template=ANY,
    ),
    workerGroupSpecs=a_list(
        closed(
            ["groupName", "maxReplicas", "minReplicas", "template"],
            groupName=TEXT,
            replicas=WHOLE,
            minReplicas=WHOLE,
            maxReplicas=WHOLE,
            rayStartParams=START_PARAMETERS,
            template=ANY,
        )
    ),
)
RAY_SERVICE = resource(
    "ray.io/v1",
    "RayService",
    closed(
        [],
        rayClusterDeletionDelaySeconds=WHOLE,
        upgradeStrategy=closed([], type={"enum": ["NewCluster", "None"]}),
        serveConfigV2=TEXT,
        rayClusterConfig=RAY_CLUSTER,
    ),
)
MODELS = (Certificate, Issuer, ScaledObject, PodMonitor, PrometheusRule, ServiceMonitor)


def strict(schema: Any) -> Any:
    """The schema, refusing keys that it does not name."""
    if isinstance(schema, list):
        return [strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: strict(value) for key, value in schema.items()}
    if made.get("type") == "object" and "properties" in made:
        made.setdefault("additionalProperties", False)
    return made


SCHEMAS: dict[str, Schema] = {
    "GRPCRoute": GRPC_ROUTE,
    "HTTPRoute": HTTP_ROUTE,
    "RayService": RAY_SERVICE,
    **{model.__name__: strict(model.model_json_schema(by_alias=True)) for model in MODELS},
}


@cache
def kubernetes_validator(api_version: str, kind: str, kubernetes: str) -> Any:
    """Of kubernetes-validate's schemas, which it would read again for each object.

    Raises FileNotFoundError for a kind that the version does not have.
    """
    group = re.sub(r"^([^./]*)(?:\.[^/]*)?/", r"\1-", api_version)
    folder = f"kubernetes-json-schema/v{kubernetes}.0-local-strict"
    schema = schema_contents(f"{folder}/{kind.lower()}-{group}.json", kubernetes)
    return jsonschema.Draft202012Validator(schema, registry=kubernetes_definitions(folder, kubernetes))


@cache
def kubernetes_definitions(folder: str, kubernetes: str) -> Any:
    definitions = schema_contents(f"{folder}/_definitions.json", kubernetes)
    return Resource.from_contents(definitions) @ Registry()


def faults(manifest: dict[str, Any], kubernetes: str) -> list[str]:
    """What is wrong with an object, for a version of Kubernetes such as 1.31."""
    kind = manifest["kind"]
    where = f"{kind} {manifest['metadata']['name']}"
    if kind not in SCHEMAS:
        checked = kubernetes_validator(manifest["apiVersion"], kind, kubernetes)
        return [f"{where}: {error.json_path}: {error.message}" for error in checked.iter_errors(manifest)]
    found = [
        f"{where}: {error.json_path}: {error.message}"
        for error in jsonschema.Draft202012Validator(SCHEMAS[kind]).iter_errors(manifest)
    ]
    if kind == "RayService" and not found:
        for number, template in enumerate(ray_pods(manifest)):
            pod = {"apiVersion": "v1", "kind": "Pod", **copy.deepcopy(template)}
            pod["metadata"]["name"] = f"{manifest['metadata']['name']}-{number}"
            found += faults(pod, kubernetes)
    return found


def ray_pods(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    cluster = manifest["spec"]["rayClusterConfig"]
    return [cluster["headGroupSpec"]["template"], *(each["template"] for each in cluster["workerGroupSpecs"])]
