{{/* The pod of a Ray node, by both modes. */}}

{{- define "memserve.workerResources" -}}
{{- $resources := deepCopy .Values.workers.resources -}}
{{- if .Values.workers.gpu.count -}}
{{- $limits := default dict $resources.limits -}}
{{- $_ := set $limits .Values.workers.gpu.resource (int .Values.workers.gpu.count) -}}
{{- $_ := set $resources "limits" $limits -}}
{{- end -}}
{{- toYaml $resources -}}
{{- end -}}

{{/* What a worker gets to leave: its answers, and half a minute for Ray. */}}
{{- define "memserve.workerGrace" -}}
{{- add (ceil .Values.workers.shutdownGraceSeconds) 30 -}}
{{- end -}}

{{- define "memserve.workerMounts" -}}
- {name: data, mountPath: /var/lib/memserve}
- {name: models, mountPath: /var/lib/memserve/models}
- {name: tmp, mountPath: /tmp}
- {name: shm, mountPath: /dev/shm}
- {name: secrets, mountPath: /etc/memserve/secrets, readOnly: true}
{{- if eq .Values.workers.mode "statefulset" }}
- {name: ray, mountPath: /etc/memserve/ray, readOnly: true}
{{- end }}
{{- if .Values.tls.internal.enabled }}
- {name: internal-tls, mountPath: /etc/memserve/internal-tls, readOnly: true}
{{- end }}
{{- with include "memserve.moduleMount" . | trim }}
{{ . }}
{{- end }}
{{- with .Values.workers.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* root, shm, claimed (the model cache is a StatefulSet's), ephemeral */}}
{{- define "memserve.workerVolumes" -}}
- name: data
  emptyDir: {}
- name: tmp
  emptyDir: {}
- name: shm
  emptyDir: {medium: Memory, sizeLimit: {{ .shm }}}
{{- with include "memserve.modelCacheVolume" (dict "root" .root "claimed" .claimed "ephemeral" .ephemeral) | trim }}
{{ . }}
{{- end }}
{{ include "memserve.secretSettings" (dict "root" .root "gateway" false) }}
{{- if eq .root.Values.workers.mode "statefulset" }}
- name: ray
  secret:
    secretName: {{ include "memserve.rayTokenSecret" .root }}
    defaultMode: 0440
    items:
      - {key: {{ if .root.Values.secrets.rayToken.existingSecret }}{{ .root.Values.secrets.rayToken.key | quote }}{{ else }}token{{ end }}, path: token}
{{- end }}
{{- if .root.Values.tls.internal.enabled }}
{{ include "memserve.certificateVolume" (dict "name" "internal-tls" "secret" (include "memserve.internalTlsSecret" (dict "root" .root "part" "worker"))) }}
{{- end }}
{{- with include "memserve.moduleVolume" .root | trim }}
{{ . }}
{{- end }}
{{- with .root.Values.workers.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "memserve.workerEnvironment" -}}
{{ include "memserve.environment" . }}
- name: MEMSERVE_WORKER_ADDRESS
  valueFrom: {fieldRef: {fieldPath: status.podIP}}
{{- with .Values.workers.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "memserve.workerAnnotations" -}}
checksum/settings: {{ include (print .Template.BasePath "/workers/configmap.yaml") . | sha256sum }}
checksum/secrets: {{ include "memserve.secretsChecksum" . }}
{{- with .Values.workers.podAnnotations }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* root, component */}}
{{- define "memserve.workerLabels" -}}
{{ include "memserve.selector" . }}
memserve/ray: "true"
{{- with .root.Values.workers.podLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Ports of a Ray node that others reach. Its worker processes take 6400 to 6499, which need no names. */}}
{{- define "memserve.rayPorts" -}}
- {name: node-manager, containerPort: 6381}
- {name: object-manager, containerPort: 6382}
- {name: runtime-env, containerPort: 6383}
- {name: agent-grpc, containerPort: 6384}
- {name: agent-http, containerPort: 6385}
- {name: ray-metrics, containerPort: 6386}
{{- end -}}

{{- define "memserve.workerPorts" -}}
- {name: calls, containerPort: 50061}
- {name: health, containerPort: 50062}
{{- if .Values.metrics.enabled }}
- {name: metrics, containerPort: 9465}
{{- end }}
{{- end -}}

{{/* The ports of a Ray node that KubeRay starts: the same that `memserve ray-node` takes. */}}
{{- define "memserve.rayStartPorts" -}}
node-manager-port: "6381"
object-manager-port: "6382"
runtime-env-agent-port: "6383"
dashboard-agent-grpc-port: "6384"
dashboard-agent-listen-port: "6385"
metrics-export-port: "6386"
min-worker-port: "6400"
max-worker-port: "6499"
object-store-memory: "134217728"
{{- end -}}

{{/* root, ready: raylet or worker. Ray's agent says whether the raylet lives; no token is asked for that. */}}
{{- define "memserve.kuberayProbes" -}}
startupProbe:
  httpGet: {path: /api/local_raylet_healthz, port: agent-http}
  periodSeconds: 5
  timeoutSeconds: 5
  failureThreshold: {{ include "memserve.periods" (dict "seconds" .root.Values.workers.startupSeconds "period" 5) }}
readinessProbe:
  {{- if eq .ready "worker" }}
  grpc: {port: 50062, service: ready}
  {{- else }}
  httpGet: {path: /api/local_raylet_healthz, port: agent-http}
  {{- end }}
  periodSeconds: 2
  timeoutSeconds: 5
  failureThreshold: 3
livenessProbe:
  httpGet: {path: /api/local_raylet_healthz, port: agent-http}
  periodSeconds: 10
  timeoutSeconds: 10
  failureThreshold: 6
{{- end -}}
