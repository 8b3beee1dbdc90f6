package kube

import (
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/api"
	"github.com/subpod/subpod/pkg/quantity"
)

// The Kubernetes objects that subpod plays, field by field as far as they mean
// something here (k8s.io/api/core/v1, apps/v1). A field that is not in these
// types is refused by Parse.

// Meta is metav1.ObjectMeta.
type Meta struct {
	Name        string            `json:"name"`
	Namespace   string            `json:"namespace"`
	UID         string            `json:"uid"`
	Labels      map[string]string `json:"labels"`
	Annotations map[string]string `json:"annotations"`
	// Written by tools, without a meaning here.
	CreationTimestamp any    `json:"creationTimestamp"`
	ResourceVersion   string `json:"resourceVersion"`
	Generation        int64  `json:"generation"`
	GenerateName      string `json:"generateName"`
	SelfLink          string `json:"selfLink"`
	ManagedFields     any    `json:"managedFields"`
	OwnerReferences   any    `json:"ownerReferences"`
	Finalizers        any    `json:"finalizers"`
}

// Pod is a Pod.
type Pod struct {
	APIVersion string  `json:"apiVersion"`
	Kind       string  `json:"kind"`
	Metadata   Meta    `json:"metadata"`
	Spec       PodSpec `json:"spec"`
	Status     any     `json:"status"` // not read

	networks     api.PodNetworks
	servicePorts []*runtimeapi.PortMapping

	origin   *object
	template string // path of the pod's template in the object, "" or with a dot at its end
	ordinal  int32  // in the workload
	retries  *int32 // of a Job: backoffLimit

	Part Part `json:"-"`
}

// ConfigMap is a ConfigMap.
type ConfigMap struct {
	APIVersion string            `json:"apiVersion"`
	Kind       string            `json:"kind"`
	Metadata   Meta              `json:"metadata"`
	Data       map[string]string `json:"data"`
	BinaryData map[string][]byte `json:"binaryData"`
	Immutable  *bool             `json:"immutable"`
}

// Secret is a Secret.
type Secret struct {
	APIVersion string            `json:"apiVersion"`
	Kind       string            `json:"kind"`
	Metadata   Meta              `json:"metadata"`
	Type       string            `json:"type"`
	Data       map[string][]byte `json:"data"`
	StringData map[string]string `json:"stringData"`
	Immutable  *bool             `json:"immutable"`
}

// Claim is a PersistentVolumeClaim: a volume by its name. Size and class have no
// meaning here.
type Claim struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Metadata   Meta   `json:"metadata"`
	Spec       any    `json:"spec"`   // not read
	Status     any    `json:"status"` // not read
}

// PodSpec is a PodSpec.
type PodSpec struct {
	InitContainers                []Container         `json:"initContainers"`
	Containers                    []Container         `json:"containers"`
	Volumes                       []Volume            `json:"volumes"`
	RestartPolicy                 string              `json:"restartPolicy"`
	TerminationGracePeriodSeconds *int64              `json:"terminationGracePeriodSeconds"`
	ActiveDeadlineSeconds         *int64              `json:"activeDeadlineSeconds"`
	Hostname                      string              `json:"hostname"`
	Subdomain                     string              `json:"subdomain"` // names of headless services do without
	HostNetwork                   bool                `json:"hostNetwork"`
	HostPID                       bool                `json:"hostPID"`
	HostIPC                       bool                `json:"hostIPC"`
	HostUsers                     *bool               `json:"hostUsers"`
	ShareProcessNamespace         bool                `json:"shareProcessNamespace"`
	HostAliases                   []HostAlias         `json:"hostAliases"`
	DNSPolicy                     string              `json:"dnsPolicy"`
	DNSConfig                     *DNSConfig          `json:"dnsConfig"`
	SecurityContext               *PodSecurityContext `json:"securityContext"`
	RuntimeClassName              string              `json:"runtimeClassName"`
	AutomountServiceAccountToken  *bool               `json:"automountServiceAccountToken"` // there are no tokens
	EnableServiceLinks            *bool               `json:"enableServiceLinks"`           // there are no services
}

// HostAlias is a line of /etc/hosts.
type HostAlias struct {
	IP        string   `json:"ip"`
	Hostnames []string `json:"hostnames"`
}

// DNSConfig is PodDNSConfig.
type DNSConfig struct {
	Nameservers []string `json:"nameservers"`
	Searches    []string `json:"searches"`
	Options     []struct {
		Name  string  `json:"name"`
		Value *string `json:"value"`
	} `json:"options"`
}

// PodSecurityContext is a PodSecurityContext.
type PodSecurityContext struct {
	RunAsUser          *int64          `json:"runAsUser"`
	RunAsGroup         *int64          `json:"runAsGroup"`
	RunAsNonRoot       *bool           `json:"runAsNonRoot"`
	SupplementalGroups []int64         `json:"supplementalGroups"`
	FSGroup            *int64          `json:"fsGroup"`
	SeccompProfile     *SeccompProfile `json:"seccompProfile"`
	Sysctls            []struct {
		Name  string `json:"name"`
		Value string `json:"value"`
	} `json:"sysctls"`
}

// SeccompProfile is a SeccompProfile.
type SeccompProfile struct {
	Type             string `json:"type"`
	LocalhostProfile string `json:"localhostProfile"`
}

// Container is a Container.
type Container struct {
	Name            string           `json:"name"`
	Image           string           `json:"image"`
	ImagePullPolicy string           `json:"imagePullPolicy"`
	Command         []string         `json:"command"`
	Args            []string         `json:"args"`
	WorkingDir      string           `json:"workingDir"`
	Env             []EnvVar         `json:"env"`
	EnvFrom         []EnvFrom        `json:"envFrom"`
	Ports           []Port           `json:"ports"`
	VolumeMounts    []VolumeMount    `json:"volumeMounts"`
	Resources       Resources        `json:"resources"`
	SecurityContext *SecurityContext `json:"securityContext"`
	LivenessProbe   *Probe           `json:"livenessProbe"`
	ReadinessProbe  *Probe           `json:"readinessProbe"`
	StartupProbe    *Probe           `json:"startupProbe"`
	Lifecycle       *Lifecycle       `json:"lifecycle"`
	RestartPolicy   string           `json:"restartPolicy"` // of init containers: Always is a sidecar
	Stdin           bool             `json:"stdin"`
	StdinOnce       bool             `json:"stdinOnce"`
	TTY             bool             `json:"tty"`
}

// EnvVar is an EnvVar.
type EnvVar struct {
	Name      string `json:"name"`
	Value     string `json:"value"`
	ValueFrom *struct {
		ConfigMapKeyRef *KeyRef   `json:"configMapKeyRef"`
		SecretKeyRef    *KeyRef   `json:"secretKeyRef"`
		FieldRef        *FieldRef `json:"fieldRef"`

		ResourceFieldRef *ResourceRef `json:"resourceFieldRef"`
	} `json:"valueFrom"`
}

// ResourceRef is a ResourceFieldSelector.
type ResourceRef struct {
	ContainerName string            `json:"containerName"`
	Resource      string            `json:"resource"`
	Divisor       quantity.Quantity `json:"divisor"`
}

// FieldRef is an ObjectFieldSelector.
type FieldRef struct {
	APIVersion string `json:"apiVersion"`
	FieldPath  string `json:"fieldPath"`
}

// KeyRef names a key of a ConfigMap or Secret.
type KeyRef struct {
	Name     string `json:"name"`
	Key      string `json:"key"`
	Optional bool   `json:"optional"`
}

// EnvFrom is an EnvFromSource.
type EnvFrom struct {
	Prefix       string `json:"prefix"`
	ConfigMapRef *Ref   `json:"configMapRef"`
	SecretRef    *Ref   `json:"secretRef"`
}

// Ref names a ConfigMap or Secret.
type Ref struct {
	Name     string `json:"name"`
	Optional bool   `json:"optional"`
}

// Port is a ContainerPort.
type Port struct {
	Name          string `json:"name"`
	ContainerPort int32  `json:"containerPort"`
	HostPort      int32  `json:"hostPort"`
	HostIP        string `json:"hostIP"`
	Protocol      string `json:"protocol"`
}

// VolumeMount is a VolumeMount.
type VolumeMount struct {
	Name              string `json:"name"`
	MountPath         string `json:"mountPath"`
	SubPath           string `json:"subPath"`
	SubPathExpr       string `json:"subPathExpr"`
	ReadOnly          bool   `json:"readOnly"`
	RecursiveReadOnly string `json:"recursiveReadOnly"`
	MountPropagation  string `json:"mountPropagation"`
}

// Volume is a Volume.
type Volume struct {
	Name     string    `json:"name"`
	EmptyDir *EmptyDir `json:"emptyDir"`
	HostPath *struct {
		Path string `json:"path"`
		Type string `json:"type"`
	} `json:"hostPath"`
	ConfigMap *ConfigVolume `json:"configMap"`
	Secret    *struct {
		SecretName  string      `json:"secretName"`
		Items       []KeyToPath `json:"items"`
		DefaultMode *int32      `json:"defaultMode"`
		Optional    bool        `json:"optional"`
	} `json:"secret"`
	PersistentVolumeClaim *ClaimVolume `json:"persistentVolumeClaim"`
	// Ephemeral is a claim that goes with its pod: it is kept as an emptyDir is.
	Ephemeral *struct {
		VolumeClaimTemplate any `json:"volumeClaimTemplate"` // size and class, not read
	} `json:"ephemeral"`
	Image *struct {
		Reference  string `json:"reference"`
		PullPolicy string `json:"pullPolicy"`
	} `json:"image"`
	DownwardAPI *struct {
		Items       []DownwardFile `json:"items"`
		DefaultMode *int32         `json:"defaultMode"`
	} `json:"downwardAPI"`
	Projected *struct {
		Sources     []Projection `json:"sources"`
		DefaultMode *int32       `json:"defaultMode"`
	} `json:"projected"`
}

// EmptyDir is an EmptyDirVolumeSource.
type EmptyDir struct {
	Medium    string             `json:"medium"`
	SizeLimit *quantity.Quantity `json:"sizeLimit"` // of one in memory
}

// ClaimVolume is a PersistentVolumeClaimVolumeSource.
type ClaimVolume struct {
	ClaimName string `json:"claimName"`
	ReadOnly  bool   `json:"readOnly"`
}

// DownwardFile is a DownwardAPIVolumeFile.
type DownwardFile struct {
	Path     string    `json:"path"`
	FieldRef *FieldRef `json:"fieldRef"`
	Mode     *int32    `json:"mode"`

	ResourceFieldRef *ResourceRef `json:"resourceFieldRef"`
}

// Projection is a VolumeProjection. Exactly one of the fields is set.
type Projection struct {
	ConfigMap   *ProjectedKeys `json:"configMap"`
	Secret      *ProjectedKeys `json:"secret"`
	DownwardAPI *struct {
		Items []DownwardFile `json:"items"`
	} `json:"downwardAPI"`
}

// ProjectedKeys is a ConfigMapProjection or SecretProjection.
type ProjectedKeys struct {
	Name     string      `json:"name"`
	Items    []KeyToPath `json:"items"`
	Optional bool        `json:"optional"`
}

// ConfigVolume is a ConfigMapVolumeSource.
type ConfigVolume struct {
	Name        string      `json:"name"`
	Items       []KeyToPath `json:"items"`
	DefaultMode *int32      `json:"defaultMode"`
	Optional    bool        `json:"optional"`
}

// KeyToPath is a KeyToPath.
type KeyToPath struct {
	Key  string `json:"key"`
	Path string `json:"path"`
	Mode *int32 `json:"mode"`
}

// Resources is ResourceRequirements.
type Resources struct {
	Limits   map[string]quantity.Quantity `json:"limits"`
	Requests map[string]quantity.Quantity `json:"requests"`
}

// SecurityContext is a SecurityContext.
type SecurityContext struct {
	Privileged               *bool           `json:"privileged"`
	AllowPrivilegeEscalation *bool           `json:"allowPrivilegeEscalation"`
	ReadOnlyRootFilesystem   *bool           `json:"readOnlyRootFilesystem"`
	RunAsUser                *int64          `json:"runAsUser"`
	RunAsGroup               *int64          `json:"runAsGroup"`
	RunAsNonRoot             *bool           `json:"runAsNonRoot"`
	SeccompProfile           *SeccompProfile `json:"seccompProfile"`
	ProcMount                string          `json:"procMount"`
	Capabilities             *struct {
		Add  []string `json:"add"`
		Drop []string `json:"drop"`
	} `json:"capabilities"`
}

// Probe is a Probe. Exactly one of Exec, HTTPGet, TCPSocket and GRPC is set.
type Probe struct {
	Exec *struct {
		Command []string `json:"command"`
	} `json:"exec"`
	HTTPGet   *HTTPGet `json:"httpGet"`
	TCPSocket *struct {
		Host string `json:"host"`
		Port PortOf `json:"port"`
	} `json:"tcpSocket"`
	GRPC *struct {
		Port    int32  `json:"port"`
		Service string `json:"service"`
	} `json:"grpc"`
	InitialDelaySeconds int32 `json:"initialDelaySeconds"`
	TimeoutSeconds      int32 `json:"timeoutSeconds"`
	PeriodSeconds       int32 `json:"periodSeconds"`
	SuccessThreshold    int32 `json:"successThreshold"`
	FailureThreshold    int32 `json:"failureThreshold"`
}

// Lifecycle is a Lifecycle, as far as commands go.
type Lifecycle struct {
	PostStart  *Hook  `json:"postStart"`
	PreStop    *Hook  `json:"preStop"`
	StopSignal string `json:"stopSignal"`
}

// HTTPGet is an HTTPGetAction.
type HTTPGet struct {
	Host        string `json:"host"`
	Path        string `json:"path"`
	Port        PortOf `json:"port"`
	Scheme      string `json:"scheme"`
	HTTPHeaders []struct {
		Name  string `json:"name"`
		Value string `json:"value"`
	} `json:"httpHeaders"`
}

// Hook is a LifecycleHandler. Exactly one of Exec, HTTPGet and Sleep is set; TCPSocket is
// refused.
type Hook struct {
	HTTPGet   *HTTPGet `json:"httpGet"`
	TCPSocket *struct {
		Host string `json:"host"`
		Port PortOf `json:"port"`
	} `json:"tcpSocket"`
	Exec *struct {
		Command []string `json:"command"`
	} `json:"exec"`
	Sleep *struct {
		Seconds int64 `json:"seconds"`
	} `json:"sleep"`
}
