package container

import (
	"slices"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// TestCandidates: a program is looked for where the OCI runtime looks for it.
func TestCandidates(t *testing.T) {
	env := []string{"A=b", "PATH=/bin:/usr/bin"}
	for _, c := range []struct {
		program string
		want    []string
	}{
		{"true", []string{"/bin/true", "/usr/bin/true"}},
		{"/sbin/init", []string{"/sbin/init"}},
		{"./run.sh", []string{"/app/run.sh"}},
		{"../bin/run", []string{"/bin/run"}},
	} {
		got := candidates(&specs.Process{Args: []string{c.program}, Cwd: "/app", Env: env})
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", c.program, got, c.want)
		}
	}
}
