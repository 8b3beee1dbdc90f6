package doctor

import (
	"fmt"
	"os"
	"strings"
	"syscall"
)

// controllers that limits of pods are set with.
var controllers = []struct{ name, limits string }{
	{"cpu", "CPU"}, {"memory", "memory"}, {"pids", "the number of processes"}, {"io", "disk bandwidth"}, {"cpuset", "which CPUs and memory nodes"},
}

// delegateFix is systemd's drop-in that gives users all controllers
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
			fix = "add systemd.unified_cgroup_hierarchy=1 to the kernel's command line, and boot"
		case h.hasSystemd():
			fix = "run the daemon as a systemd user service with Delegate=yes: systemctl --user enable --now subpod"
		}
		return one(Warning, fix, "no limits for pods: %s", f.Reason)
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
		results = append(results, one(Warning, fix, "controllers that are not delegated: %s; limits on %s are left out",
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

// hasSystemd: sd_booted(3).
func (h Host) hasSystemd() bool { return h.exists("/run/systemd/system") }

func session(h Host) []Result {
	if !h.hasSystemd() {
		return one(Info, "", "this machine is not run by systemd: nothing starts the daemon at login, and nothing delegates cgroups")
	}
	dir := h.Getenv("XDG_RUNTIME_DIR")
	if dir == "" || !h.exists(dir+"/systemd") || !h.exists(dir+"/bus") {
		return one(Warning, fmt.Sprintf("sudo machinectl shell %s@    # or log in by ssh; su and sudo make no session", h.Name),
			"no systemd user session ($XDG_RUNTIME_DIR/systemd and $XDG_RUNTIME_DIR/bus): cgroups cannot be had from it")
	}
	return one(OK, "", "systemd's user manager answers below %s", dir)
}

func linger(h Host) []Result {
	switch {
	case !h.hasSystemd():
		return nil
	case h.exists("/var/lib/systemd/linger/" + h.Name):
		return one(OK, "", "on: a user service outlives the login")
	}
	return one(Warning, "sudo loginctl enable-linger "+h.Name, "off: systemd ends the daemon and all pods at logout")
}

func runtimeDir(h Host) []Result {
	dir := h.Getenv("XDG_RUNTIME_DIR")
	if dir == "" {
		return one(Warning, fmt.Sprintf("export XDG_RUNTIME_DIR=/run/user/%d    # a login session makes it", h.UID),
			"is not set (su, sudo and containers lose it): %s is used", h.Config.Daemon.RunDir)
	}
	st, err := os.Stat(h.File(dir))
	if err != nil {
		return one(Error, fmt.Sprintf("sudo install -d -m 0700 -o %d -g %d %s", h.UID, h.GID, dir), "%v", err)
	}
	if sys, ok := st.Sys().(*syscall.Stat_t); ok && int(sys.Uid) != h.UID {
		return one(Error, fmt.Sprintf("export XDG_RUNTIME_DIR=/run/user/%d    # or log in as the user, not by su or sudo", h.UID),
			"%s belongs to uid %d, this is uid %d", dir, sys.Uid, h.UID)
	}
	if st.Mode().Perm()&0o077 != 0 {
		return one(Warning, "chmod 0700 "+dir, "%s is open to others (mode %#o)", dir, st.Mode().Perm())
	}
	disk, err := h.Disk(h.File(dir))
	if err != nil {
		return one(Error, "", "%s: %v", dir, err)
	}
	if disk.Type != "tmpfs" && disk.Type != "ramfs" {
		return one(Warning, fmt.Sprintf("mkdir -m 0700 /dev/shm/%[1]s && export XDG_RUNTIME_DIR=/dev/shm/%[1]s", h.Name),
			"%s is on %s, not on a tmpfs: what ends with the machine stays there", dir, disk.Type)
	}
	return one(OK, "", "%s", dir)
}
