{{/* Settings as environment variables, and where their files are. */}}

{{/* A value as memserve reads it. YAML's numbers are floating point here, which Go prints as 1.07e+09. */}}
{{- define "memserve.settingText" -}}
{{- if kindIs "float64" . -}}
{{- if eq (floor .) . -}}{{- int64 . -}}{{- else -}}{{- . -}}{{- end -}}
{{- else -}}
{{- . -}}
{{- end -}}
{{- end -}}

{{/* Settings that gateways and workers have in common, as YAML. */}}
{{- define "memserve.commonSettings" -}}
data_dir: /var/lib/memserve
metrics: {{ .Values.metrics.enabled }}
metrics_host: "0.0.0.0"
{{- if .Values.moduleStore.url }}
module_store_url: {{ .Values.moduleStore.url | quote }}
{{- else if .Values.moduleStore.claim.enabled }}
module_store_url: /var/lib/memserve-modules
{{- end }}
{{- if eq .Values.redis.mode "trial" }}
{{/* Nine tenths: the rest is for names, the ledger and buffers. */}}
kv_quota_bytes: {{ div (mul (int64 .Values.redis.trial.cache.maxBytes) 9) 10 }}
{{- end }}
{{- if .Values.tls.internal.enabled }}
internal_tls_ca_file: /etc/memserve/internal-tls/ca.crt
internal_tls_cert_file: /etc/memserve/internal-tls/tls.crt
internal_tls_key_file: /etc/memserve/internal-tls/tls.key
{{- end }}
{{- end -}}

{{- define "memserve.gatewaySettings" -}}
{{- include "memserve.commonSettings" . }}
host: "0.0.0.0"
port: 50051
http_port: 8000
metrics_port: 9464
health_port: 50052
drain_delay_s: {{ .Values.gateway.drainDelaySeconds }}
shutdown_grace_s: {{ .Values.gateway.shutdownGraceSeconds }}
api_keys_file: /etc/memserve/keys/keys.json
{{- with .Values.milvus.uri }}
milvus_uri: {{ . | quote }}
{{- end }}
{{- if .Values.secrets.jwks.existingSecret }}
jwt_jwks: /etc/memserve/jwks/jwks.json
{{- end }}
{{- if .Values.tls.public.enabled }}
tls_cert_file: /etc/memserve/tls/tls.crt
tls_key_file: /etc/memserve/tls/tls.key
{{- if .Values.tls.public.clientCertificates }}
tls_client_ca_file: /etc/memserve/tls/ca.crt
{{- end }}
{{- end }}
{{- end -}}

{{- define "memserve.workerSettings" -}}
{{- include "memserve.commonSettings" . }}
worker_host: "0.0.0.0"
worker_port: 50061
worker_metrics_port: 9465
worker_health_port: 50062
shutdown_grace_s: {{ .Values.workers.shutdownGraceSeconds }}
{{- $engines := max 1 .Values.workers.gpu.count }}
{{- if .Values.workers.autoscaling.enabled }}
workers: {{ mul $engines .Values.workers.autoscaling.minReplicas }}
max_workers: {{ mul $engines .Values.workers.autoscaling.maxReplicas }}
{{- else if and (eq .Values.workers.mode "kuberay") .Values.workers.kuberay.autoscaler.enabled }}
workers: {{ mul $engines (max 1 .Values.workers.kuberay.autoscaler.minReplicas) }}
max_workers: {{ mul $engines .Values.workers.kuberay.autoscaler.maxReplicas }}
{{- else }}
workers: {{ mul $engines (default 1 .Values.workers.replicas) }}
{{- end }}
{{- if .Values.workers.gpu.count }}
worker_gpus: 1
{{- end }}
{{- if eq .Values.workers.mode "statefulset" }}
ray_token_file: /etc/memserve/ray/token
{{- end }}
{{- end -}}

{{/* chart, shared, own: settings, the later goes before; leaveOut: how names begin that this part has no use
     for. Lines of a ConfigMap. */}}
{{- define "memserve.settingLines" -}}
{{- $all := dict -}}
{{- range $some := list .chart .shared .own -}}
{{- range $name, $value := $some -}}
{{- $_ := set $all $name $value -}}
{{- end -}}
{{- end -}}
{{- range $name, $value := $all }}
{{- if not (and $.leaveOut (hasPrefix $.leaveOut $name)) }}
MEMSERVE_{{ upper $name }}: {{ include "memserve.settingText" $value | quote }}
{{- end }}
{{- end }}
{{- end -}}

{{/* What a setting is set by, where the chart sets it. */}}
{{- define "memserve.reserved" -}}
host: it is 0.0.0.0 in a pod
port: gateway.service.grpc.port is the Service's
http: the gateway serves HTTP in a pod; leave out routes and ingress to keep it inside
http_port: gateway.service.http.port is the Service's
metrics: metrics.enabled
metrics_host: it is 0.0.0.0 in a pod
metrics_port: it is 9464 in a pod
metrics_key: metrics.existingSecret
health_port: it is 50052 in a pod
drain_delay_s: gateway.drainDelaySeconds
shutdown_grace_s: gateway.shutdownGraceSeconds and workers.shutdownGraceSeconds
worker_host: it is 0.0.0.0 in a pod
worker_port: it is 50061 in a pod
worker_metrics_port: it is 9465 in a pod
worker_health_port: it is 50062 in a pod
worker_address: it is the pod's
worker_gpus: workers.gpu.count
workers: workers.replicas, or workers.autoscaling
max_workers: workers.autoscaling, or workers.kuberay.autoscaler
ray_address: the chart's own Ray head
ray_token_file: secrets.rayToken
redis_url: redis.external
cache_redis_url: redis.external
cache_max_bytes: redis.trial.cache.maxBytes
milvus_uri: milvus.uri
milvus_token: milvus.existingSecret
module_store_url: moduleStore.url
data_dir: it is /var/lib/memserve in a pod
salt_key: secrets.saltKey
api_keys_file: secrets.apiKeys
tls_cert_file: tls.public
tls_key_file: tls.public
tls_client_ca_file: tls.public.clientCertificates
internal_tls_ca_file: tls.internal
internal_tls_cert_file: tls.internal
internal_tls_key_file: tls.internal
{{- end -}}
