"""What a container's environment, command and arguments are."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass

from loadtests.cluster.kubelet.objects import Manifest, ManifestFault, Objects, Pod

_REFERENCE = re.compile(r"\$\$|\$\(([A-Za-z_][A-Za-z0-9_.-]*)\)")


@dataclass(frozen=True)
class PodFacts:
    """What fields of a pod are known once it has a place."""

    address: str
    node_name: str
    node_address: str


def texts_of(kind: str, name: str, objects: Objects, *, optional: bool = False) -> dict[str, bytes]:
    """The entries of a ConfigMap or Secret. Raises ManifestFault where it is missing and not optional."""
    if (manifest := objects.find(kind, name)) is None:
        if optional:
            return {}
        raise ManifestFault(f"there is no {kind} {name}")
    entries = {key: base64.b64decode(text) for key, text in (manifest.get("binaryData") or {}).items()}
    for key, text in (manifest.get("data") or {}).items():
        entries[key] = base64.b64decode(text) if kind == "Secret" else text.encode()
    for key, text in (manifest.get("stringData") or {}).items():
        entries[key] = text.encode()
    return entries


def field_of(path: str, pod: Pod, facts: PodFacts, namespace: str) -> str:
    """A field of the downward API. Raises ManifestFault."""
    fields = {
        "metadata.name": pod.name,
        "metadata.namespace": namespace,
        "metadata.uid": f"uid-{pod.name}",
        "status.podIP": facts.address,
        "status.podIPs": facts.address,
        "status.hostIP": facts.node_address,
        "spec.nodeName": facts.node_name,
        "spec.serviceAccountName": str(pod.spec.get("serviceAccountName", "default")),
    }
    if path in fields:
        return fields[path]
    labelled = re.fullmatch(r"metadata\.(labels|annotations)\['(.+)'\]", path)
    if labelled is None:
        raise ManifestFault(f"{pod.name}: no field {path}")
    return (pod.labels if labelled[1] == "labels" else pod.annotations).get(labelled[2], "")


def environment_of(
    container: Manifest, pod: Pod, facts: PodFacts, objects: Objects, links: Mapping[str, str]
) -> dict[str, str]:
    """The container's environment, without the image's.

    links: what Services add to it (`service_links`), unless the pod has enableServiceLinks: false.
    """
    environment = dict(links) if pod.spec.get("enableServiceLinks", True) else {}
    for source in container.get("envFrom") or []:
        prefix = source.get("prefix", "")
        for kind, key in (("ConfigMap", "configMapRef"), ("Secret", "secretRef")):
            if reference := source.get(key):
                optional = bool(reference.get("optional"))
                entries = texts_of(kind, reference["name"], objects, optional=optional)
                environment |= {prefix + name: text.decode() for name, text in entries.items()}
    for variable in container.get("env") or []:
        text = _value_of(variable, pod, facts, objects)
        if text is not None:
            environment[variable["name"]] = expanded(text, environment)
    return environment


def _value_of(variable: Manifest, pod: Pod, facts: PodFacts, objects: Objects) -> str | None:
    """None: an optional entry that is not there."""
    source = variable.get("valueFrom")
    if source is None:
        return str(variable.get("value", ""))
    if reference := source.get("fieldRef"):
        return field_of(reference["fieldPath"], pod, facts, objects.namespace)
    for kind, key in (("ConfigMap", "configMapKeyRef"), ("Secret", "secretKeyRef")):
        if reference := source.get(key):
            optional = bool(reference.get("optional"))
            entries = texts_of(kind, reference["name"], objects, optional=optional)
            if reference["key"] in entries:
                return entries[reference["key"]].decode()
            if optional:
                return None
            raise ManifestFault(f"{kind} {reference['name']} has no {reference['key']}")
    raise ManifestFault(f"{variable['name']}: no kubelet of ours reads {sorted(source)}")


def expanded(text: str, environment: Mapping[str, str]) -> str:
    """With `$(NAME)` replaced by the variable where there is one, and `$$` by `$`."""

    def replaced(match: re.Match[str]) -> str:
        return "$" if match[0] == "$$" else environment.get(match[1], match[0])

    return _REFERENCE.sub(replaced, text)


def command_of(container: Manifest, environment: Mapping[str, str], entrypoint: tuple[str, ...]) -> list[str]:
    """The container's command line. entrypoint: the image's, which `command` replaces."""
    command = container.get("command") or list(entrypoint)
    line = [expanded(str(word), environment) for word in [*command, *(container.get("args") or [])]]
    if not line:
        raise ManifestFault(f"container {container['name']} has neither a command nor arguments")
    return line


def service_links(objects: Objects, addresses: Mapping[str, str]) -> dict[str, str]:
    """The variables that a pod gets of every Service with an address, in the form of Docker's links.

    addresses: of Services, by name. A Service named `memserve` gives MEMSERVE_PORT=tcp://…
    """
    links: dict[str, str] = {}
    for service in objects.of("Service"):
        name = service["metadata"]["name"]
        if name not in addresses:
            continue
        prefix, address = name.upper().replace("-", "_"), addresses[name]
        ports = service["spec"].get("ports") or []
        links[f"{prefix}_SERVICE_HOST"] = address
        for place, port in enumerate(ports):
            number, protocol = port["port"], port.get("protocol", "TCP")
            url = f"{protocol.lower()}://{address}:{number}"
            if place == 0:
                links |= {f"{prefix}_SERVICE_PORT": str(number), f"{prefix}_PORT": url}
            if port.get("name"):
                links[f"{prefix}_SERVICE_PORT_{port['name'].upper().replace('-', '_')}"] = str(number)
            own = f"{prefix}_PORT_{number}_{protocol}"
            links |= {own: url, f"{own}_PROTO": protocol.lower(), f"{own}_PORT": str(number)}
            links[f"{own}_ADDR"] = address
    return links
