package doctor

import (
	"context"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/subpod/subpod/rootless"
)

// program is a program that the daemon runs.
type program struct {
	name, path string
	pkg        string // package in Debian; "" for a program of subpod
	level      Level  // if it is missing
	why        string
}

// needed returns the programs that this configuration needs, those of all
// configurations first.
func (h Host) needed() []program {
	c := h.Config
	uplink, _ := h.mapping()
	ifUsed := func(used bool) Level {
		if used {
			return Error
		}
		return Info
	}
	list := []program{
		{"ip", "ip", "iproute2", Error, "creates the network of the node"},
		{"nsenter", "nsenter", "util-linux", Error, "enters the node"},
		{"mount", "mount", "mount", Error, "creates the mounts of the node"},
		{"conmon", c.Runtime.ConmonPath, "conmon", Error, "records the log and the exit code of each container"},
		{"slirp4netns", c.Node.Slirp4netnsPath, "slirp4netns", ifUsed(uplink == rootless.UplinkSlirp), "connects pods to the outside"},
	}
	if uplink == rootless.UplinkPasta {
		list = append(list, program{"pasta", c.Node.PastaPath, "passt", Error, "connects pods to the outside"})
	}
	if uplink == rootless.UplinkGvisor {
		list = append(list, program{rootless.GvisorBinary, filepath.Join(filepath.Dir(h.Executable), rootless.GvisorBinary), "", Error, "connects pods to the outside"})
	}
	list = append(list, program{"fuse-overlayfs", c.Storage.MountProgram, "fuse-overlayfs",
		ifUsed(c.Storage.Driver == "fuse-overlayfs"), "mounts the containers' root file systems"})
	for _, name := range slices.Sorted(maps.Keys(c.Runtime.Handlers)) {
		list = append(list, program{name, c.Runtime.Handlers[name].Path, name,
			ifUsed(name == c.Runtime.DefaultHandler), "runs containers (handler " + name + ")"})
	}
	return list
}

// Programs returns the paths of the programs that the daemon needs, without those that are
// configured by path, and those that are not there.
func (h Host) Programs() []string {
	var paths []string
	names := []string{"newuidmap", "newgidmap"}
	for _, p := range h.needed() {
		names = append(names, p.path)
	}
	for _, name := range names {
		if path, err := h.LookPath(name); err == nil && !strings.Contains(name, "/") {
			paths = append(paths, path)
		}
	}
	return paths
}

func programs(h Host) []Result {
	var results []Result
	for _, p := range h.needed() {
		r := Result{Check: p.name, Level: OK}
		path, err := h.LookPath(p.path)
		if err != nil {
			r.Level = p.level
			r.What = fmt.Sprintf("%s is not installed: it %s", p.path, p.why)
			r.Fix = "sudo apt install " + p.pkg + "    # package name in Debian"
			if p.pkg == "" {
				r.Fix = "install all programs of subpod in the same directory (make build)"
			}
		} else {
			r.What = path
			if v := version(path); v != "" {
				r.What += ", " + v
			}
		}
		results = append(results, r)
		if r.Level == OK {
			results = append(results, h.known(p, path)...)
		}
	}
	return results
}

// version returns the line with its own name that a program prints for --version, or
// for -V, which ip has.
func version(path string) string {
	for _, flag := range []string{"--version", "-V"} {
		for line := range strings.Lines(printed(path, flag)) {
			if line = strings.TrimSpace(line); strings.HasPrefix(line, filepath.Base(path)) {
				return line[:min(len(line), 60)]
			}
		}
	}
	return ""
}

// printed returns what a program prints; "" when it fails. It leaves nothing: crun makes a
// directory in XDG_RUNTIME_DIR, and that as well, whatever it is asked for.
func printed(path, flag string) string {
	ctx, cancel := context.WithTimeout(context.Background(), versionTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, flag)
	cmd.WaitDelay = time.Second
	cmd.Env = append(os.Environ(), "XDG_RUNTIME_DIR="+os.DevNull)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return ""
	}
	return string(out)
}
