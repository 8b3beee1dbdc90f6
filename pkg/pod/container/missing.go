package container

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// labelPodUID is on every container that a kubelet creates.
const labelPodUID = "io.kubernetes.pod.uid"

// makeHostPath makes the directory of a mount that failed only because its host path is
// missing, and reports whether it has: a volume hostPath of no type asks for it, and
// manifests of node daemons have such volumes. A kubelet's containers only: other clients
// get the error that the CRI wants (proto: Mount.host_path). What is missing in /dev is a device,
// and what the node does not have itself would not be the host's.
func (b *Builder) makeHostPath(id string, cfg *runtimeapi.ContainerConfig, m *runtimeapi.Mount, err error) (bool, error) {
	path := filepath.Clean(m.HostPath)
	if !errors.Is(err, fs.ErrNotExist) || cfg.GetLabels()[labelPodUID] == "" || !filepath.IsAbs(path) ||
		strings.HasPrefix(path, "/dev/") || b.HostTree != nil && !b.HostTree.HasOwn(path) {
		return false, err
	}
	if made := os.MkdirAll(path, 0o755); made != nil {
		return false, fmt.Errorf("%w, and it cannot be made: %w", err, made)
	}
	b.Log.Info("the missing host path of a mount has been made", "container", id, "path", m.HostPath, "mounted_on", m.ContainerPath)
	return true, nil
}
