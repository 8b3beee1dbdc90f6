package storage

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/subpod/subpod/pkg/tree"
)

// Finding is what can be mounted below a directory. Errors are text, because a
// Finding is made in a user namespace and read outside of it.
type Finding struct {
	BackingFS string
	// Native and Fuse are why that overlay does not work; "" when it does.
	Native, Fuse string
}

// probePrefix begins the names of the directories in which Probe mounts.
const probePrefix = ".doctor"

// probeAge is the age from which a directory of Probe's is one that a killed one has left.
const probeAge = 10 * time.Minute

// removeOldProbes removes what probes that were killed have left: their mounts went with
// their namespaces.
func removeOldProbes(dir string) {
	old, _ := filepath.Glob(filepath.Join(dir, probePrefix+"[0-9]*"))
	for _, p := range old {
		if info, err := os.Lstat(p); err == nil && time.Since(info.ModTime()) > probeAge {
			_ = tree.RemoveAll(p) // the next one tries again
		}
	}
}

// Probe tries both overlays by real mounts below dir, which must exist, and unmounts
// them again. It needs to be uid 0 of a user namespace with a mount namespace
// of its own. mountProgram is fuse-overlayfs; "" looks in PATH.
func Probe(ctx context.Context, dir, mountProgram string) (Finding, error) {
	var f Finding
	backing, err := backingFS(ctx, dir)
	if err != nil {
		return f, err
	}
	removeOldProbes(dir)
	tmp, err := os.MkdirTemp(dir, probePrefix)
	if err != nil {
		return f, err
	}
	defer os.RemoveAll(tmp)
	f.BackingFS = backing
	if err := probeNative(tmp); err != nil {
		f.Native = err.Error()
	}
	if mountProgram == "" {
		mountProgram = "fuse-overlayfs"
	}
	path, err := exec.LookPath(mountProgram)
	if err == nil {
		_, err = probeFuse(ctx, tmp, path)
	} else {
		err = fmt.Errorf("fuse-overlayfs: %w", err)
	}
	if err != nil {
		f.Fuse = err.Error()
	}
	return f, nil
}
