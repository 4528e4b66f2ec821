{{- define "opencode-operator.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- /* 47 characters: the longest suffix is "-sessions-editor". */}}
{{- define "opencode-operator.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 47 | trimSuffix "-" }}
{{- else }}
{{- $name := include "opencode-operator.name" . }}
{{- if contains $name .Release.Name }}
{{- .Release.Name | trunc 47 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 47 | trimSuffix "-" }}
{{- end }}
{{- end }}
{{- end }}

{{- define "opencode-operator.selector" -}}
app.kubernetes.io/name: {{ include "opencode-operator.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "opencode-operator.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{ include "opencode-operator.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- /* Name and namespace of what lives in the release's namespace; call with (list $ "-suffix"). */}}
{{- define "opencode-operator.metadata" -}}
{{- $root := index . 0 -}}
name: {{ include "opencode-operator.fullname" $root }}{{ index . 1 }}
namespace: {{ $root.Release.Namespace }}
labels:
  {{- include "opencode-operator.labels" $root | nindent 2 }}
{{- end }}

{{- define "opencode-operator.serviceAccount" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "opencode-operator.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- required "serviceAccount.create is false: name an account of your own in serviceAccount.name" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- /* An image by its short name; call with (list $ "sidecar"). */}}
{{- define "opencode-operator.image" -}}
{{- $images := (index . 0).Values.images }}
{{- with index $images (index . 1) }}
{{- . }}
{{- else }}
{{- printf "%s/%s:%s" (trimSuffix "/" $images.registry) (index . 1) $images.tag }}
{{- end }}
{{- end }}

{{- define "opencode-operator.signingSecret" -}}
{{- default (printf "%s-signing-key" (include "opencode-operator.fullname" .)) .Values.signingKey.existingSecret }}
{{- end }}

{{- /* The operator's rules by section, as a list of rules; why each is there stands beside it in files/rbac-rules.yaml. */}}
{{- define "opencode-operator.rules" -}}
{{- $file := (index . 0).Files.Get "files/rbac-rules.yaml" | fromYaml }}
{{- $rules := required (printf "files/rbac-rules.yaml has no rules for %s" (index . 1)) (get $file (index . 1)) }}
{{- toYaml $rules }}
{{- end }}
