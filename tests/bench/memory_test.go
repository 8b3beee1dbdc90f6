package bench

import (
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/subpod/subpod/tests/leak"
	"github.com/subpod/subpod/tests/node"
)

// usage is what the processes of one kind have, in KiB. RSS counts shared pages
// in each process; PSS divides them.
type usage struct{ count, rss, pss int }

// memory reads what the daemon's processes use, by kind. The containers' own
// processes are "workload".
func memory(n *node.Node) map[string]usage { return memoryBelow(n.PID()) }

// memoryBelow is memory of a process and all below it.
func memoryBelow(pid int) map[string]usage {
	kinds := map[string]usage{}
	for _, p := range append(leak.Descendants(pid), leak.Process{PID: pid}) {
		rss, pss := rollup(p.PID)
		if rss == 0 {
			continue // ended meanwhile
		}
		kind := kindOf(p.PID)
		u := kinds[kind]
		kinds[kind] = usage{u.count + 1, u.rss + rss, u.pss + pss}
	}
	return kinds
}

func kindOf(pid int) string {
	cmdline, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	args := strings.Split(string(cmdline), "\x00")
	exe, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	name := filepath.Base(strings.TrimSuffix(exe, " (deleted)"))
	switch {
	case name == "busybox" || name == "sh" || name == "sleep":
		return "workload"
	case strings.HasPrefix(name, "subpod") && len(args) > 1:
		return name + " " + args[1]
	}
	return name
}

func rollup(pid int) (rss, pss int) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return 0, 0
	}
	for line := range strings.Lines(string(data)) {
		fmt.Sscanf(line, "Rss: %d kB", &rss)
		fmt.Sscanf(line, "Pss: %d kB", &pss)
	}
	return rss, pss
}

func printMemory(w io.Writer, idle, busy map[string]usage, pods int) {
	fmt.Fprintf(w, "  %-28s %20s   %20s\n", "", "idle", fmt.Sprintf("%d pods", pods))
	fmt.Fprintf(w, "  %-28s %4s %7s %7s   %4s %7s %7s\n", "", "n", "RSS", "PSS", "n", "RSS", "PSS")
	names := maps.Clone(idle)
	maps.Copy(names, busy)
	var before, after usage
	for _, name := range slices.Sorted(maps.Keys(names)) {
		i, b := idle[name], busy[name]
		fmt.Fprintf(w, "  %-28s %4d %7d %7d   %4d %7d %7d\n", name, i.count, i.rss, i.pss, b.count, b.rss, b.pss)
		if name != "workload" {
			before = usage{before.count + i.count, before.rss + i.rss, before.pss + i.pss}
			after = usage{after.count + b.count, after.rss + b.rss, after.pss + b.pss}
		}
	}
	fmt.Fprintf(w, "  %-28s %4d %7d %7d   %4d %7d %7d\n", "all but the workload",
		before.count, before.rss, before.pss, after.count, after.rss, after.pss)
	if pods > 0 {
		fmt.Fprintf(w, "  %-28s %4s %7s %7s   %4s %7d %7d\n", "per pod", "", "", "", "",
			(after.rss-before.rss)/pods, (after.pss-before.pss)/pods)
	}
}
