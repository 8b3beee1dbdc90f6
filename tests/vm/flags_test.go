package vm

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// TestLimitFlags: what the flags of "subpod run" ask for stands in the container's cgroup,
// and without them no limit does. A container takes the machine long: each has several.
func TestLimitFlags(t *testing.T) {
	start(t, "")
	in(t, subpod+" pull -q busybox")
	var weights []int
	for _, c := range []struct {
		flags string
		want  map[string]string
	}{
		{"", map[string]string{
			"memory.max": "max", "memory.swap.max": "max", "memory.low": "0", "cpu.max": "max 100000", "cpu.weight": "100", "cpuset.cpus": "", "cpuset.mems": "",
		}},
		{"--memory 64m", map[string]string{"memory.max": "67108864"}},
		{"-m 64m --memory-swap 96m --memory-reservation 32m --cpus 0.5 --cpuset-cpus 0 --pids-limit 30", map[string]string{
			"memory.max": "67108864", "memory.swap.max": "33554432", "memory.low": "33554432", "cpu.max": "50000 100000", "cpuset.cpus.effective": "0", "pids.max": "30",
		}},
		{"-m 64m --memory-swap 64m --cpu-shares 256 --cpu-period 50000 --cpu-quota 20000", map[string]string{"memory.swap.max": "0", "cpu.max": "20000 50000"}},
		{"-m 64m --memory-swap -1 --cpu-shares 512 --pids-limit -1", map[string]string{"memory.swap.max": "max", "pids.max": "max"}},
		{"--cpu-shares 2048 --cpuset-mems 0", map[string]string{"cpuset.mems": "0"}},
		{"--cpu-shares 8192", nil},
	} {
		t.Run(cmp.Or(c.flags, "without"), func(t *testing.T) {
			got := limitFiles(t, c.flags)
			for file, want := range c.want {
				if got[file] != want {
					t.Errorf("%s is %q, want %q", file, got[file], want)
				}
			}
			if strings.Contains(c.flags, "--cpu-shares") {
				weight, err := strconv.Atoi(got["cpu.weight"])
				if err != nil {
					t.Fatal(err)
				}
				weights = append(weights, weight)
			}
		})
	}
	if len(weights) != 4 || !slices.IsSorted(weights) || weights[0] == weights[3] || slices.Contains(weights, 100) {
		t.Errorf("weights of 256, 512, 2048 and 8192 shares: %v", weights)
	}
}

// TestLimitFlagsHold: the limits have their effect.
func TestLimitFlagsHold(t *testing.T) {
	start(t, "")
	in(t, subpod+" pull -q busybox")
	t.Run("--memory", func(t *testing.T) {
		out := in(t, subpod+" run --rm --memory 16m --memory-swap 16m busybox tail /dev/zero; echo code $?")
		if !strings.HasSuffix(out, "code 137") {
			t.Errorf("more memory than the limit: %s", out)
		}
	})
	t.Run("--pids-limit", func(t *testing.T) {
		out := in(t, subpod+" run --rm --pids-limit 20 busybox sh -c '(for i in $(seq 60); do sleep 1000 & done) 2>/dev/null; while read -r what n; do case $what in max) echo $what $n;; esac; done </sys/fs/cgroup/pids.events'")
		if refused, ok := strings.CutPrefix(out, "max "); !ok || refused == "0" {
			t.Errorf("no fork was refused: %q", out)
		}
	})
	t.Run("--cpus", func(t *testing.T) {
		const busy = "timeout 1 sh -c 'while :; do :; done'; grep ^nr_throttled /sys/fs/cgroup/cpu.stat"
		out := in(t, fmt.Sprintf("%s run --rm --cpus 0.2 busybox sh -c %q", subpod, busy))
		if n, ok := strings.CutPrefix(out, "nr_throttled "); !ok || n == "0" {
			t.Errorf("never throttled: %q", out)
		}
	})
	t.Run("--cpuset-cpus", func(t *testing.T) {
		if out := in(t, subpod+" run --rm --cpuset-cpus 1 busybox sh -c 'grep ^Cpus_allowed_list /proc/self/status'"); !strings.HasSuffix(out, "\t1") {
			t.Errorf("allowed CPUs: %q", out)
		}
	})
	t.Run("restart", func(t *testing.T) {
		in(t, subpod+" run -d --name limits --memory 64m --pids-limit 30 busybox sleep 1000")
		defer in(t, subpod+" rm -f -t 0 limits")
		in(t, subpod+" restart -t 0 limits")
		if out := in(t, subpod+" exec limits sh -c 'cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/pids.max'"); out != "67108864\n30" {
			t.Errorf("after a restart: %q", out)
		}
	})
}

const subpod = "~/.local/bin/subpod"

// limitFiles returns the limits in the cgroup of a container with these flags, by file.
func limitFiles(t *testing.T, flags string) map[string]string {
	t.Helper()
	const look = "cd /sys/fs/cgroup; grep -s '' memory.max memory.swap.max memory.low cpu.max cpu.weight cpuset.cpus cpuset.cpus.effective cpuset.mems pids.max"
	return byFile(in(t, fmt.Sprintf("%s run --rm %s busybox sh -c %q", subpod, flags, look)))
}

// shown is what "ps" shows of containers of which it is known what they do: "a is frozen,
// b runs".
func shown(what string) (paused, running string) {
	var p, r []string
	for _, one := range strings.Split(what, ", ") {
		name, does, _ := strings.Cut(one, " ")
		if does == "runs" {
			r = append(r, name+" Up")
		} else {
			p = append(p, name+" Paused")
		}
	}
	return strings.Join(p, "\n"), strings.Join(r, "\n")
}

// TestPauseFlags: the containers that pause and unpause are asked for by flags freeze, and
// go on.
func TestPauseFlags(t *testing.T) {
	start(t, "")
	in(t, subpod+" pull -q busybox")
	in(t, subpod+` create -q --name pause-a -l pause=1 --cidfile pause.id busybox sleep 1000 >/dev/null
		`+subpod+` start pause-a >/dev/null
		`+subpod+` run -d -q --name pause-b busybox sleep 1000 >/dev/null`)
	defer in(t, subpod+" rm -f pause-a pause-b; rm -f pause.id")
	frozen := func(want string) {
		t.Helper()
		look := ""
		for _, c := range []string{"pause-a", "pause-b"} {
			patience := 60 // one that runs is as slow as the machine
			if strings.Contains(want, c+" is frozen") {
				patience = 5
			}
			look += fmt.Sprintf("timeout %d %s exec %[3]s true && echo %[3]s runs || echo %[3]s is frozen\n", patience, subpod, c)
		}
		if got := strings.ReplaceAll(in(t, look), "\n", ", "); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
	const both = "pause-a is frozen, pause-b is frozen"
	for _, c := range []struct{ pause, unpause, want string }{
		{"pause --filter label=pause=1", "unpause --filter label=pause=1", "pause-a is frozen, pause-b runs"},
		{"pause --cidfile pause.id", "unpause --cidfile pause.id", "pause-a is frozen, pause-b runs"},
		{"pause --latest", "unpause --latest", "pause-a runs, pause-b is frozen"},
		{"pause --all", "unpause --all", both},
	} {
		in(t, subpod+" "+c.pause)
		frozen(c.want)
		paused, running := shown(c.want)
		for status, names := range map[string]string{"paused": paused, "running": running} {
			if got := in(t, subpod+" ps --sort names --filter name=pause- --filter status="+status+" --format '{{.Names}} {{.Status}}' | cut -d' ' -f1,2"); got != names {
				t.Errorf("%s: ps --filter status=%s: %q, want %q", c.pause, status, got, names)
			}
		}
		in(t, subpod+" "+c.unpause)
		frozen("pause-a runs, pause-b runs")
	}
}
