package oci

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// bpfAnnotation hands a compiled seccomp filter to crun, in base64.
const bpfAnnotation = "run.oci.seccomp_bpf_data"

// errBPFIgnored is returned when a runtime did not install the compiled filter.
var errBPFIgnored = errors.New("the runtime did not install the compiled seccomp filter")

// canUseBPF reports whether a compiled filter can replace the spec's profile. A
// listener needs the profile itself.
func canUseBPF(s *specs.Spec) bool {
	return s.Linux.Seccomp != nil && s.Linux.Seccomp.ListenerPath == ""
}

// withFilter returns a copy of the spec for the runtime, with the filter as an
// annotation in place of the profile unless filter is "". Annotations come from
// clients, so theirs of this name is removed.
func withFilter(spec specs.Spec, filter string) specs.Spec {
	spec.Annotations = maps.Clone(spec.Annotations)
	delete(spec.Annotations, bpfAnnotation)
	if filter == "" {
		return spec
	}
	// The profile is replaced by one that denies everything: a runtime that
	// does not know the annotation then cannot run the container unconfined.
	// It is also less to parse in each call.
	linux := *spec.Linux
	linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Flags: spec.Linux.Seccomp.Flags}
	spec.Linux = &linux
	if spec.Annotations == nil {
		spec.Annotations = map[string]string{}
	}
	spec.Annotations[bpfAnnotation] = filter
	return spec
}

// checkFilter returns errBPFIgnored unless the runtime has stored the filter
// that it was handed, in its state directory of the container.
func checkFilter(stateDir, filter string) error {
	want, err := base64.StdEncoding.DecodeString(filter)
	if err != nil {
		return fmt.Errorf("decode the compiled seccomp filter: %w", err)
	}
	got, err := os.ReadFile(filepath.Join(stateDir, "seccomp.bpf"))
	if err != nil || !bytes.Equal(got, want) {
		return errBPFIgnored
	}
	return nil
}

// writeConfig writes the bundle's config.json.
func writeConfig(bundle string, spec specs.Spec, terminal bool) error {
	process := *spec.Process
	process.Terminal = terminal
	spec.Process = &process
	b, err := json.Marshal(&spec)
	if err != nil {
		return fmt.Errorf("encode the OCI spec: %w", err)
	}
	if err := os.WriteFile(filepath.Join(bundle, configFile), b, 0o600); err != nil {
		return fmt.Errorf("write the OCI spec: %w", err)
	}
	return nil
}
