package proc

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestForkLimit: each limit is named where it is reached, and none where the machine was
// only busy.
func TestForkLimit(t *testing.T) {
	const v2, v1 = "0::/user/node/pod\n", "12:pids:/user/node/pod\n0::/\n"
	for name, c := range map[string]struct {
		files   map[string]string
		nproc   uint64
		threads uint64
		want    string
	}{
		"none":                {map[string]string{"proc/7/cgroup": v2, "cg/user/node/pod/pids.max": "max", "cg/user/node/pod/pids.current": "50"}, unix.RLIM_INFINITY, 50, ""},
		"the cgroup's":        {map[string]string{"proc/7/cgroup": v2, "cg/user/node/pod/pids.max": "50\n", "cg/user/node/pod/pids.current": "50\n"}, unix.RLIM_INFINITY, 50, "pids.max of the cgroup /user/node/pod: 50 of 50"},
		"one above":           {map[string]string{"proc/7/cgroup": v2, "cg/user/pids.max": "100", "cg/user/pids.current": "99", "cg/user/node/pod/pids.max": "50", "cg/user/node/pod/pids.current": "5"}, unix.RLIM_INFINITY, 50, "pids.max of the cgroup /user: 99 of 100"},
		"a hybrid tree":       {map[string]string{"proc/7/cgroup": v1, "cg/pids/user/node/pids.max": "100", "cg/pids/user/node/pids.current": "97"}, unix.RLIM_INFINITY, 50, "pids.max of the cgroup /user/node: 97 of 100"},
		"the user's":          {map[string]string{"proc/7/cgroup": v2}, 1000, 990, "RLIMIT_NPROC: at least 990 of 1000"},
		"the machine's":       {map[string]string{"proc/loadavg": "0.1 0.2 0.3 2/7999 1234", "proc/sys/kernel/threads-max": "8000"}, unix.RLIM_INFINITY, 50, "kernel.threads-max: 7999 of 8000"},
		"the process IDs":     {map[string]string{"proc/loadavg": "0.1 0.2 0.3 2/32768 1234", "proc/sys/kernel/threads-max": "100000", "proc/sys/kernel/pid_max": "32768"}, unix.RLIM_INFINITY, 50, "kernel.pid_max: 32768 of 32768"},
		"far from the limits": {map[string]string{"proc/loadavg": "0.1 0.2 0.3 2/500 1234", "proc/sys/kernel/threads-max": "8000", "proc/sys/kernel/pid_max": "32768"}, 1000, 500, ""},
		"nothing to be read":  {nil, unix.RLIM_INFINITY, 0, ""},
	} {
		dir := t.TempDir()
		for file, text := range c.files {
			path := filepath.Join(dir, file)
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		l := forkLimits{proc: filepath.Join(dir, "proc"), cgroup: filepath.Join(dir, "cg"), nproc: c.nproc, threads: func() uint64 { return c.threads }}
		if got := l.reached(7); c.want == "" && got != "" || !strings.HasPrefix(got, c.want) {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
	if got := ForkLimit(os.Getpid()); got != "" {
		t.Errorf("this process: %q", got)
	}
}
