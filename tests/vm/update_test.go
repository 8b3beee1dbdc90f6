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
	// Several files at a time: a command in a container takes the machine long.
	read := func(files ...string) string {
		return strings.ReplaceAll(in(t, subpod+" exec upd sh -c 'cd /sys/fs/cgroup; cat "+strings.Join(files, " ")+"'"), "\n", ", ")
	}
	before := read("cpu.weight")
	for _, c := range []struct {
		updates []string
		files   []string
		want    string
	}{
		{[]string{"update --memory 96m", "update --memory-reservation 32m", "update --cpus 0.5", "update --cpuset-cpus 0", "update --cpuset-mems 0", "update --pids-limit 30"},
			[]string{"memory.max", "memory.low", "cpu.max", "cpuset.cpus.effective", "cpuset.mems", "pids.max"},
			"100663296, 33554432, 50000 100000, 0, 0, 30"},
		{[]string{"update -m 96m --memory-swap 128m", "update --cpu-period 50000 --cpu-quota 20000"},
			[]string{"memory.swap.max", "cpu.max"}, "33554432, 20000 50000"},
	} {
		for _, update := range c.updates {
			in(t, subpod+" "+update+" upd")
		}
		if got := read(c.files...); got != c.want {
			t.Errorf("after %q: %q is %s, want %s", c.updates, c.files, got, c.want)
		}
	}
	in(t, subpod+" update --cpu-shares 2048 upd")
	if got := read("cpu.weight"); got == before {
		t.Errorf("the weight stays %s with 2048 shares", got)
	}
	in(t, subpod+" restart -t 0 upd")
	if got := read("memory.max", "cpu.max", "pids.max"); got != "100663296, 20000 50000, 30" {
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
