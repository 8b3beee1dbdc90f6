package container

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// modulesDir is where a kernel's modules are. One without modules has often no such
// directory, and kube-proxy and CNI daemons mount it to read nevertheless. Where root runs
// a node, somebody makes it then; no ordinary user can.
const modulesDir = "/lib/modules"

// withoutModules reports whether a mount failed only because the host's kernel has no
// modules: an empty directory is what it would show.
func withoutModules(m *runtimeapi.Mount, err error) bool {
	return errors.Is(err, fs.ErrNotExist) && m.Readonly && filepath.Clean(m.HostPath) == modulesDir
}

// noModules returns an empty directory of the container's. Idempotent.
func (b *Builder) noModules(id string) (string, error) {
	dir := filepath.Join(b.bundle(id), "no-modules")
	if err := os.Mkdir(dir, 0o555); err != nil && !errors.Is(err, fs.ErrExist) {
		return "", err
	}
	return dir, nil
}
