package ocispec

import (
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// BenchmarkBuild is a kubelet's request; its profile is in the cache after the
// first time, as in the daemon.
func BenchmarkBuild(b *testing.B) {
	benchmark(b, goldenHost())
}

// BenchmarkBuildUncached resolves and compiles the profile each time.
func BenchmarkBuildUncached(b *testing.B) {
	h := goldenHost()
	h.Cache = nil
	benchmark(b, h)
}

func benchmark(b *testing.B, h Host) {
	in := Input{Rootfs: b.TempDir(), Host: h, Pod: &runtimeapi.PodSandboxConfig{}, Container: &runtimeapi.ContainerConfig{
		Command: []string{"x"},
		Linux:   &runtimeapi.LinuxContainerConfig{SecurityContext: &secContext{Seccomp: &runtimeapi.SecurityProfile{}}},
	}}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Build(in); err != nil {
			b.Fatal(err)
		}
	}
}
