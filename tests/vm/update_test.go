package vm

import (
	"strings"
	"testing"
)

// TestUpdate: "subpod update" changes the limits of a container that runs, and they hold
// when it is restarted.
func TestUpdate(t *testing.T) {
	start(t, "")
	in(t, subpod+" pull -q busybox; "+subpod+" run -d -q --name upd -m 64m busybox sleep 100000")
	read := func(file string) string {
		return in(t, subpod+" exec upd cat /sys/fs/cgroup/"+file)
	}
	all := []struct{ flags, file, want string }{
		{"update --memory 96m", "memory.max", "100663296"},
		{"update -m 96m --memory-swap 128m", "memory.swap.max", "33554432"},
		{"update --memory-reservation 32m", "memory.low", "33554432"},
		{"update --cpus 0.5", "cpu.max", "50000 100000"},
		{"update --cpu-period 50000 --cpu-quota 20000", "cpu.max", "20000 50000"},
		{"update --cpu-shares 2048", "cpu.weight", ""},
		{"update --cpuset-cpus 0", "cpuset.cpus.effective", "0"},
		{"update --cpuset-mems 0", "cpuset.mems", "0"},
		{"update --pids-limit 30", "pids.max", "30"},
	}
	before := read("cpu.weight")
	for _, c := range all {
		in(t, subpod+" "+c.flags+" upd")
		if got := read(c.file); got != c.want && c.want != "" || c.want == "" && got == before {
			t.Errorf("%s: %s is %q, want %q", c.flags, c.file, got, c.want)
		}
	}
	in(t, subpod+" restart -t 0 upd")
	if got := strings.Join([]string{read("memory.max"), read("cpu.max"), read("pids.max")}, ", "); got != "100663296, 20000 50000, 30" {
		t.Errorf("after a restart: %s", got)
	}
	in(t, subpod+" rm -f upd")
}

// TestCgroupParentFlag: --cgroup-parent puts the container below the cgroup that it names.
func TestCgroupParentFlag(t *testing.T) {
	start(t, "")
	in(t, subpod+" pull -q busybox; "+subpod+" run -d -q --name cgp --cgroup-parent /mine busybox sleep 100001")
	if dirs := as(t, "root", "cat /proc/$(pgrep -f 'sleep 100001$' | head -n 1)/cgroup"); !strings.Contains(dirs, "/mine/") {
		t.Errorf("%s", dirs)
	}
	in(t, subpod+" rm -f cgp")
}
