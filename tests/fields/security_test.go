package fields

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestUsersAndGroups(t *testing.T) {
	start(t, []string{grouped, byName}, func(e env) {
		p := e.pod("users", nil)
		for i, c := range []struct {
			name             string
			image            string
			set              func(*security)
			uid, gid, groups string
		}{
			{"image's default", busybox, func(s *security) {}, "0", "0", "0"},
			{"image's USER name:group", byName, func(s *security) {}, "33", "1004", "1004"},
			{"run_as_user", busybox, func(s *security) { s.RunAsUser = value(1234) }, "1234", "0", "0"},
			{"run_as_user that passwd knows", busybox, func(s *security) { s.RunAsUser = value(33) }, "33", "33", "33"},
			{"run_as_user over the image's group", byName, func(s *security) { s.RunAsUser = value(8) }, "8", "8", "8"},
			{"run_as_username", busybox, func(s *security) { s.RunAsUsername = "www-data" }, "33", "33", "33"},
			{"run_as_group", busybox, func(s *security) { s.RunAsUser, s.RunAsGroup = value(1234), value(77) }, "1234", "77", "77"},
			{"merged groups", grouped, func(s *security) {
				s.RunAsUser, s.SupplementalGroups = value(1000), []int64{1234}
			}, "1000", "1000", "1000 1234 50000"},
			{"merged groups of the image's user", grouped, func(s *security) {}, "1000", "1000", "1000 50000"},
			{"strict groups", grouped, func(s *security) {
				s.RunAsUser, s.SupplementalGroups = value(1000), []int64{1234}
				s.SupplementalGroupsPolicy = runtimeapi.SupplementalGroupsPolicy_Strict
			}, "1000", "1000", "1000 1234"},
		} {
			e.run(c.name, func(e env) {
				c1 := p.in(e).start(fmt.Sprintf("user-%d", i), idle(), image(c.image), secure(c.set))
				four := func(id string) string { return strings.TrimSpace(strings.Repeat(id+" ", 4)) }
				e.equal("Uid of the first process", c1.proc("Uid"), four(c.uid))
				e.equal("Gid of the first process", c1.proc("Gid"), four(c.gid))
				e.equal("Groups of the first process", sorted(c1.proc("Groups")), c.groups)
				exec := c1.exec("cat", "/proc/self/status")
				e.equal("Uid of an exec", statusField(exec, "Uid"), four(c.uid))
				e.equal("Groups of an exec", sorted(statusField(exec, "Groups")), c.groups)
				u := c1.status().GetUser().GetLinux()
				e.equal("user in the status", fmt.Sprint(u.GetUid(), " ", u.GetGid(), " ", sorted(strings.Trim(fmt.Sprint(u.GetSupplementalGroups()), "[]"))),
					fmt.Sprint(c.uid, " ", c.gid, " ", c.groups))
			})
		}
		for name, set := range map[string]func(*security){
			"user and username":  func(s *security) { s.RunAsUser, s.RunAsUsername = value(1), "bin" },
			"group without user": func(s *security) { s.RunAsGroup = value(1) },
			"unknown name":       func(s *security) { s.RunAsUsername = "nobody-knows" },
			"negative":           func(s *security) { s.RunAsUser = value(-1) },
			"outside the range":  func(s *security) { s.RunAsUser = value(4000000) },
			"group outside":      func(s *security) { s.SupplementalGroups = []int64{4000000} },
		} {
			_, err := p.tryCreate("refused", idle(), secure(set))
			e.refused(name, err, codes.InvalidArgument)
		}
	})
}

func sorted(numbers string) string {
	f := strings.Fields(numbers)
	slices.SortFunc(f, func(a, b string) int {
		x, _ := strconv.Atoi(a)
		y, _ := strconv.Atoi(b)
		return x - y
	})
	return strings.Join(f, " ")
}

// The capabilities of a container that asks for nothing, by number
// (linux/capability.h): CHOWN DAC_OVERRIDE FOWNER FSETID KILL SETGID SETUID SETPCAP
// NET_BIND_SERVICE NET_RAW SYS_CHROOT MKNOD AUDIT_WRITE SETFCAP.
const defaultCaps = 1<<0 | 1<<1 | 1<<3 | 1<<4 | 1<<5 | 1<<6 | 1<<7 | 1<<8 | 1<<10 | 1<<13 | 1<<18 | 1<<27 | 1<<29 | 1<<31

const (
	netAdmin = 1 << 12
	netRaw   = 1 << 13
	sysTime  = 1 << 25
)

// bounding returns the bounding set of the node: what ALL can be.
func (e env) bounding() uint64 {
	e.Helper()
	set, err := strconv.ParseUint(statusField(e.n.Enter("cat", "/proc/self/status"), "CapBnd"), 16, 64)
	e.must(err)
	return set
}

func TestCapabilities(t *testing.T) {
	start(t, nil, func(e env) {
		p := e.pod("caps", nil)
		all := e.bounding()
		for i, c := range []struct {
			name               string
			caps               *runtimeapi.Capability
			user               int64
			effective, ambient uint64
			bounding           uint64
		}{
			{"default", nil, 0, defaultCaps, 0, defaultCaps},
			{"add, any spelling", &runtimeapi.Capability{AddCapabilities: []string{"net_admin", "CAP_SYS_TIME"}}, 0, defaultCaps | netAdmin | sysTime, 0, defaultCaps | netAdmin | sysTime},
			{"drop", &runtimeapi.Capability{DropCapabilities: []string{"NET_RAW"}}, 0, defaultCaps &^ netRaw, 0, defaultCaps &^ netRaw},
			{"add ALL", &runtimeapi.Capability{AddCapabilities: []string{"ALL"}}, 0, all, 0, all},
			{"add ALL, drop one", &runtimeapi.Capability{AddCapabilities: []string{"ALL"}, DropCapabilities: []string{"NET_RAW"}}, 0, all &^ netRaw, 0, all &^ netRaw},
			{"drop ALL", &runtimeapi.Capability{DropCapabilities: []string{"ALL"}}, 0, 0, 0, 0},
			{"drop ALL, add one", &runtimeapi.Capability{DropCapabilities: []string{"ALL"}, AddCapabilities: []string{"NET_ADMIN"}}, 0, netAdmin, 0, netAdmin},
			{"a user has none", &runtimeapi.Capability{AddCapabilities: []string{"NET_ADMIN"}}, 1000, 0, 0, defaultCaps | netAdmin},
			{"ambient for a user", &runtimeapi.Capability{AddAmbientCapabilities: []string{"NET_ADMIN"}}, 1000, netAdmin, netAdmin, defaultCaps | netAdmin},
		} {
			e.run(c.name, func(e env) {
				c1 := p.in(e).start(fmt.Sprintf("caps-%d", i), idle(), secure(func(s *security) {
					s.Capabilities, s.RunAsUser = c.caps, value(c.user)
				}))
				hex := func(set uint64) string { return fmt.Sprintf("%016x", set&all) }
				for _, text := range []string{c1.begun().exec("cat", "/proc/1/status"), c1.exec("cat", "/proc/self/status")} {
					e.equal("CapEff", statusField(text, "CapEff"), hex(c.effective))
					e.equal("CapBnd", statusField(text, "CapBnd"), hex(c.bounding))
					e.equal("CapAmb", statusField(text, "CapAmb"), hex(c.ambient))
					e.equal("CapInh", statusField(text, "CapInh"), hex(c.ambient))
				}
			})
		}
		e.run("effect", func(e env) {
			with := p.in(e).start("with", idle(), secure(func(s *security) {
				s.Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"NET_ADMIN"}}
			}))
			with.sh("ip link add dummy7 type dummy || ip link set lo mtu 1400")
			without := p.in(e).start("without", idle())
			without.fails("ip link set lo mtu 1500", "ermitted")
		})
		_, err := p.tryCreate("refused", idle(), secure(func(s *security) {
			s.Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"CAP_UNHEARD_OF"}}
		}))
		e.refused("unknown capability", err, codes.InvalidArgument, "CAP_UNHEARD_OF")
	})
}

func TestPrivileged(t *testing.T) {
	start(t, nil, func(e env) {
		p := e.pod("privileged", func(c *podConfig) { c.Linux.SecurityContext.Privileged = true })
		c := p.start("c", idle(), secure(func(s *security) {
			s.Privileged = true
			s.Seccomp = &runtimeapi.SecurityProfile{}
			s.MaskedPaths, s.ReadonlyPaths = []string{"/proc/keys"}, []string{"/proc/sys"}
		}))
		e.equal("CapEff", c.proc("CapEff"), fmt.Sprintf("%016x", e.bounding()))
		e.equal("Seccomp", c.proc("Seccomp"), "0")
		if out := c.exec("cat", "/proc/self/mountinfo"); strings.Contains(out, "/proc/keys") || strings.Contains(out, "/proc/sys ") {
			e.Errorf("paths of a privileged container are masked or read-only:\n%s", out)
		}
		c.sh("mount -t tmpfs none /mnt || { mkdir -p /mnt && mount -t tmpfs none /mnt; }; touch /mnt/x")
		c.sh("test -c /dev/fuse && : <>/dev/fuse") // devices of the host that the user may open
		c.sh("test -w /proc/sys/net/ipv4/ip_forward && echo 1 >/proc/sys/net/ipv4/ip_forward")
	})
}

func TestReadOnlyRootfsAndPaths(t *testing.T) {
	start(t, nil, func(e env) {
		p := e.pod("paths", nil)
		dir := e.n.Dir
		c := p.start("read-only", idle(), secure(func(s *security) { s.ReadonlyRootfs = true }),
			mounts(&runtimeapi.Mount{ContainerPath: "/data", HostPath: hostDir(e, dir, "ro-data")}))
		c.fails("touch /x", "ead-only file system")
		c.fails("echo >>/etc/hosts", "ead-only file system")
		c.sh("touch /data/x /dev/shm/x")

		c = p.start("masked", idle(), secure(func(s *security) {
			s.MaskedPaths = []string{"/bin/ls", "/etc", "/proc/no-such-file"}
			s.ReadonlyPaths = []string{"/proc/sys", "/var/tmp"}
		}))
		e.equal("masked file", c.sh("wc -c </bin/ls"), "0")
		e.equal("masked directory", c.sh("echo /etc/*"), "/etc/*")
		c.fails("touch /etc/x", "ead-only file system")
		c.fails("touch /var/tmp/x", "ead-only file system")
		c.fails("echo 0 >/proc/sys/net/ipv4/ip_forward", "ead-only file system")
		c.sh("touch /tmp/x")

		c = p.start("unmasked", idle(), secure(func(s *security) { s.MaskedPaths, s.ReadonlyPaths = nil, nil }))
		if out := c.exec("cat", "/proc/self/mountinfo"); strings.Contains(out, " /proc/") {
			e.Errorf("without masked paths something is mounted on /proc:\n%s", out)
		}
		_, err := p.tryCreate("refused", idle(), secure(func(s *security) { s.MaskedPaths = []string{"relative"} }))
		e.refused("relative masked path", err, codes.InvalidArgument, "relative")
	})
}

// hostDir makes a directory that any user may write to.
func hostDir(e env, parts ...string) string {
	e.Helper()
	dir := filepath.Join(append(parts, e.handler)...)
	e.must(os.MkdirAll(dir, 0o755))
	e.must(os.Chmod(dir, 0o777))
	return dir
}

func TestNoNewPrivs(t *testing.T) {
	start(t, []string{nonewprivs}, func(e env) {
		p := e.pod("nnp", nil)
		for _, c := range []struct {
			no   bool
			want string
		}{{true, "Effective uid: 1000"}, {false, "Effective uid: 0"}} {
			c1 := p.start(fmt.Sprint("setuid-", c.no), image(nonewprivs), secure(func(s *security) { s.RunAsUser, s.NoNewPrivs = value(1000), c.no }))
			e.contains("setuid program with no_new_privs "+fmt.Sprint(c.no), c1.log(), c.want)
		}
		c := p.start("status", idle(), secure(func(s *security) { s.NoNewPrivs = true }))
		e.equal("NoNewPrivs", c.proc("NoNewPrivs"), "1")
		e.equal("NoNewPrivs of an exec", statusField(c.exec("cat", "/proc/self/status"), "NoNewPrivs"), "1")
	})
}

func TestSeccomp(t *testing.T) {
	start(t, nil, func(e env) {
		p := e.pod("seccomp", nil)
		profile := filepath.Join(e.n.Dir, "no-mkdir.json")
		e.must(os.WriteFile(profile, []byte(`{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
			{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28}]}`), 0o600))
		withProfile := func(kind runtimeapi.SecurityProfile_ProfileType, ref string) change {
			return secure(func(s *security) { s.Seccomp = &runtimeapi.SecurityProfile{ProfileType: kind, LocalhostRef: ref} })
		}
		c := p.start("default", idle(), withProfile(runtimeapi.SecurityProfile_RuntimeDefault, ""))
		e.equal("Seccomp", c.proc("Seccomp"), "2")
		e.equal("Seccomp of an exec", statusField(c.exec("cat", "/proc/self/status"), "Seccomp"), "2")
		c.fails("unshare -m true", "ermitted")

		c = p.start("unconfined", idle(), withProfile(runtimeapi.SecurityProfile_Unconfined, ""))
		e.equal("Seccomp", c.proc("Seccomp"), "0")

		c = p.start("unset", idle())
		e.equal("Seccomp", c.proc("Seccomp"), "0")

		c = p.start("localhost", idle(), withProfile(runtimeapi.SecurityProfile_Localhost, profile))
		e.equal("Seccomp", c.proc("Seccomp"), "2")
		c.fails("mkdir /x", "No space left") // errno 28, by the profile
		c.sh("touch /x")

		for name, ref := range map[string]string{"relative": "no-mkdir.json", "missing": "/no/such/profile.json", "none": ""} {
			_, err := p.tryCreate("refused", idle(), withProfile(runtimeapi.SecurityProfile_Localhost, ref))
			e.refused(name+" profile", err, codes.InvalidArgument, "seccomp")
		}
	})
}

// TestLabels: without AppArmor or SELinux in the kernel a profile by name is
// refused, since it would protect nothing, and options that the CRI calls optional
// are left out; with them they are applied.
func TestLabels(t *testing.T) {
	start(t, nil, func(e env) {
		p := e.pod("labels", nil)
		on, _ := os.ReadFile("/sys/module/apparmor/parameters/enabled")
		_, err := p.tryCreate("apparmor", idle(), secure(func(s *security) {
			s.Apparmor = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: "no-such-profile"}
		}))
		if strings.HasPrefix(string(on), "Y") {
			if err == nil {
				e.Error("a container was made with an AppArmor profile that is not loaded")
			}
		} else {
			e.refused("AppArmor profile", err, codes.InvalidArgument, "no AppArmor")
		}
		c := p.start("default", idle(), secure(func(s *security) {
			s.Apparmor = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault}
		}))
		c.sh("true")
		if _, err := os.Stat("/sys/fs/selinux/enforce"); err != nil {
			p.start("selinux", idle(), secure(func(s *security) {
				s.SelinuxOptions = &runtimeapi.SELinuxOption{Level: "s0:c1,c2"}
			})).sh("true")
			e.logged("SELinux options are left out")
		}
	})
}
