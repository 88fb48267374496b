{{/* Seconds of prompts that wait, for each ready worker, as the gateways see it. Every gateway sees all workers. */}}
{{- define "memserve.scalingQuery" -}}
{{- $of := printf "{namespace=%q,pod=~%q}" .Release.Namespace (printf "%s-gateway-.*" (include "memserve.name" .)) -}}
sum(memserve_queued_seconds{{ $of }}) / clamp_min(sum(memserve_ready_workers{{ $of }}), 1)
{{- end -}}
