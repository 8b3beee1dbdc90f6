package doctor

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/subpod/subpod/configs"
	"github.com/subpod/subpod/pkg/cgroup"
	"github.com/subpod/subpod/pkg/config"
	"github.com/subpod/subpod/rootless"
)

// TestMain: the probes of package rootless execute this binary again.
func TestMain(m *testing.M) {
	rootless.Dispatch()
	os.Exit(m.Run())
}

// fake is a machine in a directory, on which all is well.
type fake struct {
	t *testing.T
	Host
	env     map[string]string
	overlay Overlay
	disks   map[string]Disk // by the directory on the fake machine
}

var allIDs = []rootless.IDMap{{Container: 0, Host: 0, Size: 1<<32 - 1}}

func healthy(t *testing.T) *fake {
	t.Helper()
	cfg, err := config.Load(os.DevNull, nil)
	if err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	f := &fake{t: t, env: map[string]string{"XDG_RUNTIME_DIR": "/run/user/1000", "XDG_DATA_HOME": "/home/ann/.local/share",
		"XDG_CONFIG_HOME": "/home/ann/.config", "HOME": "/home/ann", "PATH": "/usr/bin"}}
	if err := cfg.Resolve(f.getenv); err != nil {
		t.Fatal(err)
	}
	f.disks = map[string]Disk{
		"/home/ann":      {Type: "ext4", Free: 50 * gib, Total: 100 * gib, FreeInodes: 1e6, Inodes: 1e7},
		"/run/user/1000": {Type: "tmpfs", Free: gib, Total: gib},
	}
	f.Host = Host{
		Host: rootless.Host{
			Root: root, Path: filepath.Join(root, "/usr/bin"), UID: os.Getuid(), GID: os.Getgid(), Name: "ann", RootUID: os.Getuid(),
			UIDMap: allIDs, GIDMap: allIDs, Executable: "/opt/subpod/bin/subpod",
			TryUserNS: func() error { return nil }, TryProc: func() error { return nil },
		},
		Config: cfg, Getenv: f.getenv, Release: "6.1.0-13-amd64", Subpod: "/opt/subpod/bin/subpod",
		WayOut: rootless.WayOut{IPv4: true, DNS: "192.0.2.53"},
		Cgroup: cgroup.Delegation{Version: 2, Delegated: true, Driver: cgroup.DriverCgroupfs, Reason: "writable",
			Controllers: []string{"cpuset", "cpu", "io", "memory", "pids"}},
		Overlay: func(dir string) (Overlay, error) { return f.overlay, nil },
		Disk: func(dir string) (Disk, error) {
			name := strings.TrimPrefix(dir, root)
			d, ok := f.disks[name]
			if !ok {
				return d, fmt.Errorf("statfs %q on the fake machine", name)
			}
			if d.Type == "hangs" {
				return d, errHangs
			}
			return d, nil
		},
		Node: func(string) (*rootless.Node, error) { return nil, rootless.ErrNoNode },
	}
	for _, p := range []string{"ip", "nsenter", "mount", "conmon", "slirp4netns", "fuse-overlayfs", "crun", "runc"} {
		f.put("/usr/bin/"+p, "#!/bin/sh\necho noise; echo "+p+" version 1.30\n", 0o755)
	}
	for _, p := range []string{"newuidmap", "newgidmap"} {
		f.put("/usr/bin/"+p, "", 0o755|os.ModeSetuid)
	}
	f.put("/etc/subuid", "bob:100000:65536\nann:165536:65536\n", 0o644)
	f.put("/etc/subgid", "bob:100000:65536\nann:165536:65536\n", 0o644)
	f.put("/dev/fuse", "", 0o666)
	f.put("/dev/net/tun", "", 0o666)
	f.put("/run/systemd/system/x", "", 0o644)
	f.put("/run/user/1000/systemd/private", "", 0o600)
	f.put("/run/user/1000/bus", "", 0o600)
	f.put("/var/lib/systemd/linger/ann", "", 0o644)
	f.put("/home/ann/.profile", "", 0o644)
	for key, value := range map[string]int{"user/max_user_namespaces": 28633, "net/ipv4/ip_unprivileged_port_start": 80,
		"fs/inotify/max_user_instances": 1024, "fs/inotify/max_user_watches": 65536, "kernel/keys/maxkeys": 2000} {
		f.sysctl(key, value)
	}
	if err := os.Chmod(f.File("/run/user/1000"), 0o700); err != nil {
		t.Fatal(err)
	}
	return f
}

func (f *fake) getenv(name string) string { return f.env[name] }

func (f *fake) put(name, content string, mode os.FileMode) {
	f.t.Helper()
	path := f.File(name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		f.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		f.t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fake) remove(names ...string) {
	f.t.Helper()
	for _, name := range names {
		if err := os.RemoveAll(f.File(name)); err != nil {
			f.t.Fatal(err)
		}
	}
}

// TestLeavesNothing: crun makes a directory for its state whatever it is asked for, and above it
// the one that XDG_RUNTIME_DIR wrongly names.
func TestLeavesNothing(t *testing.T) {
	f := healthy(t)
	dir := filepath.Join(t.TempDir(), "nosuch")
	t.Setenv("XDG_RUNTIME_DIR", dir)
	f.put("/usr/bin/crun", "#!/bin/sh\n/bin/mkdir -p \"$XDG_RUNTIME_DIR/crun\" 2>&-; echo crun version 1.30\n", 0o755)
	if results := Run(f.Host); Worst(results) > OK {
		t.Errorf("%+v", results)
	}
	if _, err := os.Lstat(dir); err == nil {
		t.Error("the directory was made")
	}
}

func (f *fake) sysctl(key string, value int) { f.put("/proc/sys/"+key, fmt.Sprintln(value), 0o644) }

func TestHealthy(t *testing.T) {
	f := healthy(t)
	results := Run(f.Host)
	for _, r := range results {
		if r.Level != OK || r.Fix != "" {
			t.Errorf("%s: %s: %s\n%s", r.Check, r.Level, r.What, r.Fix)
		}
		if r.Check == "" || r.What == "" || strings.Contains(r.What, "\n") {
			t.Errorf("not one line: %+v", r)
		}
	}
	if len(results) < len(Checks()) {
		t.Errorf("%d results of %d checks", len(results), len(Checks()))
	}
	for _, r := range results {
		if r.Check == "crun" && r.What != f.File("/usr/bin/crun")+", crun version 1.30" {
			t.Errorf("crun: %s", r.What)
		}
	}
}

// Each case spoils the healthy machine, and names what must be said about it. No
// other check may come out worse than a warning by it.
func TestFakeHosts(t *testing.T) {
	inContainer := func(f *fake) {
		window := []rootless.IDMap{{Container: 0, Host: 100000, Size: 65536}}
		f.UIDMap, f.GIDMap = window, window
		f.remove("/dev/net/tun")
	}
	for _, c := range []struct {
		name  string
		spoil func(f *fake)
		check string
		level Level
		what  string
		fix   string
	}{
		{"ancient kernel", func(f *fake) { f.Release = "4.18.0-553.el8" }, "kernel", Error, "pidfd_open", "5.11"},
		{"old kernel", func(f *fake) { f.Release = "5.4.0-150-generic" }, "kernel", Warning, "only fuse-overlayfs", "5.11"},
		{"odd kernel", func(f *fake) { f.Release = "rolling" }, "kernel", Info, "rolling", ""},
		{"old Landlock", func(f *fake) { f.Unconfined = "the kernel's Landlock cannot rule TCP (Linux 6.7)" }, "landlock", Info, "cannot rule TCP", ""},
		{"no user namespaces", func(f *fake) { f.sysctl("user/max_user_namespaces", 0) },
			"user namespaces", Error, "user.max_user_namespaces is 0", "sudo sysctl --system"},
		{"Debian's switch", func(f *fake) { f.sysctl("kernel/unprivileged_userns_clone", 0) },
			"user namespaces", Error, "kernel.unprivileged_userns_clone is 0", "echo kernel.unprivileged_userns_clone=1 | sudo tee"},
		{"AppArmor", func(f *fake) {
			f.sysctl("kernel/apparmor_restrict_unprivileged_userns", 1)
			f.TryUserNS = func() error { return errors.New("fork/exec: permission denied") }
		}, "user namespaces", Error, "AppArmor restricts them", "profile subpod \"/opt/subpod/bin/subpod{,-node,-node-gvisor,-server}\""},
		{"AppArmor with a profile", func(f *fake) { f.sysctl("kernel/apparmor_restrict_unprivileged_userns", 1) },
			"user namespaces", OK, "allows this program", ""},
		{"seccomp", func(f *fake) { f.TryUserNS = func() error { return errors.New("operation not permitted") } },
			"user namespaces", Error, "operation not permitted", "seccomp: Unconfined"},
		{"masked /proc", func(f *fake) { f.TryProc = func() error { return errors.New("mount a fresh /proc: EPERM") } },
			"/proc", Error, "a fresh /proc", "procMount: Unmasked"},
		{"no subordinate IDs", func(f *fake) { f.remove("/etc/subuid", "/etc/subgid") },
			"subordinate IDs", Warning, "the node will have one ID", "sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 ann"},
		{"no subordinate groups", func(f *fake) { f.put("/etc/subgid", "bob:100000:65536\n", 0o644) },
			"subordinate IDs", Warning, "/etc/subgid", "sudo usermod --add-subgids 231072-296607 ann"},
		{"no subordinate IDs, but asked for", func(f *fake) {
			f.remove("/etc/subuid")
			f.Config.Node.IDMapping = rootless.IDsSubordinate
		}, "subordinate IDs", Error, "has none in /etc/subuid", "sudo usermod --add-subuids"},
		{"few subordinate IDs", func(f *fake) { f.put("/etc/subuid", "ann:100000:1000\n", 0o644) },
			"subordinate IDs", Warning, "only 1000 user", "--add-subuids 231072-296607"},
		{"IDs by number", func(f *fake) { f.put("/etc/subuid", fmt.Sprintf("%d:300000:65536\n", os.Getuid()), 0o644) },
			"subordinate IDs", OK, "starting at 300000", ""},
		{"IDs from LDAP", func(f *fake) {
			f.remove("/etc/subuid", "/etc/subgid")
			f.put("/usr/bin/getsubids", "#!/bin/sh\nfor a; do :; done\n[ $a = ann ] && echo \"0: ann 700000 65536\"\n", 0o755)
		}, "subordinate IDs", OK, "starting at 700000", ""},
		{"one ID asked for", func(f *fake) { f.Config.Node.IDMapping = rootless.IDsSingle },
			"subordinate IDs", Info, "as configured", ""},
		{"no program of an uplink", func(f *fake) { f.Config.Node.Uplink = rootless.UplinkGvisor },
			rootless.GvisorBinary, Error, "/opt/subpod/bin/subpod-node-gvisor is not installed", "in the same directory"},
		{"IPv6 alone", func(f *fake) { f.WayOut = rootless.WayOut{IPv6: true, DNS: "192.0.2.53"} }, "network", Info, "by IPv6 alone", ""},
		{"IPv6 alone, and pods have none", func(f *fake) {
			f.put("/proc/net/if_inet6", "", 0o444)
			f.Config.Network.Subnets = f.Config.Network.Subnets[:1]
			f.WayOut = rootless.WayOut{IPv6: true, DNS: "2001:db8::53"}
		}, "network", Info, "by IPv6 alone", ""},
		{"no newuidmap", func(f *fake) { f.remove("/usr/bin/newuidmap") }, "newuidmap", Error, "not installed", "sudo apt install uidmap"},
		{"newgidmap without setuid", func(f *fake) { f.put("/usr/bin/newgidmap", "", 0o755) },
			"newuidmap", Error, "neither setuid root", "sudo chmod u+s "},
		{"no newuidmap, nor IDs", func(f *fake) { f.remove("/usr/bin/newuidmap", "/etc/subuid") }, "newuidmap", Info, "not needed", ""},
		{"no tun", func(f *fake) { f.remove("/dev/net/tun") }, "/dev/net/tun", Error, "cannot be used", "sudo modprobe tun"},
		{"no tun in a container", inContainer, "/dev/net/tun", Warning, "share the network", "--device /dev/net/tun"},
		{"no fuse", func(f *fake) { f.remove("/dev/fuse") }, "/dev/fuse", Error, "cannot be used", "storage.driver = \"auto\""},
		{"no fuse, but auto", func(f *fake) {
			f.remove("/dev/fuse")
			f.Config.Storage.Driver = "auto"
		}, "/dev/fuse", Info, "cannot be used", "sudo modprobe fuse"},
		{"no overlay at all", func(f *fake) { f.overlay = Overlay{Native: "on overlay", Fuse: "no /dev/fuse"} },
			"overlay", Error, "native: on overlay", ""},
		{"vfs allowed", func(f *fake) {
			f.overlay = Overlay{Native: "on overlay", Fuse: "no /dev/fuse"}
			f.Config.Storage.Driver, f.Config.Storage.AllowVFS = "auto", true
		}, "overlay", Warning, "vfs is allowed", "in a container: a volume"},
		{"fuse-overlayfs fails", func(f *fake) { f.overlay = Overlay{Fuse: "broken"} },
			"overlay", Error, "fuse-overlayfs: broken", "storage.driver = \"auto\""},
		{"native asked for, and fails", func(f *fake) {
			f.overlay, f.Config.Storage.Driver = Overlay{Native: "EINVAL"}, "native"
		}, "overlay", Error, "native: EINVAL", "storage.driver = \"auto\""},
		{"no crun", func(f *fake) { f.remove("/usr/bin/crun") }, "crun", Error, "not installed", "sudo apt install crun"},
		{"no runc", func(f *fake) { f.remove("/usr/bin/runc") }, "runc", Info, "not installed", "sudo apt install runc"},
		{"no conmon", func(f *fake) { f.remove("/usr/bin/conmon") }, "conmon", Error, "not installed", "sudo apt install conmon"},
		{"no slirp4netns", func(f *fake) { f.remove("/usr/bin/slirp4netns") }, "slirp4netns", Error, "connects pods", "sudo apt install slirp4netns"},
		{"pasta in its place", func(f *fake) {
			f.remove("/usr/bin/slirp4netns")
			f.put("/usr/bin/pasta", "#!/bin/sh\necho pasta 1\n", 0o755)
		}, "slirp4netns", Info, "not installed", ""},
		{"slirp4netns not needed", func(f *fake) {
			f.remove("/usr/bin/slirp4netns")
			f.Config.Node.Uplink = rootless.UplinkNone
		}, "slirp4netns", Info, "not installed", ""},
		{"pasta", func(f *fake) { f.Config.Node.Uplink = rootless.UplinkPasta }, "pasta", Error, "not installed", "sudo apt install passt"},
		{"a program that says nothing", func(f *fake) { f.put("/usr/bin/runc", "#!/bin/sh\nexit 1\n", 0o755) }, "runc", OK, "/usr/bin/runc", ""},
		{"cgroup v1", func(f *fake) {
			f.Cgroup = cgroup.Delegation{Version: 1, Driver: cgroup.DriverDisabled, Reason: "v1"}
		}, "cgroups", Warning, "no resource limits for pods: v1", "systemd.unified_cgroup_hierarchy=1"},
		{"not delegated", func(f *fake) {
			f.Cgroup = cgroup.Delegation{Version: 2, Driver: cgroup.DriverDisabled, Reason: "not delegated"}
		}, "cgroups", Warning, "no resource limits for pods", "systemctl --user enable --now subpod"},
		{"cpu not delegated", func(f *fake) { f.Cgroup.Controllers = []string{"memory", "pids"} },
			"cgroups", Warning, "not delegated: cpu, io, cpuset; limits on CPU", "Delegate=cpu cpuset io memory pids"},
		{"su", func(f *fake) { f.env["XDG_RUNTIME_DIR"] = "" }, "XDG_RUNTIME_DIR", Warning, "is not set", "export XDG_RUNTIME_DIR=/run/user/"},
		{"no session", func(f *fake) { f.remove("/run/user/1000/bus") }, "session", Warning, "no systemd user session", "sudo machinectl shell ann@"},
		{"no systemd", func(f *fake) { f.remove("/run/systemd") }, "session", Info, "systemd does not run", ""},
		{"no linger", func(f *fake) { f.remove("/var/lib/systemd/linger") }, "linger", Warning, "at logout", "sudo loginctl enable-linger ann"},
		{"open run dir", func(f *fake) { os.Chmod(f.File("/run/user/1000"), 0o755) }, "XDG_RUNTIME_DIR", Warning, "accessible to other users", "chmod 0700"},
		{"missing run dir", func(f *fake) { f.remove("/run/user/1000") }, "XDG_RUNTIME_DIR", Error, "no such file", "sudo install -d -m 0700"},
		{"someone else's run dir", func(f *fake) { f.UID++ }, "XDG_RUNTIME_DIR", Error, "belongs to uid", "not by su"},
		{"run dir on a disk", func(f *fake) { f.disks["/run/user/1000"] = Disk{Type: "ext4"} },
			"XDG_RUNTIME_DIR", Warning, "not on a tmpfs", "export XDG_RUNTIME_DIR=/dev/shm/ann"},
		{"long run directory", func(f *fake) { f.Config.Daemon.RunDir = "/run/user/1000/" + strings.Repeat("x", 90) },
			"run directory", Error, "too long for sockets", "XDG_RUNTIME_DIR"},
		{"long socket", func(f *fake) { f.Config.Daemon.Socket = "/tmp/" + strings.Repeat("x", 103) },
			"run directory", Error, "(1 bytes over)", "daemon.run_dir"},
		{"full run directory", func(f *fake) { f.disks["/run/user/1000"] = Disk{Type: "tmpfs", Free: 4096, Total: gib} },
			"run directory", Error, "is full", "du -sh"},
		{"home on NFS", func(f *fake) { f.disks["/home/ann"] = Disk{Type: "nfs", Free: 50 * gib} },
			"data directory", Error, "is on nfs", "data_dir = \"/var/tmp/ann/subpod\""},
		{"home on a dead NFS", func(f *fake) { f.disks["/home/ann"] = Disk{Type: "hangs"} },
			"data directory", Error, "no response within 5s", "data_dir"},
		{"a file in the data directory's place", func(f *fake) {
			f.put("/home/ann/.local/share/subpod", "", 0o644)
			f.disks["/home/ann/.local/share"] = f.disks["/home/ann"]
		},
			"data directory", Error, "/home/ann/.local/share/subpod is there, and is not a directory", "data_dir"},
		{"a link to nowhere above the data directory", func(f *fake) {
			if err := os.Symlink("nowhere", f.File("/home/ann/data")); err != nil {
				f.t.Fatal(err)
			}
			f.Config.Daemon.DataDir = "/home/ann/data/subpod"
		}, "data directory", Error, "/home/ann/data is there, and is not a directory", "data_dir"},
		{"home with a colon", func(f *fake) { f.Config.Daemon.DataDir = "/home/ann/a:b/subpod" },
			"data directory", Error, "can't carry ':' in a path", "data_dir = \"/var/tmp/ann/subpod\""},
		{"home on a tmpfs", func(f *fake) { f.disks["/home/ann"] = Disk{Type: "tmpfs", Free: 50 * gib} },
			"data directory", Warning, "lost on reboot", "data_dir"},
		{"full disk", func(f *fake) { f.disks["/home/ann"] = Disk{Type: "ext4", Free: 100 << 20, Total: gib} },
			"disk space", Error, "0.1 GiB of 1.0 free", ""},
		{"filling disk", func(f *fake) { f.disks["/home/ann"] = Disk{Type: "ext4", Free: 2 * gib, Total: 9 * gib} },
			"disk space", Warning, "2.0 GiB of 9.0", ""},
		{"no inodes", func(f *fake) { f.disks["/home/ann"] = Disk{Type: "ext4", Free: 9 * gib, Inodes: 1e6, FreeInodes: 10} },
			"disk space", Error, "only 10 inodes", ""},
		{"low ports", func(f *fake) { f.sysctl("net/ipv4/ip_unprivileged_port_start", 1024) },
			"ports", Info, "below 1024", "net.ipv4.ip_unprivileged_port_start=80"},
		{"few inotify instances", func(f *fake) { f.sysctl("fs/inotify/max_user_instances", 64) },
			"inotify", Warning, "max_user_instances is 64", "fs.inotify.max_user_instances=128"},
		{"few keys", func(f *fake) { f.sysctl("kernel/keys/maxkeys", 100) }, "keyring", Warning, "maxkeys is 100", "kernel.keys.maxkeys=200"},
		{"an earlier daemon", func(f *fake) {
			f.put("/run/user/1000/subpod/pods/0123/hosts", "", 0o600)
			os.Chmod(f.File("/run/user/1000"), 0o700)
		}, "earlier run", Info, "1 in pods", ""},
		{"a running daemon", func(f *fake) {
			f.Node = func(string) (*rootless.Node, error) { return &rootless.Node{ChildPID: 4711}, nil }
		}, "earlier run", OK, "4711", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := healthy(t)
			c.spoil(f)
			found := false
			for _, r := range Run(f.Host) {
				if r.Check == c.check && r.Level == c.level && strings.Contains(r.What, c.what) && strings.Contains(r.Fix, c.fix) {
					found = true
				} else if r.Level == Error && r.Check != c.check {
					t.Errorf("also %s: %s: %s", r.Check, r.Level, r.What)
				}
			}
			if !found {
				t.Errorf("no %s of %q with %q and %q in", c.level, c.check, c.what, c.fix)
				for _, r := range Run(f.Host) {
					t.Logf("%s %s: %s [%s]", r.Level, r.Check, r.What, r.Fix)
				}
			}
		})
	}
}

// The profile in the fix is the one that is shipped.
func TestAppArmorText(t *testing.T) {
	f := healthy(t)
	f.sysctl("kernel/apparmor_restrict_unprivileged_userns", 1)
	f.TryUserNS = func() error { return errors.New("no") }
	want, err := configs.AppArmorProfile(f.Subpod)
	if err != nil {
		t.Fatal(err)
	}
	if fix := userNamespaces(f.Host)[0].Fix; !strings.Contains(fix, strings.TrimSpace(want)) {
		t.Errorf("the fix\n%s\ndoes not hold the profile\n%s", fix, want)
	}
}

// This machine: every check comes to an end, and says something that JSON can
// carry both ways.
func TestThisHost(t *testing.T) {
	cfg, err := config.Load(os.DevNull, nil)
	if err != nil {
		t.Fatal(err)
	}
	env := func(name string) string {
		if v := os.Getenv(name); v != "" {
			return v
		}
		return map[string]string{"XDG_RUNTIME_DIR": t.TempDir(), "HOME": t.TempDir()}[name]
	}
	if err := cfg.Resolve(env); err != nil {
		t.Fatal(err)
	}
	h := ThisHost(cfg, env, "/nonexistent/subpod-server")
	results := Run(h)
	seen := map[string]bool{}
	for _, r := range results {
		seen[r.Check] = true
		t.Logf("%s %s: %s", r.Level, r.Check, r.What)
	}
	for _, name := range []string{"kernel", "user namespaces", "subordinate IDs", "crun", "cgroups", "disk space"} {
		if !seen[name] {
			t.Errorf("nothing about %s", name)
		}
	}
	text, err := json.Marshal(results)
	if err != nil {
		t.Fatal(err)
	}
	var back []Result
	if err := json.Unmarshal(text, &back); err != nil || fmt.Sprint(back) != fmt.Sprint(results) {
		t.Errorf("JSON: %v, %s", err, text)
	}
}
