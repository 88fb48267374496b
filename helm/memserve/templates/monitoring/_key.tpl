{{/* What a scraper shows, where metrics need a key. */}}
{{- define "memserve.scrapeKey" -}}
{{- if .Values.metrics.existingSecret }}
authorization:
  type: Bearer
  credentials: {name: {{ .Values.metrics.existingSecret }}, key: {{ .Values.metrics.key | quote }}}
{{- end }}
{{- end -}}

{{/* A name that the gateways' certificate has, for a scraper inside of the cluster. */}}
{{- define "memserve.publicName" -}}
{{- $manager := .Values.tls.public.certManager -}}
{{- if and $manager.enabled (not $manager.serviceNames) -}}
{{- first $manager.dnsNames -}}
{{- else -}}
{{- include "memserve.name" . }}-gateway-metrics
{{- end -}}
{{- end -}}
