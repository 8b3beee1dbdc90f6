package oci

import (
	"context"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// TestExecOOMScore: a command in a container is as likely to be killed as the container.
func TestExecOOMScore(t *testing.T) {
	eachHandler(t, func(t *testing.T, handler string) {
		e := executor(t)
		score := 700
		b := create(t, e, container{handler: handler, change: func(s *specs.Spec) { s.Process.OOMScoreAdj = &score }}).start()
		p := b.process("/bin/cat", "/proc/self/oom_score_adj")
		p.OOMScoreAdj = &score
		for range 3 {
			r, err := e.ExecSync(context.Background(), b.id, b.ctr, ExecSpec{Process: p})
			if got := strings.TrimSpace(string(r.Stdout)); err != nil || got != "700" {
				t.Errorf("oom_score_adj %s, %v, want 700", got, err)
			}
		}
	})
}
