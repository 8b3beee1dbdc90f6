package ocispec

import (
	"fmt"
	"strings"

	"github.com/moby/sys/mountinfo"
)

// propagates checks that mounts on the host can reach the container through path:
// its mount must be shared, or at least a slave when they need not come back.
func propagates(path string, shared bool) error {
	infos, err := mountinfo.GetMounts(mountinfo.ParentsFilter(path))
	if err != nil {
		return fmt.Errorf("find the mount of %s: %w", path, err)
	}
	var holder *mountinfo.Info
	for _, i := range infos {
		// Of two mounts on one place the later one is on top.
		if holder == nil || len(i.Mountpoint) >= len(holder.Mountpoint) {
			holder = i
		}
	}
	if holder == nil {
		return fmt.Errorf("find the mount of %s: none", path)
	}
	if strings.Contains(holder.Optional, "shared:") || !shared && strings.Contains(holder.Optional, "master:") {
		return nil
	}
	want := "shared or slave"
	if shared {
		want = "shared"
	}
	return fmt.Errorf("%s is on the mount %s, which is not %s: mounts cannot propagate", path, holder.Mountpoint, want)
}
