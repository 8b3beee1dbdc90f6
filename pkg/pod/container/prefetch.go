package container

import (
	"errors"
	"path"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/subpod/subpod/pkg/openat2"
)

// prefetch looks up a container's program as the OCI runtime will: fuse-overlayfs
// reads a whole directory when it is asked for the first name in it, which it can
// do while the runtime starts. It changes nothing; whatever is wrong, the runtime
// says.
func prefetch(root string, p *specs.Process) {
	if p == nil || len(p.Args) == 0 {
		return
	}
	dir, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	defer unix.Close(dir)
	for _, name := range candidates(p) {
		fd, err := openat2.InRoot(dir, name, unix.O_PATH)
		if err == nil {
			unix.Close(fd)
			return
		}
		if !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENOTDIR) {
			return
		}
	}
}

// candidates are the paths at which a process's program may be, in order.
func candidates(p *specs.Process) []string {
	program := p.Args[0]
	switch {
	case path.IsAbs(program):
		return []string{program}
	case strings.Contains(program, "/"):
		return []string{path.Join(p.Cwd, program)}
	}
	var out []string
	for _, e := range p.Env {
		if list, ok := strings.CutPrefix(e, "PATH="); ok {
			for dir := range strings.SplitSeq(list, ":") {
				out = append(out, path.Join("/", dir, program))
			}
		}
	}
	return out
}
