{{- define "memserve.certificateTimes" -}}
duration: {{ .Values.tls.certificates.duration }}
renewBefore: {{ .Values.tls.certificates.renewBefore }}
privateKey: {algorithm: ECDSA, size: 256, rotationPolicy: Always}
{{- end -}}
