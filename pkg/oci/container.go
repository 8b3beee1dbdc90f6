package oci

import (
	"path/filepath"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/subpod/subpod/pkg/proc"
)

// Container is a created container: its caller stores it as JSON in the
// container's record, and all methods but Begin work from it alone. The names
// of its fields in JSON must stay stable.
type Container struct {
	Handler string  `json:"handler"`
	Bundle  string  `json:"bundle"`
	Rootfs  string  `json:"rootfs"`
	LogPath string  `json:"logPath,omitempty"`
	Init    proc.ID `json:"init"`
	// Monitor is MonitorNode; "" is conmon, whose process Conmon is.
	Monitor   string  `json:"monitor,omitempty"`
	Conmon    proc.ID `json:"conmon"`
	Terminal  bool    `json:"terminal,omitempty"`
	Stdin     bool    `json:"stdin,omitempty"`
	StdinOnce bool    `json:"stdinOnce,omitempty"`
	// PIDNamespace is "own", "shared" (joined by path) or "host" (the node's).
	PIDNamespace string `json:"pidNamespace"`
	// MountNS identifies the container's mount namespace. A process in it belongs
	// to the container.
	MountNS mountNS `json:"mountNS"`
	// Before is the program image of init before it executes the container's
	// command.
	Before image `json:"before"`
	// Program is what init is going to execute.
	Program program `json:"program,omitzero"`
	// Confined containers, and what is executed in them, can open nothing by a file
	// handle. It is not set for those that an earlier server created.
	Confined bool `json:"confined,omitempty"`
	// Switched is BeginSpec's: what is executed in the container has it as well.
	Switched string `json:"switched,omitempty"`
	// PlainStart is set when only the runtime itself can start the container,
	// because of poststart hooks.
	PlainStart bool `json:"plainStart,omitempty"`
	// PlainDelete is set when only the runtime itself can delete the container,
	// because of poststop hooks.
	PlainDelete bool `json:"plainDelete,omitempty"`
}

// newContainer returns what is known of a container before the runtime is called.
func newContainer(s BeginSpec, spec *specs.Spec) Container {
	c := Container{
		Handler: s.Handler, Bundle: s.Bundle, LogPath: s.LogPath,
		Terminal: s.Terminal, Stdin: s.Stdin, StdinOnce: s.StdinOnce, Confined: s.Confined, Switched: s.Switched,
		Rootfs: spec.Root.Path, PIDNamespace: pidNamespace(spec), Program: initProgram(spec),
	}
	if !filepath.IsAbs(c.Rootfs) {
		c.Rootfs = filepath.Join(s.Bundle, c.Rootfs)
	}
	if h := spec.Hooks; h != nil {
		c.PlainStart, c.PlainDelete = len(h.Poststart) > 0, len(h.Poststop) > 0
	}
	return c
}

func pidNamespace(s *specs.Spec) string {
	i := slices.IndexFunc(s.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == specs.PIDNamespace })
	switch {
	case i < 0:
		return "host"
	case s.Linux.Namespaces[i].Path == "":
		return "own"
	}
	return "shared"
}
