"""Manifests of a toy: a server that is ready a moment after its start, and that drains when told to end."""

from __future__ import annotations

from typing import Any

import yaml

SERVER = """\
import http.server, os, signal, sys, threading, time
ready_s = time.monotonic() + float(os.environ["STARTS_FOR_S"])
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/slow":
            time.sleep(0.5)
        text = repr({
            "name": os.environ["NAME"], "address": os.environ["ADDRESS"],
            "uid": os.getuid(), "pid": os.getpid(),
            "secret": open("/etc/toy/password").read(), "version": os.environ["VERSION"],
            "variables": sorted(os.environ),
        }).encode()
        self.send_response(200 if time.monotonic() > ready_s else 503)
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)
    def log_message(self, *line):
        pass
server = http.server.ThreadingHTTPServer(("0.0.0.0", 8080), Answer)
server.daemon_threads = False
signal.signal(signal.SIGTERM, lambda *_: threading.Timer(1.5, server.shutdown).start())
server.serve_forever()
server.server_close()
"""

_OBJECTS = """
apiVersion: v1
kind: ConfigMap
metadata: {name: toy}
data: {server.py: ""}
---
apiVersion: v1
kind: Secret
metadata: {name: toy}
stringData: {password: pass-word}
---
apiVersion: v1
kind: Service
metadata: {name: toy}
spec:
  selector: {app: toy}
  ports: [{port: 80, targetPort: http}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: toy}
spec:
  podSelector: {matchLabels: {app: toy}}
  policyTypes: [Ingress, Egress]
  ingress:
  - from: [{podSelector: {matchLabels: {caller: "yes"}}}]
    ports: [{port: http}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: toy}
spec:
  replicas: 2
  selector: {matchLabels: {app: toy}}
  strategy: {rollingUpdate: {maxSurge: 1, maxUnavailable: 0}}
  template:
    metadata: {labels: {app: toy}}
    spec:
      terminationGracePeriodSeconds: 30
      securityContext: {runAsUser: 10001, runAsNonRoot: true, fsGroup: 10001}
      volumes:
      - {name: code, configMap: {name: toy}}
      - {name: secret, secret: {secretName: toy, defaultMode: 256}}
      - {name: tmp, emptyDir: {}}
      initContainers:
      - name: prepare
        image: toy
        command: [touch, /tmp/prepared]
        volumeMounts: [{name: tmp, mountPath: /tmp}]
      containers:
      - name: server
        image: toy
        command: [sh, -c, "rm -f /tmp/sick; test -e /tmp/prepared && exec python3 /code/server.py"]
        ports: [{name: http, containerPort: 8080}]
        env:
        - {name: NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
        - {name: ADDRESS, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
        - {name: STARTS_FOR_S, value: "0.3"}
        - {name: VERSION, value: one}
        securityContext:
          readOnlyRootFilesystem: true
          allowPrivilegeEscalation: false
          capabilities: {drop: [ALL]}
        startupProbe: {tcpSocket: {port: http}, periodSeconds: 0.2, failureThreshold: 600}
        readinessProbe: {httpGet: {path: /, port: http}, periodSeconds: 0.2, timeoutSeconds: 10}
        livenessProbe:
          exec: {command: [sh, -c, "test ! -e /tmp/sick"]}
          periodSeconds: 0.2
          timeoutSeconds: 10
          failureThreshold: 2
        volumeMounts:
        - {name: code, mountPath: /code}
        - {name: secret, mountPath: /etc/toy}
        - {name: tmp, mountPath: /tmp}
"""


def manifests(version: str = "one", starts_for_s: float = 0.3) -> list[dict[str, Any]]:
    """version: what the pods answer. starts_for_s: how long they are not ready."""
    objects = list(yaml.safe_load_all(_OBJECTS))
    objects[0]["data"]["server.py"] = SERVER
    variables = {
        entry["name"]: entry for entry in objects[-1]["spec"]["template"]["spec"]["containers"][0]["env"]
    }
    variables["VERSION"]["value"] = version
    variables["STARTS_FOR_S"]["value"] = str(starts_for_s)
    return objects
