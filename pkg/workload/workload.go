// Package workload describes pods that subpod itself keeps running, those of its own
// commands: what they consist of, and how far they are. Package supervise acts on it,
// package state stores it.
package workload

import (
	"errors"
	"fmt"
	"maps"
	"strconv"
	"strings"
	"time"
)

// Spec is the desired state of a pod. It is never changed.
type Spec struct {
	// Containers are in the order in which they are started.
	Containers []Container `json:"containers"`
	// Deadline ends the pod, as failed, that long after its first start; 0 for never.
	Deadline time.Duration `json:"deadline,omitempty"`
	// Grace is what the containers get to end after their stop signal.
	Grace time.Duration `json:"grace,omitempty"`
	// Backoff is what lies between restarts.
	Backoff Backoff `json:"backoff"`
}

// Made reports whether a request has made the only container, and not the supervisor: it
// is that also where its name is another, as in the middle of a rename.
func (s *Spec) Made() bool {
	return s != nil && len(s.Containers) == 1 && len(s.Containers[0].Config) == 0
}

// Roles of a container. Inits run one after the other before the mains, each to its
// end; a sidecar is started in their order and runs as long as the pod does.
const (
	Init    = "init"
	Sidecar = "sidecar"
	Main    = "main"
)

// Container is one container of a pod.
type Container struct {
	Name    string `json:"name"` // metadata.name of its configuration
	Role    string `json:"role"`
	Restart Policy `json:"restart"`
	// Config is the marshalled CRI configuration to make it with; empty for one that
	// the request has made which brought this specification. Placeholders are replaced.
	Config []byte `json:"config,omitempty"`
	// Fresh gives it a new root file system for each run, as a kubelet does.
	Fresh     bool   `json:"fresh,omitempty"`
	PostStart *Hook  `json:"postStart,omitempty"`
	PreStop   *Hook  `json:"preStop,omitempty"`
	Startup   *Probe `json:"startup,omitempty"`
	Liveness  *Probe `json:"liveness,omitempty"`
	Readiness *Probe `json:"readiness,omitempty"`
}

// Placeholders in environment, command, arguments and paths of mounts stand for what is
// known only once the pod sandbox is there. No such text can have a zero byte otherwise.
const (
	PodIP   = "\x00podIP\x00"
	Volumes = "\x00volumes\x00" // the directory of the pod's memory volumes
)

// Hook is what is done after a start or before a stop. Any answer to HTTP is success.
type Hook struct {
	HTTP    *HTTP         `json:"http,omitempty"`
	Sleep   time.Duration `json:"sleep,omitempty"`
	Command []string      `json:"command,omitempty"`
}

// Probe asks how a container does. Exactly one of Command, HTTP, TCP and GRPC is set.
type Probe struct {
	Command []string `json:"command,omitempty"`
	HTTP    *HTTP    `json:"http,omitempty"`
	TCP     *Address `json:"tcp,omitempty"`
	GRPC    *GRPC    `json:"grpc,omitempty"`

	Delay     time.Duration `json:"delay,omitempty"` // from the container's start to the first one
	Period    time.Duration `json:"period"`
	Timeout   time.Duration `json:"timeout"`
	Successes int32         `json:"successes"` // in a row, to succeed
	Failures  int32         `json:"failures"`  // in a row, to fail
}

// Address is a port of the pod; Host replaces the pod's address.
type Address struct {
	Host string `json:"host,omitempty"`
	Port int32  `json:"port"`
}

// HTTP is a GET request; a status from 200 to 399 is success.
type HTTP struct {
	Address
	TLS     bool        `json:"tls,omitempty"`
	Path    string      `json:"path,omitempty"`
	Headers [][2]string `json:"headers,omitempty"`
}

// GRPC is a Check of grpc.health.v1.
type GRPC struct {
	Address
	Service string `json:"service,omitempty"`
}

// Status is how far a pod is.
type Status struct {
	// Generation counts the sandboxes that were built for the pod after the first one.
	Generation uint32    `json:"generation,omitempty"`
	StartedAt  time.Time `json:"startedAt,omitzero"`
	// Stopped is that the user has stopped it: nothing is restarted.
	Stopped bool `json:"stopped,omitempty"`
	// StoppedIn is the identity of the node in which the user has last stopped it, or a
	// container of it.
	StoppedIn string `json:"stoppedIn,omitempty"`
	// Restarting is that the user restarts all of it, and that not all has ended yet:
	// nothing is started meanwhile.
	Restarting bool `json:"restarting,omitempty"`
	// Done is that all containers have ended for good, Failed that one of them did so
	// with an error, which Reason gives.
	Done       bool                `json:"done,omitempty"`
	Failed     bool                `json:"failed,omitempty"`
	Reason     string              `json:"reason,omitempty"`
	Containers map[string]Progress `json:"containers,omitempty"` // by name
}

// Progress is how far a container is.
type Progress struct {
	// Ran is set once it was run; Generation is that of the sandbox it last ran in.
	Ran        bool   `json:"ran,omitempty"`
	Generation uint32 `json:"generation,omitempty"`
	// Restarts counts all of them, Failures those in a row, for the backoff.
	Restarts uint32 `json:"restarts,omitempty"`
	Failures uint32 `json:"failures,omitempty"`
	// Stopped is that the user has stopped this container.
	Stopped bool `json:"stopped,omitempty"`
	// Hooked is the start of the run whose postStart hook was carried out.
	Hooked time.Time `json:"hooked,omitzero"`
}

// With returns the status with another progress of a container; s is not changed.
func (s Status) With(name string, p Progress) Status {
	s.Containers = maps.Clone(s.Containers)
	if s.Containers == nil {
		s.Containers = map[string]Progress{}
	}
	s.Containers[name] = p
	return s
}

// Active reports whether the pod is to be kept running.
func (s Status) Active() bool { return !s.Done && !s.Stopped }

// Resumed returns the status of a pod that its user starts again, with all that belongs
// to it.
func (s Status) Resumed() Status { return Status{Generation: s.Generation} }

// Policy says when a container that has exited is restarted.
type Policy struct {
	Name string `json:"name"`
	// Max is how many restarts OnFailure makes, 0 for any number.
	Max uint32 `json:"max,omitempty"`
}

// Names of policies.
const (
	No        = "no"
	OnFailure = "on-failure"
	// Always is restarted also after a node that ended while the user had stopped it,
	// UnlessStopped is not.
	Always        = "always"
	UnlessStopped = "unless-stopped"
)

// ErrPolicy says that a text is not a restart policy.
var ErrPolicy = errors.New("expected no, on-failure[:MAX], unless-stopped or always")

// ParsePolicy reads a policy as command lines give it. ErrPolicy.
func ParsePolicy(text string) (Policy, error) {
	name, limit, given := strings.Cut(text, ":")
	switch name {
	case "", No, "never": // as Kubernetes has it
		name = No
	case OnFailure:
		if !given {
			return Policy{Name: name}, nil
		}
		n, err := strconv.ParseUint(limit, 10, 31)
		if err != nil {
			return Policy{}, fmt.Errorf("%q: %w", text, ErrPolicy)
		}
		return Policy{Name: name, Max: uint32(n)}, nil
	case Always, UnlessStopped:
	default:
		return Policy{}, fmt.Errorf("%q: %w", text, ErrPolicy)
	}
	if given {
		return Policy{}, fmt.Errorf("%q: %w", text, ErrPolicy)
	}
	return Policy{Name: name}, nil
}

// Backoff is the delay before a restart: First before the first one in a row, then Base,
// doubled up to Max. One that ran for Reset begins anew.
type Backoff struct {
	First time.Duration `json:"first,omitempty"`
	Base  time.Duration `json:"base"`
	Max   time.Duration `json:"max"`
	Reset time.Duration `json:"reset"`
}

// Of "run", as Docker has it, and of "play", as a kubelet has it.
var (
	RunBackoff  = Backoff{First: 100 * time.Millisecond, Base: 200 * time.Millisecond, Max: time.Minute, Reset: 10 * time.Second}
	PlayBackoff = Backoff{Base: 10 * time.Second, Max: 5 * time.Minute, Reset: 10 * time.Minute}
)

// Delay returns the delay after so many failures in a row before this one.
func (b Backoff) Delay(failures uint32) time.Duration {
	if failures == 0 {
		return b.First
	}
	d := b.Base
	for ; failures > 1 && d < b.Max; failures-- {
		d *= 2
	}
	return min(d, b.Max)
}
