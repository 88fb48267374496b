{{/* Parts of NetworkPolicies. */}}

{{/* peers, ports: a rule of egress. No peers: anywhere. */}}
{{- define "memserve.to" -}}
{{- if .peers }}
to: {{- toYaml .peers | nindent 2 }}
{{- end }}
{{- if .ports }}
ports:
  {{- range .ports }}
  - {port: {{ . }}, protocol: TCP}
  {{- end }}
{{- end }}
{{- end -}}

{{/* root, port, end */}}
{{- define "memserve.fromPrometheus" -}}
{{- if and .root.Values.metrics.enabled .root.Values.networkPolicy.prometheus }}
- from: {{- toYaml .root.Values.networkPolicy.prometheus | nindent 4 }}
  ports:
    - {port: {{ .port }}, {{ if .end }}endPort: {{ .end }}, {{ end }}protocol: TCP}
{{- end }}
{{- end -}}

{{/* root, ports. Most network plug-ins let the node's own kubelet through; the others need its address. */}}
{{- define "memserve.fromKubelet" -}}
{{- if .root.Values.networkPolicy.kubeletCidrs }}
- from:
    {{- range .root.Values.networkPolicy.kubeletCidrs }}
    - ipBlock: {cidr: {{ . | quote }}}
    {{- end }}
  ports:
    {{- range .ports }}
    - {port: {{ . }}, protocol: TCP}
    {{- end }}
{{- end }}
{{- end -}}

{{- define "memserve.toRedis" -}}
{{- if eq .Values.redis.mode "trial" }}
- to:
    - podSelector:
        matchLabels: {{- include "memserve.everyPod" . | nindent 10 }}
        matchExpressions:
          - {key: app.kubernetes.io/component, operator: In, values: [redis-registry, redis-cache]}
  ports:
    - {port: 6379, protocol: TCP}
{{- else }}
- {{- include "memserve.to" (dict "peers" .Values.networkPolicy.redis.to "ports" .Values.networkPolicy.redis.ports) | trim | nindent 2 }}
{{- end }}
{{- end -}}

{{/* root, settings: the part's own */}}
{{- define "memserve.toTelemetry" -}}
{{- if or .settings.traces_endpoint .root.Values.settings.traces_endpoint }}
- {{- include "memserve.to" (dict "peers" .root.Values.networkPolicy.telemetry.to "ports" .root.Values.networkPolicy.telemetry.ports) | trim | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Where workers take calls: the first port, and further ones while an old worker of the node still leaves.
     50062 is the probes'. */}}
{{- define "memserve.callPorts" -}}
- {port: 50061, protocol: TCP}
- {port: 50063, endPort: 50124, protocol: TCP}
{{- end -}}

{{/* Node manager, object manager, agents, metrics; worker processes. */}}
{{- define "memserve.rayNodePorts" -}}
- {port: 6381, endPort: 6386, protocol: TCP}
- {port: 6400, endPort: 6499, protocol: TCP}
{{- end -}}
