package netns

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/subpod/subpod/pkg/errclass"
)

// ErrSysctl is the sentinel for a sysctl that cannot be set for a pod. The error
// that wraps it names the key and says why.
var ErrSysctl = errclass.New(errdefs.ErrInvalidArgument, "sysctl cannot be set")

// ipcSysctls are the keys outside kernel.shm* and fs.mqueue.* that belong to the
// IPC namespace (ipc_namespaces(7)).
var ipcSysctls = map[string]bool{
	"kernel/msgmax": true, "kernel/msgmnb": true, "kernel/msgmni": true, "kernel/sem": true,
	"kernel/shmall": true, "kernel/shmmax": true, "kernel/shmmni": true, "kernel/shm_rmid_forced": true,
}

// sysctlPath turns a key in either notation ("net.ipv4.ip_forward", or
// "net/ipv4/conf/eth0.1/forwarding" for names that hold dots) into a path below
// /proc/sys, as sysctl.d(5) does: the first separator decides.
func sysctlPath(key string) (string, error) {
	p := key
	if i := strings.IndexAny(key, "./"); i >= 0 && key[i] == '.' {
		p = strings.NewReplacer(".", "/", "/", ".").Replace(key)
	}
	for _, part := range strings.Split(p, "/") {
		if part == "" || part == "." || part == ".." || strings.ContainsRune(part, 0) {
			return "", fmt.Errorf("%w: %q is not a sysctl name", ErrSysctl, key)
		}
	}
	return p, nil
}

// checkSysctl says whether the key belongs to one of the namespaces that the
// pod has for itself. Anything else would change the node.
func checkSysctl(key string, net, ipc bool) (string, error) {
	p, err := sysctlPath(key)
	switch {
	case err != nil:
		return "", err
	case strings.HasPrefix(p, "net/"):
		if !net {
			return "", fmt.Errorf("%w: %s needs a network namespace of the pod's own", ErrSysctl, key)
		}
	case ipcSysctls[p] || strings.HasPrefix(p, "fs/mqueue/"):
		if !ipc {
			return "", fmt.Errorf("%w: %s needs an IPC namespace of the pod's own", ErrSysctl, key)
		}
	default:
		return "", fmt.Errorf("%w: %s is not namespaced", ErrSysctl, key)
	}
	return p, nil
}

// namesInterface reports whether the sysctl is about a single network interface
// that a new namespace does not have yet.
func namesInterface(p string) bool {
	parts := strings.Split(p, "/")
	if len(parts) < 5 || parts[0] != "net" || (parts[2] != "conf" && parts[2] != "neigh") {
		return false
	}
	return parts[3] != "all" && parts[3] != "default" && parts[3] != "lo"
}

// SplitSysctls parts the sysctls that Pin can set from those that name a network
// interface of the pod (net.ipv4.conf.eth0.…), which exists only after the
// network's Setup: those are for ApplySysctls.
func SplitSysctls(all map[string]string) (pin, afterSetup map[string]string) {
	pin, afterSetup = map[string]string{}, map[string]string{}
	for k, v := range all {
		if p, err := sysctlPath(k); err == nil && namesInterface(p) {
			afterSetup[k] = v
			continue
		}
		pin[k] = v
	}
	return pin, afterSetup
}

// ApplySysctls sets net.* sysctls inside the network namespace at nsPath.
// Idempotent. ErrSysctl for a key that is unknown, refused, or not net.*.
func ApplySysctls(nsPath string, sysctls map[string]string) error {
	if len(sysctls) == 0 {
		return nil
	}
	return In(nsPath, func() error { return writeSysctls(sysctls, true, false) })
}

// writeSysctls sets sysctls in the namespaces of the calling thread: /proc/sys
// shows those of whoever opens the file.
func writeSysctls(asked map[string]string, net, ipc bool) error {
	for _, key := range slices.Sorted(maps.Keys(asked)) {
		p, err := checkSysctl(key, net, ipc)
		if err != nil {
			return err
		}
		value := asked[key]
		if p == pingGroupRange {
			if maps, err := ownGroups.read(); err == nil {
				value = mappedGroups(value, maps)
			}
		}
		if err := writeSysctl(p, value); err != nil {
			return fmt.Errorf("%w: %s=%q: %w", ErrSysctl, key, asked[key], err)
		}
	}
	return nil
}

func writeSysctl(path, value string) error {
	f, err := sysctls.open(path)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}

// writeDefaults sets net.* sysctls that s.Sysctls does not have. A kernel that lacks one,
// or refuses it, is left as it is.
func (s PinSpec) writeDefaults() {
	asked := map[string]bool{}
	for key := range s.Sysctls {
		if p, err := sysctlPath(key); err == nil {
			asked[p] = true
		}
	}
	for key, value := range s.DefaultSysctls {
		if p, err := sysctlPath(key); err == nil && !asked[p] {
			_ = writeSysctls(map[string]string{key: value}, true, false)
		}
	}
}
