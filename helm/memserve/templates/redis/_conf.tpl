{{/* root, role. The registry keeps everything; the cache evicts, but never its ledger, which has no time to
     live: memserve refuses allkeys-*. */}}
{{- define "memserve.redisConf" -}}
bind 0.0.0.0
protected-mode yes
dir /data
save ""
include /etc/redis-auth/auth.conf
{{- if .root.Values.tls.internal.enabled }}
port 0
tls-port 6379
tls-cert-file /etc/redis-tls/tls.crt
tls-key-file /etc/redis-tls/tls.key
tls-ca-cert-file /etc/redis-tls/ca.crt
tls-auth-clients yes
{{- else }}
port 6379
{{- end }}
{{- if eq .role "registry" }}
appendonly yes
appendfsync always
maxmemory-policy noeviction
{{- else }}
appendonly no
maxmemory {{ int64 .root.Values.redis.trial.cache.maxBytes }}
maxmemory-policy volatile-lru
{{- end }}
{{- end -}}
