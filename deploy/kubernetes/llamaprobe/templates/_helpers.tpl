{{- define "llamaprobe.selector" -}}
app.kubernetes.io/name: llamaprobe
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "llamaprobe.labels" -}}
{{ include "llamaprobe.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "llamaprobe.name" -}}
{{- if contains "llamaprobe" .Release.Name }}{{ .Release.Name }}{{ else }}{{ .Release.Name }}-llamaprobe{{ end -}}
{{- end }}
