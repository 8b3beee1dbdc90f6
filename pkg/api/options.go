package api

import (
	"encoding/json"
	"fmt"
	"time"
)

// AnnotationOptions is an annotation of a container: a ContainerOptions as JSON, for
// what a command asks for and the CRI has no field for.
const AnnotationOptions = "subpod.io/options"

// AnnotationShmSize is an annotation of a pod sandbox: the size of its /dev/shm in bytes.
const AnnotationShmSize = "subpod.io/shm-size"

// ContainerOptions are what the CRI's ContainerConfig has no field for.
type ContainerOptions struct {
	Rlimits []Rlimit `json:"rlimits,omitempty"`
	Tmpfs   []Tmpfs  `json:"tmpfs,omitempty"`
	// Volumes are named volumes that the container's mounts use: each is made where it
	// is missing, and gets the image's content where it is empty.
	Volumes []NamedVolume `json:"volumes,omitempty"`
	// Anonymous are container paths that get a volume of their own, as a VOLUME of the
	// image does.
	Anonymous []string `json:"anonymous,omitempty"`
	// Secrets are bound into the container.
	Secrets []SecretMount `json:"secrets,omitempty"`
	// SecretEnv are variables whose values come from secrets: no status shows them.
	SecretEnv []string `json:"secretEnv,omitempty"`
	// Init runs an init process as the first one.
	Init bool `json:"init,omitempty"`
	// Umask of the first process.
	Umask *uint32 `json:"umask,omitempty"`
	// Groups are supplementary groups by name, looked up in the image's group file.
	Groups []string `json:"groups,omitempty"`
	// UnsetEnv are variables of the image, or the defaults, to leave out; UnsetAll all of them.
	UnsetEnv []string `json:"unsetEnv,omitempty"`
	UnsetAll bool     `json:"unsetAll,omitempty"`
	// StopTimeout is what "stop" waits before it kills, in seconds; nil is its default.
	StopTimeout *int64 `json:"stopTimeout,omitempty"`
	// LogMax bounds the container's log in bytes: the older half of what is kept goes
	// when the newer half is full. 0 is no bound.
	LogMax int64 `json:"logMax,omitempty"`
	// Emulated says that programs of another architecture than this machine's are run by an
	// emulator: without it an image for one is refused.
	Emulated bool `json:"emulated,omitempty"`
	// PIDFile is where a command that creates or starts the container writes the PID of its
	// first process, as the host sees it; an absolute path of the host. The server does not.
	PIDFile string `json:"pidFile,omitempty"`
	// Health is a check that the server runs in the container.
	Health *Health `json:"health,omitempty"`
}

// OldLog is what the name of a log ends with that has reached half of its bound: the
// container writes a new one.
const OldLog = ".old"

// Rlimit is a limit of setrlimit(2): RLIMIT_NOFILE and so on.
type Rlimit struct {
	Name string `json:"name"`
	Soft uint64 `json:"soft"`
	Hard uint64 `json:"hard"`
}

// Tmpfs is a tmpfs of the container's own. Options are those of mount(8).
type Tmpfs struct {
	Path    string   `json:"path"`
	Options []string `json:"options,omitempty"`
}

// NamedVolume is a volume that is mounted on a path of a container.
type NamedVolume struct {
	Name string `json:"name"`
	Path string `json:"path"`
	// NoCopy leaves an empty volume empty.
	NoCopy bool `json:"noCopy,omitempty"`
}

// SecretMount is a secret that is bound into a container, with these owners and this
// mode in it.
type SecretMount struct {
	Name string `json:"name"`
	Path string `json:"path"`
	UID  uint32 `json:"uid,omitempty"`
	GID  uint32 `json:"gid,omitempty"`
	Mode uint32 `json:"mode"`
}

// Health is a health check: a command that is run in the container now and then.
type Health struct {
	// Command is run directly; the client has put the shell in where one is wanted.
	Command     []string      `json:"command"`
	Interval    time.Duration `json:"interval,omitempty"`
	Timeout     time.Duration `json:"timeout,omitempty"`
	StartPeriod time.Duration `json:"startPeriod,omitempty"`
	Retries     int           `json:"retries,omitempty"`
	// OnFailure is what becomes of a container that is unhealthy: "none", "kill", "restart" or
	// "stop".
	OnFailure string `json:"onFailure,omitempty"`
}

// IsZero reports whether nothing is asked for.
func (o *ContainerOptions) IsZero() bool {
	text, err := json.Marshal(o)
	return err == nil && string(text) == "{}"
}

// SetOptions puts options into the annotations of a container, unless they ask for
// nothing.
func SetOptions(annotations map[string]string, o *ContainerOptions) error {
	if o.IsZero() {
		return nil
	}
	text, err := json.Marshal(o)
	if err != nil {
		return err
	}
	annotations[AnnotationOptions] = string(text)
	return nil
}

// Options reads the options from the annotations of a container; none are a zero value.
func Options(annotations map[string]string) (*ContainerOptions, error) {
	o := &ContainerOptions{}
	text := annotations[AnnotationOptions]
	if text == "" {
		return o, nil
	}
	if err := json.Unmarshal([]byte(text), o); err != nil {
		return nil, fmt.Errorf("annotation %s: %w", AnnotationOptions, err)
	}
	return o, nil
}
