"""What the chart made at random is kept over upgrades. Helm asks a Kubernetes API: here a small one."""

from __future__ import annotations

import base64
import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import helm_python
import yaml

from tests.helm.charts import Manifest, chart, of_kind

SECRETS: Manifest = {
    "kind": "APIResourceList",
    "groupVersion": "v1",
    "resources": [
        {"name": "secrets", "singularName": "", "namespaced": True, "kind": "Secret", "verbs": ["get"]},
    ],
}
NOT_FOUND: Manifest = {
    "kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404,
}  # fmt: skip


class Cluster(http.server.ThreadingHTTPServer):
    """The part of Kubernetes' API that `lookup` asks: Secrets, by their names."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Asked)
        self.secrets: dict[str, Manifest] = {}

    def render(self, values: dict[str, Any]) -> list[Manifest]:
        """The objects of an upgrade, which then are what the cluster has."""
        where = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{self.server_address[1]}"}}],
            "users": [{"name": "u", "user": {}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u", "namespace": "prod"}}],
            "current-context": "c",
        }
        with helm_python.Config(
            kubeconfig_content=json.dumps(where), namespace="prod", storage_driver="memory"
        ) as config:
            texts = config.render(chart(), values, name="memserve", namespace="prod", is_upgrade=True)
        objects = [
            document
            for path, text in texts.items()
            if not path.endswith("NOTES.txt")
            for document in yaml.load_all(text, yaml.CSafeLoader)
            if document
        ]
        self.secrets = {each["metadata"]["name"]: each for each in of_kind(objects, "Secret")}
        return objects


class _Asked(http.server.BaseHTTPRequestHandler):
    server: Cluster

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        answer = SECRETS if path == "/api/v1" else self.server.secrets.get(path.rpartition("/")[2], NOT_FOUND)
        body = json.dumps(answer).encode()
        self.send_response(404 if answer is NOT_FOUND else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def cluster() -> Iterator[Cluster]:
    with Cluster() as made:
        thread = threading.Thread(target=made.serve_forever, daemon=True)
        thread.start()
        try:
            yield made
        finally:
            made.shutdown()
            thread.join()


def values_of(objects: list[Manifest]) -> dict[str, dict[str, str]]:
    return {each["metadata"]["name"]: each["data"] for each in of_kind(objects, "Secret")}


def test_secrets_are_kept_over_upgrades() -> None:
    with cluster() as one:
        first = values_of(one.render({}))
        assert first.keys() == {
            "memserve-salt", "memserve-ray-token", "memserve-api-keys", "memserve-redis",
        }  # fmt: skip
        second = values_of(one.render({"settings": {"page": False}}))
        assert second == first
        encrypted = values_of(one.render({"requireCrds": False, "tls": {"internal": {
            "enabled": True, "certManager": {"enabled": True},
        }}}))  # fmt: skip
        assert encrypted["memserve-redis"]["password"] == first["memserve-redis"]["password"]
        url = base64.b64decode(encrypted["memserve-redis"]["redis_url"]).decode()
        assert url.startswith("rediss://")


def test_another_cluster_gets_secrets_of_its_own() -> None:
    with cluster() as one, cluster() as other:
        first, second = values_of(one.render({})), values_of(other.render({}))
        for name, data in first.items():
            for key in data.keys() - {"keys.json"}:
                assert data[key] != second[name][key]
