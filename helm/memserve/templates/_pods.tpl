{{/* What pods share: security, volumes, environment, probes, placement. */}}

{{- define "memserve.podSecurity" -}}
runAsNonRoot: true
runAsUser: {{ .Values.podIds.runAsUser }}
runAsGroup: {{ .Values.podIds.runAsGroup }}
fsGroup: {{ .Values.podIds.fsGroup }}
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "memserve.containerSecurity" -}}
runAsNonRoot: true
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{/* Environment of memserve's containers. Everything that is written has a volume: HOME is /tmp. */}}
{{- define "memserve.environment" -}}
- {name: HOME, value: /tmp}
- {name: HF_HOME, value: /var/lib/memserve/models/huggingface}
- {name: MEMSERVE_SETTINGS_DIR, value: /etc/memserve/secrets}
{{- end -}}

{{/* root, gateway: the secret settings, a file each. */}}
{{- define "memserve.secretSettings" -}}
- name: secrets
  projected:
    defaultMode: 0440
    sources:
      - secret:
          name: {{ include "memserve.saltSecret" .root }}
          items:
            - {key: {{ if .root.Values.secrets.saltKey.existingSecret }}{{ .root.Values.secrets.saltKey.key | quote }}{{ else }}salt_key{{ end }}, path: salt_key}
      - secret:
          name: {{ include "memserve.redisSecret" .root }}
          items:
            {{- if eq .root.Values.redis.mode "trial" }}
            - {key: redis_url, path: redis_url}
            - {key: cache_redis_url, path: cache_redis_url}
            {{- else if .root.Values.redis.external.existingSecret }}
            - {key: {{ .root.Values.redis.external.urlKey | quote }}, path: redis_url}
            {{- with .root.Values.redis.external.cacheUrlKey }}
            - {key: {{ . | quote }}, path: cache_redis_url}
            {{- end }}
            {{- else }}
            - {key: redis_url, path: redis_url}
            {{- if .root.Values.redis.external.cacheUrl }}
            - {key: cache_redis_url, path: cache_redis_url}
            {{- end }}
            {{- end }}
      {{- if and .gateway .root.Values.milvus.existingSecret }}
      - secret:
          name: {{ .root.Values.milvus.existingSecret }}
          items:
            - {key: {{ .root.Values.milvus.key | quote }}, path: milvus_token}
      {{- end }}
      {{- if .root.Values.metrics.existingSecret }}
      - secret:
          name: {{ .root.Values.metrics.existingSecret }}
          items:
            - {key: {{ .root.Values.metrics.key | quote }}, path: metrics_key}
      {{- end }}
{{- end -}}

{{/* root, secret: a volume with a certificate. The kubelet writes it anew when the Secret changes. */}}
{{- define "memserve.certificateVolume" -}}
- name: {{ .name }}
  secret:
    secretName: {{ .secret }}
    defaultMode: 0440
{{- end -}}

{{- define "memserve.moduleVolume" -}}
{{- if and .Values.moduleStore.claim.enabled (not .Values.moduleStore.url) }}
- name: modules
  persistentVolumeClaim: {claimName: {{ include "memserve.moduleClaim" . }}}
{{- end }}
{{- end -}}

{{- define "memserve.moduleMount" -}}
{{- if and .Values.moduleStore.claim.enabled (not .Values.moduleStore.url) }}
- {name: modules, mountPath: /var/lib/memserve-modules}
{{- end }}
{{- end -}}

{{/* root, perWorker: the volume of fetched models, where it is not a StatefulSet's own. */}}
{{- define "memserve.modelCacheVolume" -}}
{{- $cache := .root.Values.modelCache -}}
{{- if eq $cache.type "existingClaim" }}
- name: models
  persistentVolumeClaim: {claimName: {{ $cache.existingClaim }}}
{{- else if and (eq $cache.type "claimPerWorker") .ephemeral }}
- name: models
  ephemeral:
    volumeClaimTemplate:
      spec: {{- include "memserve.modelClaimSpec" .root | nindent 8 }}
{{- else if or (eq $cache.type "emptyDir") (not .claimed) }}
- name: models
  emptyDir: {{ if $cache.size }}{sizeLimit: {{ $cache.size }}}{{ else }}{}{{ end }}
{{- end }}
{{- end -}}

{{- define "memserve.modelClaimSpec" -}}
accessModes: [ReadWriteOnce]
{{- with .Values.modelCache.storageClassName }}
storageClassName: {{ . }}
{{- end }}
resources:
  requests:
    storage: {{ default "20Gi" .Values.modelCache.size }}
{{- end -}}

{{/* root, component, placement: where pods go. */}}
{{- define "memserve.placement" -}}
{{- with .placement.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .placement.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- if .placement.affinity }}
affinity: {{- toYaml .placement.affinity | nindent 2 }}
{{- else if .onePerNode }}
affinity:
  podAntiAffinity:
    requiredDuringSchedulingIgnoredDuringExecution:
      - topologyKey: kubernetes.io/hostname
        labelSelector:
          matchLabels: {{- include "memserve.selector" . | nindent 12 }}
{{- end }}
{{- with .priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- end -}}

{{/* root, component, given */}}
{{- define "memserve.spread" -}}
topologySpreadConstraints:
{{- if .given }}
  {{- toYaml .given | nindent 2 }}
{{- else }}
  {{- range $key := list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
  - maxSkew: 1
    topologyKey: {{ $key }}
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels: {{- include "memserve.selector" $ | nindent 8 }}
  {{- end }}
{{- end }}
{{- end -}}

{{/* Seconds, in periods of `periodSeconds`, rounded up. */}}
{{- define "memserve.periods" -}}
{{- max 1 (div (add (int64 .seconds) (sub (int64 .period) 1)) (int64 .period)) -}}
{{- end -}}

{{/* A change of these makes pods of them anew: secrets are read at start. Their values do not stand here. */}}
{{- define "memserve.secretsChecksum" -}}
{{- list .Values.redis .Values.secrets .Values.milvus .Values.metrics.existingSecret .Values.metrics.key | toJson | sha256sum -}}
{{- end -}}
