package doctor

import (
	"fmt"
	"os"
	"strings"
	"syscall"
)

// controllers lists the cgroup controllers that limit pods.
var controllers = []struct{ name, limits string }{
	{"cpu", "CPU"}, {"memory", "memory"}, {"pids", "the number of processes"}, {"io", "disk bandwidth"}, {"cpuset", "which CPUs and memory nodes"},
}

// delegateFix installs a drop-in of systemd that delegates all controllers to users
// (systemd.resource-control(5), Delegate=).
const delegateFix = `sudo mkdir -p /etc/systemd/system/user@.service.d
printf '[Service]\nDelegate=cpu cpuset io memory pids\n' | sudo tee /etc/systemd/system/user@.service.d/delegate.conf
sudo systemctl daemon-reload
# then log out and in again`

func cgroups(h Host) []Result {
	f := h.Cgroup
	if !f.Enabled() {
		fix := ""
		switch {
		case f.Version == 1 || f.Hybrid:
			fix = "add systemd.unified_cgroup_hierarchy=1 to the kernel command line and reboot"
		case h.hasSystemd():
			fix = "run the daemon as a systemd user service with Delegate=yes: systemctl --user enable --now subpod"
		}
		return one(Warning, fix, "no resource limits for pods: %s", f.Reason)
	}
	results := one(OK, "", "v%d, driver %s: %s", f.Version, f.Driver, f.Reason)
	var missing, limits []string
	for _, c := range controllers {
		if !f.Has(c.name) {
			missing, limits = append(missing, c.name), append(limits, c.limits)
		}
	}
	if missing != nil {
		fix := ""
		if h.hasSystemd() {
			fix = delegateFix
		}
		results = append(results, one(Warning, fix, "controllers not delegated: %s; limits on %s are not applied",
			strings.Join(missing, ", "), strings.Join(limits, ", "))...)
	} else {
		results = append(results, one(OK, "", "controllers: %s", strings.Join(f.Controllers, ", "))...)
	}
	return results
}

func (h Host) exists(name string) bool {
	_, err := os.Stat(h.File(name))
	return err == nil
}

// hasSystemd reports whether systemd runs the host (sd_booted(3)).
func (h Host) hasSystemd() bool { return h.exists("/run/systemd/system") }

func session(h Host) []Result {
	if !h.hasSystemd() {
		return one(Info, "", "systemd does not run this host: nothing starts the daemon at login or delegates cgroups")
	}
	dir := h.Getenv("XDG_RUNTIME_DIR")
	if dir == "" || !h.exists(dir+"/systemd") || !h.exists(dir+"/bus") {
		return one(Warning, fmt.Sprintf("sudo machinectl shell %s@    # or log in by ssh; su and sudo start no session", h.Name),
			"no systemd user session ($XDG_RUNTIME_DIR/systemd and $XDG_RUNTIME_DIR/bus): it cannot delegate cgroups")
	}
	return one(OK, "", "the user manager of systemd is available in %s", dir)
}

func linger(h Host) []Result {
	switch {
	case !h.hasSystemd():
		return nil
	case h.exists("/var/lib/systemd/linger/" + h.Name):
		return one(OK, "", "enabled: user services keep running after logout")
	}
	return one(Warning, "sudo loginctl enable-linger "+h.Name, "disabled: systemd stops the daemon and all pods at logout")
}

func runtimeDir(h Host) []Result {
	dir := h.Getenv("XDG_RUNTIME_DIR")
	if dir == "" {
		return one(Warning, fmt.Sprintf("export XDG_RUNTIME_DIR=/run/user/%d    # created by a login session", h.UID),
			"is not set (as after su or sudo and in containers): %s is used", h.Config.Daemon.RunDir)
	}
	st, err := os.Stat(h.File(dir))
	if err != nil {
		return one(Error, fmt.Sprintf("sudo install -d -m 0700 -o %d -g %d %s", h.UID, h.GID, dir), "%v", err)
	}
	if !st.IsDir() {
		return one(Error, fmt.Sprintf("export XDG_RUNTIME_DIR=/run/user/%d", h.UID), "%s is not a directory", dir)
	}
	if sys, ok := st.Sys().(*syscall.Stat_t); ok && int(sys.Uid) != h.UID {
		return one(Error, fmt.Sprintf("export XDG_RUNTIME_DIR=/run/user/%d    # or log in as the user, not by su or sudo", h.UID),
			"%s belongs to uid %d, not to uid %d", dir, sys.Uid, h.UID)
	}
	if st.Mode().Perm()&0o077 != 0 {
		return one(Warning, "chmod 0700 "+dir, "%s is accessible to other users (mode %#o)", dir, st.Mode().Perm())
	}
	disk, err := h.Disk(h.File(dir))
	if err != nil {
		return one(Error, "", "%s: %v", dir, err)
	}
	if disk.Type != "tmpfs" && disk.Type != "ramfs" {
		return one(Warning, fmt.Sprintf("mkdir -m 0700 /dev/shm/%[1]s && export XDG_RUNTIME_DIR=/dev/shm/%[1]s", h.Name),
			"%s is on %s, not on a tmpfs: files that should end with the session are kept", dir, disk.Type)
	}
	return one(OK, "", "%s", dir)
}
