package attack

import (
	"strconv"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestExecOOMScore: a command in a container begins with the container's score, so that
// the kernel ends it before the daemon. That it can change that later is documented: the
// kernel asks only for lowering a score below what it was set to by a privileged process.
func TestExecOOMScore(t *testing.T) {
	v := newVictim(t)
	for _, asked := range []int64{0, 900} {
		id, err := v.start(func(c *runtimeapi.ContainerConfig) {
			c.Metadata.Name = "score" + strconv.FormatInt(asked, 10)
			c.Linux.Resources = &runtimeapi.LinuxContainerResources{OomScoreAdj: asked}
		})
		if err != nil {
			t.Fatal(err)
		}
		score := func(cmd ...string) int {
			r, err := v.cri.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: cmd, Timeout: 60})
			if err != nil {
				t.Fatal(err)
			}
			n, err := strconv.Atoi(strings.TrimSpace(string(r.Stdout)))
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
		init := score("cat", "/proc/1/oom_score_adj")
		if asked != 0 && init < int(asked) {
			t.Errorf("init has %d, asked for %d", init, asked)
		}
		for range 10 {
			if got := score("cat", "/proc/self/oom_score_adj"); got < init {
				t.Errorf("an exec begins with %d, the container has %d", got, init)
			}
		}
	}
}
