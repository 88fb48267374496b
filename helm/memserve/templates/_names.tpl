{{/* Names, labels and images. */}}

{{/* What all names begin with, at most 36 characters: a StatefulSet's name and the hash of its revision must
     fit into a label of 63. A longer name is cut, and told apart by a hash. */}}
{{- define "memserve.name" -}}
{{- $name := default .Release.Name .Values.fullnameOverride -}}
{{- if gt (len $name) 36 -}}
{{- printf "%s-%s" ($name | trunc 27 | trimSuffix "-") ($name | sha256sum | trunc 8) -}}
{{- else -}}
{{- $name -}}
{{- end -}}
{{- end -}}

{{- define "memserve.selector" -}}
app.kubernetes.io/name: memserve
app.kubernetes.io/instance: {{ .root.Release.Name | quote }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{/* Of all pods of the release. */}}
{{- define "memserve.everyPod" -}}
app.kubernetes.io/name: memserve
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end -}}

{{- define "memserve.labels" -}}
{{ include "memserve.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
app.kubernetes.io/part-of: memserve
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" | trunc 63 }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* root, image */}}
{{- define "memserve.image" -}}
{{- if .image.digest -}}
{{- printf "%s@%s" .image.repository .image.digest -}}
{{- else -}}
{{- printf "%s:%s" .image.repository (default .root.Chart.AppVersion .image.tag) -}}
{{- end -}}
{{- end -}}

{{- define "memserve.pullSecrets" -}}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end -}}

{{/* root, component: the account that a pod runs under. */}}
{{- define "memserve.account" -}}
{{- if .root.Values.serviceAccount.name -}}
{{- .root.Values.serviceAccount.name -}}
{{- else if .root.Values.serviceAccount.create -}}
{{- printf "%s-%s" (include "memserve.name" .root) .component -}}
{{- else -}}
default
{{- end -}}
{{- end -}}

{{- define "memserve.gatewayAddress" -}}
{{- printf "%s-grpc.%s.svc:%d" (include "memserve.name" .) .Release.Namespace (int .Values.gateway.service.grpc.port) -}}
{{- end -}}

{{/* Whether a module store is there that gateways and workers share: "true" or nothing. */}}
{{- define "memserve.sharedModules" -}}
{{- if or .Values.moduleStore.url .Values.moduleStore.claim.enabled -}}true{{- end -}}
{{- end -}}

{{- define "memserve.moduleClaim" -}}
{{- default (printf "%s-modules" (include "memserve.name" .)) .Values.moduleStore.claim.existingClaim -}}
{{- end -}}

{{- define "memserve.milvusLite" -}}
{{- if not .Values.milvus.uri -}}true{{- end -}}
{{- end -}}

{{- define "memserve.publicTlsSecret" -}}
{{- default (printf "%s-public-tls" (include "memserve.name" .)) .Values.tls.public.existingSecret -}}
{{- end -}}

{{/* root, part: gateway, worker or redis */}}
{{- define "memserve.internalTlsSecret" -}}
{{- default (printf "%s-%s-internal-tls" (include "memserve.name" .root) .part) (get .root.Values.tls.internal (printf "%sSecret" .part)) -}}
{{- end -}}

{{- define "memserve.redisSecret" -}}
{{- if eq .Values.redis.mode "trial" -}}
{{- default (printf "%s-redis" (include "memserve.name" .)) .Values.redis.trial.existingSecret -}}
{{- else -}}
{{- default (printf "%s-redis-urls" (include "memserve.name" .)) .Values.redis.external.existingSecret -}}
{{- end -}}
{{- end -}}

{{- define "memserve.saltSecret" -}}
{{- default (printf "%s-salt" (include "memserve.name" .)) .Values.secrets.saltKey.existingSecret -}}
{{- end -}}

{{- define "memserve.rayTokenSecret" -}}
{{- default (printf "%s-ray-token" (include "memserve.name" .)) .Values.secrets.rayToken.existingSecret -}}
{{- end -}}

{{- define "memserve.apiKeysSecret" -}}
{{- default (printf "%s-api-keys" (include "memserve.name" .)) .Values.secrets.apiKeys.existingSecret -}}
{{- end -}}

{{/* root, name, key, length: a generated value that an installed release keeps. */}}
{{- define "memserve.kept" -}}
{{- $secret := lookup "v1" "Secret" .root.Release.Namespace .name -}}
{{- $kept := get (default dict (get $secret "data")) .key -}}
{{- if $kept -}}
{{- $kept | b64dec -}}
{{- else -}}
{{- randAlphaNum (int .length) -}}
{{- end -}}
{{- end -}}

{{/* A quantity of Kubernetes, such as 2Gi, in bytes. */}}
{{- define "memserve.bytes" -}}
{{- $text := toString . -}}
{{- $number := regexFind "^[0-9.]+" $text -}}
{{- $units := dict "" 1 "m" 0.001 "k" 1e3 "M" 1e6 "G" 1e9 "T" 1e12 "P" 1e15 "Ki" 1024 "Mi" 1048576 "Gi" 1073741824 "Ti" 1099511627776 "Pi" 1125899906842624 -}}
{{- mulf (float64 $number) (float64 (get $units (trimPrefix $number $text))) | int64 -}}
{{- end -}}

{{/* Whether `helm test` can ask for the status: it has a key, and the certificate has the Service's name. */}}
{{- define "memserve.testsByKey" -}}
{{- $manager := .Values.tls.public.certManager -}}
{{- $named := or (not $manager.enabled) $manager.serviceNames -}}
{{- if and $named (or .Values.test.existingSecret (not .Values.secrets.apiKeys.existingSecret)) -}}true{{- end -}}
{{- end -}}
