{{- /* The filter's configuration: JSON, with what the mode adds to the values. */ -}}
{{- define "routed-experts.configuration" -}}
{{- $prefill := .Values.prefill -}}
{{- $cluster := printf "httproute/%s/prefill/rule/0" .Values.namespace -}}
{{- if hasPrefix "istio" .Values.mode -}}
{{- $cluster = printf "outbound|%d||%s.%s.svc.cluster.local" (int $prefill.port) $prefill.service .Values.namespace -}}
{{- end -}}
{{- $added := dict "prefill" (dict "cluster" $cluster) -}}
{{- if has .Values.mode (list "envoy-gateway" "istio-plugin") -}}
{{- $_ := set $added "headers" "pass" -}}
{{- end -}}
{{- mergeOverwrite $added (deepCopy .Values.configuration) | toPrettyJson -}}
{{- end -}}

{{- /* Where Envoy Gateway gets the module. */ -}}
{{- define "routed-experts.code" -}}
{{- if .Values.module.url -}}
type: HTTP
http:
  url: {{ .Values.module.url }}
  sha256: {{ .Values.module.sha256 | quote }}
{{- else -}}
type: Image
image:
  url: {{ .Values.module.image }}
{{- end -}}
{{- end -}}
