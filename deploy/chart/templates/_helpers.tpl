{{/* How a part's pods are found: (list . "agent") */}}
{{- define "pillion.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: pillion
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{/* The labels of what belongs to a part: (list . "agent") */}}
{{- define "pillion.labels" -}}
{{- $root := index . 0 -}}
{{ include "pillion.selector" . }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
{{- end }}

{{/* The image, with what containers say of it */}}
{{- define "pillion.image" -}}
{{- with .Values.image -}}
image: {{ if .digest }}{{ .repository }}@{{ .digest }}{{ else }}{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}{{ end }}
imagePullPolicy: {{ .pullPolicy }}
{{- end }}
{{- end }}

{{/* The credentials for the image, of a pod */}}
{{- define "pillion.pullSecrets" -}}
{{- with .Values.image.pullSecrets -}}
imagePullSecrets:
{{- range . }}
  - name: {{ . }}
{{- end }}
{{- end }}
{{- end }}

{{/* The proxies by which registries are asked, as variables of a container */}}
{{- define "pillion.proxy" -}}
{{- with .Values.registries.proxy }}
{{- range $name, $value := dict "HTTPS_PROXY" .https "HTTP_PROXY" .http "NO_PROXY" .none }}
{{- if $value }}
- name: {{ $name }}
  value: {{ $value | quote }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
