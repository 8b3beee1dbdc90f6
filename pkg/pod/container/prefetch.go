package container

import (
	"errors"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/subpod/subpod/pkg/oci"
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
	list := ""
	for _, v := range p.Env {
		if value, ok := strings.CutPrefix(v, "PATH="); ok {
			list = value
		}
	}
	for _, name := range oci.ProgramPaths(p.Args[0], p.Cwd, list) {
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
