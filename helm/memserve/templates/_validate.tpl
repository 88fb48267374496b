{{/* What the schema cannot say: values that do not go together. All faults at once, each with its key. */}}
{{- define "memserve.validate" -}}
{{- $faults := list -}}
{{- $v := .Values -}}
{{- $lite := include "memserve.milvusLite" . -}}
{{- $gateways := int (default 1 $v.gateway.replicas) -}}

{{- if and $v.gateway.autoscaling.enabled (not (kindIs "invalid" $v.gateway.replicas)) -}}
{{- $faults = append $faults "gateway.replicas: leave it out while gateway.autoscaling.enabled, which owns the number" -}}
{{- end -}}
{{- if and $v.gateway.autoscaling.enabled (gt (int $v.gateway.autoscaling.minReplicas) (int $v.gateway.autoscaling.maxReplicas)) -}}
{{- $faults = append $faults "gateway.autoscaling.minReplicas: more than maxReplicas" -}}
{{- end -}}
{{- if and $v.gateway.autoscaling.enabled (not $v.gateway.autoscaling.targetCPUUtilizationPercentage) (not $v.gateway.autoscaling.metrics) -}}
{{- $faults = append $faults "gateway.autoscaling.metrics: name a metric, or set targetCPUUtilizationPercentage" -}}
{{- end -}}
{{- if and $lite (or (gt $gateways 1) $v.gateway.autoscaling.enabled) -}}
{{- $faults = append $faults "milvus.uri: Milvus Lite serves one gateway; name a Milvus server, or leave gateway.replicas at 1 without autoscaling" -}}
{{- end -}}
{{- if and (not (include "memserve.sharedModules" .)) (or (gt $gateways 1) $v.gateway.autoscaling.enabled) -}}
{{- $faults = append $faults "moduleStore: several gateways need one that they share; set moduleStore.url or moduleStore.claim.enabled" -}}
{{- end -}}
{{- if and $v.moduleStore.url $v.moduleStore.claim.enabled -}}
{{- $faults = append $faults "moduleStore.url: give a URL or a claim, both are set" -}}
{{- end -}}
{{- if and $v.moduleStore.claim.existingClaim (not $v.moduleStore.claim.enabled) -}}
{{- $faults = append $faults "moduleStore.claim.existingClaim: set moduleStore.claim.enabled too" -}}
{{- end -}}

{{- if and $v.workers.autoscaling.enabled (not (kindIs "invalid" $v.workers.replicas)) -}}
{{- $faults = append $faults "workers.replicas: leave it out while workers.autoscaling.enabled, which owns the number" -}}
{{- end -}}
{{- if and $v.workers.autoscaling.enabled (gt (int $v.workers.autoscaling.minReplicas) (int $v.workers.autoscaling.maxReplicas)) -}}
{{- $faults = append $faults "workers.autoscaling.minReplicas: more than maxReplicas" -}}
{{- end -}}
{{- if and $v.workers.autoscaling.enabled (eq $v.workers.mode "kuberay") -}}
{{- $faults = append $faults "workers.autoscaling: KEDA scales a StatefulSet; with workers.mode kuberay set workers.kuberay.autoscaler.enabled, so that Ray alone owns the number" -}}
{{- end -}}
{{- if and $v.workers.autoscaling.enabled (not $v.workers.autoscaling.prometheusAddress) (not $v.workers.autoscaling.triggers) -}}
{{- $faults = append $faults "workers.autoscaling.prometheusAddress: KEDA needs Prometheus to ask, or triggers" -}}
{{- end -}}
{{- if and $v.workers.kuberay.autoscaler.enabled (ne $v.workers.mode "kuberay") -}}
{{- $faults = append $faults "workers.kuberay.autoscaler: needs workers.mode kuberay" -}}
{{- end -}}
{{- if and $v.workers.kuberay.autoscaler.enabled (not (kindIs "invalid" $v.workers.replicas)) -}}
{{- $faults = append $faults "workers.replicas: leave it out while workers.kuberay.autoscaler.enabled, which owns the number" -}}
{{- end -}}
{{- if and $v.workers.kuberay.autoscaler.enabled (gt (int $v.workers.kuberay.autoscaler.minReplicas) (int $v.workers.kuberay.autoscaler.maxReplicas)) -}}
{{- $faults = append $faults "workers.kuberay.autoscaler.minReplicas: more than maxReplicas" -}}
{{- end -}}
{{- if and $v.workers.kuberay.gcsFaultTolerance.enabled (not $v.workers.kuberay.gcsFaultTolerance.redisAddress) -}}
{{- $faults = append $faults "workers.kuberay.gcsFaultTolerance.redisAddress: name the Redis" -}}
{{- end -}}
{{- $engines := max 1 (int $v.workers.gpu.count) -}}
{{- $host := int64 (default (default 268435456 $v.settings.kv_host_bytes) $v.workers.settings.kv_host_bytes) -}}
{{- $shm := include "memserve.bytes" $v.workers.shmSize | int64 -}}
{{- if lt $shm (add (mul $engines $host) 134217728) -}}
{{- $faults = append $faults (printf "workers.shmSize: %s is less than kv_host_bytes of %d engines (%d bytes each) and 128Mi for Ray" $v.workers.shmSize $engines $host) -}}
{{- end -}}
{{- with $v.workers.resources.limits -}}
{{- if .memory -}}
{{- if le (include "memserve.bytes" .memory | int64) $shm -}}
{{- $faults = append $faults (printf "workers.resources.limits.memory: %s is not more than workers.shmSize, which counts as memory" (toString .memory)) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if lt (include "memserve.bytes" $v.workers.head.shmSize | int64) 134217728 -}}
{{- $faults = append $faults "workers.head.shmSize: Ray needs 128Mi" -}}
{{- end -}}
{{- if and $v.workers.onePerNode $v.workers.affinity -}}
{{- $faults = append $faults "workers.onePerNode: workers.affinity is set, which says where workers go" -}}
{{- end -}}
{{- if and (eq $v.modelCache.type "existingClaim") (not $v.modelCache.existingClaim) -}}
{{- $faults = append $faults "modelCache.existingClaim: name the claim, or take another modelCache.type" -}}
{{- end -}}
{{- if and (ne $v.modelCache.type "existingClaim") $v.modelCache.existingClaim -}}
{{- $faults = append $faults "modelCache.existingClaim: set modelCache.type to existingClaim too" -}}
{{- end -}}
{{- if and (eq $v.modelCache.type "claimPerWorker") (not $v.modelCache.size) -}}
{{- $faults = append $faults "modelCache.size: a volume for each worker needs a size" -}}
{{- end -}}

{{- if eq $v.redis.mode "external" -}}
{{- if and (not $v.redis.external.url) (not $v.redis.external.existingSecret) -}}
{{- $faults = append $faults "redis.external.existingSecret: no Redis is named; name a Secret with its URLs, give redis.external.url, or set redis.mode to trial" -}}
{{- end -}}
{{- if and $v.redis.external.url $v.redis.external.existingSecret -}}
{{- $faults = append $faults "redis.external.url: give a URL or a Secret, both are set" -}}
{{- end -}}
{{- if and $v.redis.external.cacheUrl $v.redis.external.existingSecret -}}
{{- $faults = append $faults "redis.external.cacheUrl: give URLs or a Secret, both are set" -}}
{{- end -}}
{{- if and $v.redis.trial.existingSecret -}}
{{- $faults = append $faults "redis.trial.existingSecret: redis.mode is external" -}}
{{- end -}}
{{- else if or $v.redis.external.url $v.redis.external.cacheUrl $v.redis.external.existingSecret -}}
{{- $faults = append $faults "redis.external: redis.mode is trial; set it to external to use your own Redis" -}}
{{- end -}}
{{- if eq $v.redis.mode "trial" -}}
{{- with $v.redis.trial.cache.resources.limits -}}
{{- if .memory -}}
{{- if le (include "memserve.bytes" .memory | int64) (int64 $v.redis.trial.cache.maxBytes) -}}
{{- $faults = append $faults (printf "redis.trial.cache.maxBytes: the limit of its memory, %s, is not larger" (toString .memory)) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if and $v.milvus.existingSecret $lite -}}
{{- $faults = append $faults "milvus.existingSecret: a token without milvus.uri" -}}
{{- end -}}
{{- if and $v.milvus.lite.existingClaim (not $lite) -}}
{{- $faults = append $faults "milvus.lite.existingClaim: milvus.uri is set, so that Milvus Lite does not run" -}}
{{- end -}}

{{- with $v.tls.public -}}
{{- if and .enabled (not .existingSecret) (not .certManager.enabled) -}}
{{- $faults = append $faults "tls.public.existingSecret: TLS needs a certificate; name a Secret, or set tls.public.certManager.enabled" -}}
{{- end -}}
{{- if and .existingSecret .certManager.enabled -}}
{{- $faults = append $faults "tls.public.existingSecret: cert-manager makes the certificate; give one of both" -}}
{{- end -}}
{{- if and (not .enabled) (or .existingSecret .certManager.enabled .clientCertificates .testClientSecret .prometheusSecret) -}}
{{- $faults = append $faults "tls.public.enabled: it is false, while tls.public is configured" -}}
{{- end -}}
{{- if and .enabled .certManager.enabled (not .certManager.issuerRef.name) (not (and $v.tls.internal.enabled $v.tls.internal.certManager.enabled)) -}}
{{- $faults = append $faults "tls.public.certManager.issuerRef.name: name the issuer" -}}
{{- end -}}
{{- end -}}
{{- with $v.tls.public -}}
{{- if and .certManager.enabled (not .certManager.serviceNames) (not .certManager.dnsNames) -}}
{{- $faults = append $faults "tls.public.certManager.dnsNames: without serviceNames the certificate needs a name" -}}
{{- end -}}
{{- if and .clientCertificates $v.test.enabled (not .testClientSecret) -}}
{{- $faults = append $faults "tls.public.testClientSecret: clients need certificates; name the Secret of helm test's, or set test.enabled to false" -}}
{{- end -}}
{{- if and .clientCertificates $v.metrics.serviceMonitor.enabled (not .prometheusSecret) -}}
{{- $faults = append $faults "tls.public.prometheusSecret: clients need certificates; name the Secret of Prometheus'" -}}
{{- end -}}
{{- end -}}
{{- with $v.tls.internal -}}
{{- if and .enabled (not .certManager.enabled) $v.metrics.podMonitor.enabled (not .prometheusSecret) -}}
{{- $faults = append $faults "tls.internal.prometheusSecret: workers want a certificate of who scrapes them; name the Secret of Prometheus'" -}}
{{- end -}}
{{- $trial := eq $v.redis.mode "trial" -}}
{{- if and .enabled (not .certManager.enabled) -}}
{{- if not .gatewaySecret -}}
{{- $faults = append $faults "tls.internal.gatewaySecret: TLS needs a certificate; name a Secret, or set tls.internal.certManager.enabled" -}}
{{- end -}}
{{- if not .workerSecret -}}
{{- $faults = append $faults "tls.internal.workerSecret: TLS needs a certificate; name a Secret, or set tls.internal.certManager.enabled" -}}
{{- end -}}
{{- if and $trial (not .redisSecret) -}}
{{- $faults = append $faults "tls.internal.redisSecret: TLS needs a certificate; name a Secret, or set tls.internal.certManager.enabled" -}}
{{- end -}}
{{- end -}}
{{- if and .certManager.enabled (or .gatewaySecret .workerSecret .redisSecret .prometheusSecret) -}}
{{- $faults = append $faults "tls.internal.gatewaySecret: cert-manager makes the certificates; leave the Secrets out" -}}
{{- end -}}
{{- if and (not .enabled) (or .gatewaySecret .workerSecret .redisSecret .prometheusSecret .certManager.enabled) -}}
{{- $faults = append $faults "tls.internal.enabled: it is false, while tls.internal is configured" -}}
{{- end -}}
{{- end -}}

{{- if and (not $v.metrics.enabled) (or $v.metrics.serviceMonitor.enabled $v.metrics.podMonitor.enabled) -}}
{{- $faults = append $faults "metrics.enabled: it is false, while a monitor is to scrape metrics" -}}
{{- end -}}
{{- if and (or $v.routes.grpc.enabled $v.routes.http.enabled) (not $v.routes.parentRefs) -}}
{{- $faults = append $faults "routes.parentRefs: name the Gateway that the routes belong to" -}}
{{- end -}}
{{- range $label, $_ := $v.commonLabels -}}
{{- if or (hasPrefix "app.kubernetes.io/" $label) (hasPrefix "helm.sh/" $label) (hasPrefix "memserve/" $label) -}}
{{- $faults = append $faults (printf "commonLabels: %s is the chart's own" $label) -}}
{{- end -}}
{{- end -}}
{{- if and $v.networkPolicy.enabled (not $v.networkPolicy.external.enabled) -}}
{{- $hint := "is outside of the cluster; set networkPolicy.external.enabled, so that pods may reach it" -}}
{{- if $v.moduleStore.url -}}
{{- $faults = append $faults (printf "moduleStore.url: %s %s" $v.moduleStore.url $hint) -}}
{{- end -}}
{{- if ne $v.modelCache.type "existingClaim" -}}
{{- range $where, $settings := dict "settings" $v.settings "gateway.settings" $v.gateway.settings "workers.settings" $v.workers.settings -}}
{{- range $name := list "model" "embedder" "reranker" -}}
{{- $model := toString (default "" (get $settings $name)) -}}
{{- if and $model (not (hasPrefix "/" $model)) -}}
{{- $faults = append $faults (printf "%s.%s: %s %s" $where $name $model $hint) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- range $kind := list "http" "grpc" -}}
{{- $ingress := get $v.ingress $kind -}}
{{- if and $ingress.enabled (not $ingress.hosts) -}}
{{- $faults = append $faults (printf "ingress.%s.hosts: name at least one host" $kind) -}}
{{- end -}}
{{- if and $ingress.enabled (eq $kind "grpc") (not $ingress.tlsSecret) -}}
{{- $faults = append $faults "ingress.grpc.tlsSecret: controllers speak gRPC over TLS only; name the Secret of their certificate" -}}
{{- end -}}
{{- end -}}
{{- if and $v.gateway.service.grpc.headless (ne $v.gateway.service.grpc.type "ClusterIP") -}}
{{- $faults = append $faults "gateway.service.grpc.headless: goes with the type ClusterIP only" -}}
{{- end -}}
{{- if and $v.serviceAccount.name $v.serviceAccount.create -}}
{{- $faults = append $faults "serviceAccount.name: set serviceAccount.create to false to use an existing account" -}}
{{- end -}}

{{- range $part, $values := dict "gateway" $v.gateway "workers" $v.workers -}}
{{- range $label, $_ := $values.podLabels -}}
{{- if or (hasPrefix "app.kubernetes.io/" $label) (hasPrefix "memserve/" $label) -}}
{{- $faults = append $faults (printf "%s.podLabels: %s is the chart's own, by which its pods are selected" $part $label) -}}
{{- end -}}
{{- end -}}
{{- range $values.extraEnv -}}
{{- if hasPrefix "MEMSERVE_" .name -}}
{{- $faults = append $faults (printf "%s.extraEnv: %s is a setting; it belongs into %s.settings" $part .name $part) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- $jwks := or $v.secrets.jwks.existingSecret $v.settings.jwt_jwks $v.gateway.settings.jwt_jwks -}}
{{- range $name := list "jwt_issuer" "jwt_audience" -}}
{{- $given := or (get $v.settings $name) (get $v.gateway.settings $name) -}}
{{- if and $given (not $jwks) -}}
{{- $faults = append $faults (printf "settings.%s: tokens need keys to check them with; set secrets.jwks or settings.jwt_jwks" $name) -}}
{{- else if and $jwks (not $given) -}}
{{- $faults = append $faults (printf "settings.%s: tokens are checked with it; set it, or leave the keys of tokens out" $name) -}}
{{- end -}}
{{- end -}}
{{- if and $v.secrets.jwks.existingSecret (or $v.settings.jwt_jwks $v.gateway.settings.jwt_jwks) -}}
{{- $faults = append $faults "settings.jwt_jwks: secrets.jwks names the keys; give one of both" -}}
{{- end -}}
{{- range $name, $_ := $v.workers.settings -}}
{{- if hasPrefix "jwt_" $name -}}
{{- $faults = append $faults (printf "workers.settings.%s: gateways check tokens; it belongs into gateway.settings" $name) -}}
{{- end -}}
{{- end -}}
{{- if gt (mul (max 1 (int $v.workers.gpu.count)) (default 1 $v.workers.replicas)) 64 -}}
{{- $faults = append $faults "workers.replicas: more than 64 workers, one for each GPU" -}}
{{- end -}}

{{- $reserved := include "memserve.reserved" . | fromYaml -}}
{{- range $where, $settings := dict "settings" $v.settings "gateway.settings" $v.gateway.settings "workers.settings" $v.workers.settings -}}
{{- range $name, $_ := $settings -}}
{{- with get $reserved $name -}}
{{- $faults = append $faults (printf "%s.%s: the chart sets it: %s" $where $name .) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- if $v.requireCrds -}}
{{- range $fault := include "memserve.missingCrds" . | fromYamlArray -}}
{{- $faults = append $faults $fault -}}
{{- end -}}
{{- end -}}

{{- if $faults -}}
{{- fail (printf "\n\nThese values cannot be used:\n  - %s\n" (join "\n  - " $faults)) -}}
{{- end -}}
{{- end -}}

{{- define "memserve.missingCrds" -}}
{{- $v := .Values -}}
{{- $apis := .Capabilities.APIVersions -}}
{{- $hint := "for `helm template` give --api-versions, or set requireCrds to false" -}}
{{- $certificates := or $v.tls.public.certManager.enabled $v.tls.internal.certManager.enabled -}}
{{- range $want := list
  (list (eq $v.workers.mode "kuberay") "workers.mode" "ray.io/v1" "KubeRay (its operator, 1.5 or later)")
  (list $v.workers.autoscaling.enabled "workers.autoscaling.enabled" "keda.sh/v1alpha1" "KEDA")
  (list $certificates "tls" "cert-manager.io/v1" "cert-manager")
  (list (or $v.metrics.serviceMonitor.enabled $v.metrics.podMonitor.enabled $v.metrics.prometheusRule.enabled) "metrics" "monitoring.coreos.com/v1" "Prometheus' operator")
  (list (or $v.routes.grpc.enabled $v.routes.http.enabled) "routes" "gateway.networking.k8s.io/v1" "the Gateway API, 1.1 or later")
}}
{{- if and (index $want 0) (not ($apis.Has (index $want 2))) }}
- {{ printf "%s: the cluster has no %s; install %s first (%s)" (index $want 1) (index $want 2) (index $want 3) $hint | quote }}
{{- end }}
{{- end }}
{{- end -}}
