package fields

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	nsPod       = runtimeapi.NamespaceMode_POD
	nsContainer = runtimeapi.NamespaceMode_CONTAINER
	nsNode      = runtimeapi.NamespaceMode_NODE
	nsTarget    = runtimeapi.NamespaceMode_TARGET
)

// namespaces of a container's processes, by kind.
func (c *container) ns(kind string) string {
	c.Helper()
	return c.exec("readlink", "/proc/self/ns/"+kind)
}

// nodeNS is the node's own namespace.
func (e env) nodeNS(kind string) string {
	e.Helper()
	return strings.TrimSpace(e.n.Enter("readlink", "/proc/self/ns/"+kind))
}

func pidMode(mode runtimeapi.NamespaceMode, target string) change {
	return secure(func(s *security) { s.NamespaceOptions = &nsOption{Pid: mode, TargetId: target} })
}

// shows waits until ps in the container has words in its output.
func (c *container) shows(what string, words ...string) {
	c.Helper()
	eventually(c, what, func() error {
		out := c.exec("ps")
		for _, w := range words {
			if !strings.Contains(out, w) {
				return fmt.Errorf("no %q in:\n%s", w, out)
			}
		}
		return nil
	})
}

func TestPIDNamespaces(t *testing.T) {
	start(t, nil, func(e env) {
		own := e.pod("own", nil)
		a, b := own.start("a", idle()), own.start("b", idle())
		e.equal("CONTAINER: first process", a.begun().exec("cat", "/proc/1/comm"), "sh")
		if a.ns("pid") == b.ns("pid") {
			e.Error("CONTAINER: two containers have one PID namespace")
		}
		_, err := own.tryCreate("pod-mode", idle(), pidMode(nsPod, ""))
		e.refused("POD in a pod without", err, codes.InvalidArgument, "PID namespace")

		target := own.start("target", idle(), pidMode(nsTarget, a.id))
		e.equal("TARGET: namespace", target.ns("pid"), a.ns("pid"))
		target.shows("TARGET: processes", "sleep 0.1") // now and then
		for what, id := range map[string]string{"unknown": "0123456789", "empty": ""} {
			_, err := own.tryCreate("bad-target", idle(), pidMode(nsTarget, id))
			e.refused("TARGET: "+what, err, codes.InvalidArgument)
		}
		other := e.pod("other", nil).start("c", idle())
		_, err = own.tryCreate("foreign-target", idle(), pidMode(nsTarget, other.id))
		e.refused("TARGET in another pod", err, codes.InvalidArgument, other.id)

		node := e.pod("node", func(c *podConfig) { podNamespaces(c).Pid = nsNode }).start("c", idle(), pidMode(nsNode, ""))
		e.equal("NODE: namespace", node.ns("pid"), e.nodeNS("pid"))
		node.shows("NODE: processes", "subpod", "conmon")
		node.stop(1)
		node.exited()

		shared := e.pod("shared", func(c *podConfig) { podNamespaces(c).Pid = nsPod })
		x, y := shared.start("x", idle(), pidMode(nsPod, "")), shared.start("y", sh("sleep 7654"), pidMode(nsPod, ""))
		e.equal("POD: namespace", x.ns("pid"), y.ns("pid"))
		x.shows("POD: processes", "sleep 7654")
		z := shared.start("z", idle(), pidMode(nsContainer, ""))
		if z.ns("pid") == x.ns("pid") {
			e.Error("CONTAINER in a pod that shares: the container is in the pod's namespace")
		}
	})
}

func TestNetworkAndIPCNamespaces(t *testing.T) {
	start(t, nil, func(e env) {
		own := e.pod("own", func(c *podConfig) { c.Hostname = "own-name" })
		a, b := own.start("a", idle()), own.start("b", idle())
		for _, kind := range []string{"net", "ipc", "uts"} {
			e.equal("POD: "+kind+" of two containers", a.ns(kind), b.ns(kind))
			if a.ns(kind) == e.nodeNS(kind) {
				e.Errorf("POD: %s is the node's", kind)
			}
		}
		a.sh("echo shared >/dev/shm/x")
		e.equal("POD: /dev/shm", b.exec("cat", "/dev/shm/x"), "shared")
		e.contains("POD: interfaces", a.exec("ls", "/sys/class/net"), "eth0")

		node := e.pod("node", func(c *podConfig) { podNamespaces(c).Network, podNamespaces(c).Ipc = nsNode, nsNode })
		c := node.start("c", idle(), secure(func(s *security) { s.NamespaceOptions.Network, s.NamespaceOptions.Ipc = nsNode, nsNode }))
		e.equal("NODE: ipc", c.ns("ipc"), e.nodeNS("ipc"))
		e.equal("NODE: net", c.ns("net"), e.nodeNS("net"))
		e.contains("NODE: interfaces", c.exec("ls", "/sys/class/net"), "subpod0", "tap0")
		status, err := e.cri.PodSandboxStatus(e.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: node.id})
		e.must(err)
		options := status.Status.GetLinux().GetNamespaces().GetOptions()
		e.equal("modes in the status", fmt.Sprint(options.GetNetwork(), options.GetIpc(), options.GetPid()), "NODE NODE CONTAINER")
		e.equal("NODE: address in the status", status.Status.GetNetwork().GetIp(), "")

		for what, set := range map[string]func(*nsOption){
			"network NODE":      func(o *nsOption) { o.Network = nsNode },
			"network CONTAINER": func(o *nsOption) { o.Network = nsContainer },
			"ipc NODE":          func(o *nsOption) { o.Ipc = nsNode },
			"ipc TARGET":        func(o *nsOption) { o.Ipc = nsTarget },
		} {
			_, err := own.tryCreate("refused", idle(), secure(func(s *security) { set(s.NamespaceOptions) }))
			e.refused(what+" of a container in a pod with its own", err, codes.InvalidArgument, strings.Fields(what)[0])
		}
		for what, set := range map[string]func(*nsOption){
			"network CONTAINER": func(o *nsOption) { o.Network = nsContainer },
			"network TARGET":    func(o *nsOption) { o.Network = nsTarget },
			"ipc CONTAINER":     func(o *nsOption) { o.Ipc = nsContainer },
			"pid TARGET":        func(o *nsOption) { o.Pid = nsTarget },
		} {
			_, err := e.tryPod("refused", func(c *podConfig) { set(podNamespaces(c)) })
			e.refused(what+" of a pod", err, codes.InvalidArgument, strings.Fields(what)[0])
		}
	})
}

// userns asks for a user namespace of the pod's own, as the kubelet does: a range
// of 65536 that begins at a multiple of it.
func userns(first uint32) func(*podConfig) {
	return func(c *podConfig) {
		m := []*runtimeapi.IDMapping{{HostId: first, Length: 65536}}
		podNamespaces(c).UsernsOptions = &runtimeapi.UserNamespace{Mode: nsPod, Uids: m, Gids: m}
	}
}

// rangeSize is how many IDs the node has.
func (e env) rangeSize() (n int) {
	e.Helper()
	for line := range strings.Lines(e.n.Enter("cat", "/proc/self/uid_map")) {
		var inside, outside, count int
		if _, err := fmt.Sscan(line, &inside, &outside, &count); err != nil {
			e.Fatal(err)
		}
		n += count
	}
	return n
}

func TestUserNamespaces(t *testing.T) {
	start(t, nil, func(e env) {
		e.run("NODE", func(e env) {
			p := e.pod("node", func(c *podConfig) {
				podNamespaces(c).UsernsOptions = &runtimeapi.UserNamespace{Mode: nsNode}
			})
			e.equal("namespace", p.start("c", idle()).ns("user"), e.nodeNS("user"))
		})
		for what, set := range map[string]func(*podConfig){
			"outside the node's range": userns(1 << 30),
			"two mappings": func(c *podConfig) {
				userns(65536)(c)
				o := podNamespaces(c).UsernsOptions
				o.Uids = append(o.Uids, &runtimeapi.IDMapping{ContainerId: 65536, HostId: 1, Length: 1})
			},
			"ID 0 is not mapped": func(c *podConfig) {
				userns(65536)(c)
				podNamespaces(c).UsernsOptions.Uids = []*runtimeapi.IDMapping{{ContainerId: 1, HostId: 65537, Length: 10}}
			},
			"no mapping":     func(c *podConfig) { podNamespaces(c).UsernsOptions = &runtimeapi.UserNamespace{Mode: nsPod} },
			"CONTAINER mode": func(c *podConfig) { userns(65536)(c); podNamespaces(c).UsernsOptions.Mode = nsContainer },
			"TARGET mode":    func(c *podConfig) { userns(65536)(c); podNamespaces(c).UsernsOptions.Mode = nsTarget },
		} {
			_, err := e.tryPod("refused", set)
			e.refused(what, err, codes.InvalidArgument)
		}
		status, err := e.cri.Status(e.Context(), &runtimeapi.StatusRequest{})
		e.must(err)
		room := e.rangeSize() >= 2*65536
		for _, h := range status.RuntimeHandlers {
			e.equal("feature user_namespaces of handler "+h.Name, h.Features.UserNamespaces, room)
		}
		if !room {
			// The user of this machine has one range: refusing is the right answer.
			_, err := e.tryPod("refused", userns(65536))
			e.refused("a second range", err, codes.InvalidArgument, "usermod")
			return
		}
		e.run("POD", ownUserNamespace)
	})
}

func ownUserNamespace(e env) {
	p := e.pod("one", func(c *podConfig) {
		userns(65536)(c)
		c.Hostname = "nested"
		c.Linux.Sysctls = map[string]string{"kernel.shm_rmid_forced": "1"}
	})
	data := hostDir(e, e.n.DataDir, "userns-data")
	e.must(os.WriteFile(filepath.Join(data, "from-outside"), []byte("hello"), 0o644))
	c := p.start("c", idle(), mounts(&runtimeapi.Mount{ContainerPath: "/data", HostPath: data}))
	e.equal("uid_map", strings.Join(strings.Fields(c.exec("cat", "/proc/self/uid_map")), " "), "0 65536 65536")
	e.equal("gid_map", strings.Join(strings.Fields(c.exec("cat", "/proc/self/gid_map")), " "), "0 65536 65536")
	e.equal("id", c.exec("id", "-u"), "0")
	e.equal("owner of the root file system", c.exec("stat", "-c", "%u:%g", "/bin"), "0:0")
	e.equal("hostname", c.exec("hostname"), "nested")
	e.equal("sysctl", c.exec("cat", "/proc/sys/kernel/shm_rmid_forced"), "1")
	c.sh("touch /new /dev/shm/x /data/y; chown 12:34 /new")
	e.equal("a new file's owner", c.exec("stat", "-c", "%u:%g", "/new"), "12:34")
	e.equal("a file from outside", c.exec("cat", "/data/from-outside"), "hello")
	e.equal("its owner has no ID inside", c.exec("stat", "-c", "%u", "/data/from-outside"), "65534")
	e.equal("owner of a file on the volume, in the node", strings.TrimSpace(e.n.Enter("stat", "-c", "%u", filepath.Join(data, "y"))), "65536")
	admin := p.start("admin", idle(), secure(func(s *security) {
		s.Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"NET_ADMIN", "SYS_ADMIN"}}
	}))
	admin.sh("ip link set lo mtu 1400") // root over the pod's network namespace
	admin.sh("mount -t tmpfs x /mnt || { mkdir /mnt && mount -t tmpfs x /mnt; }")
	c.fails("echo 1 >/proc/sys/kernel/pid_max", "")
	e.contains("interfaces", c.exec("ls", "/sys/class/net"), "eth0")
	e.contains("log", p.start("talk", sh("echo words; id -u")).log(), "words\n0")

	asUser := p.start("user", idle(), secure(func(s *security) { s.RunAsUser, s.SupplementalGroups = value(1000), []int64{5000} }))
	e.equal("user's IDs", asUser.proc("Uid"), "1000 1000 1000 1000")
	e.equal("user's groups", sorted(asUser.proc("Groups")), "0 5000")
	_, err := p.tryCreate("refused", idle(), secure(func(s *security) { s.RunAsUser = value(65536) }))
	e.refused("a user outside of the pod's range", err, codes.InvalidArgument, "65536")

	shared := e.pod("shared-pid", func(c *podConfig) { userns(65536)(c); podNamespaces(c).Pid = nsPod })
	x, y := shared.start("x", idle(), pidMode(nsPod, "")), shared.start("y", idle(), pidMode(nsPod, ""))
	e.equal("shared PID namespace", x.ns("pid"), y.ns("pid"))
	e.equal("shared user namespace", x.ns("user"), y.ns("user"))
	if x.ns("user") == c.ns("user") {
		e.Error("two pods share a user namespace")
	}
	if e.rangeSize() >= 3*65536 {
		other := e.pod("two", userns(2*65536)).start("c", idle())
		e.equal("uid_map of another range", strings.Join(strings.Fields(other.exec("cat", "/proc/self/uid_map")), " "), "0 131072 65536")
	}
	c.stop(2)
	if s := c.exited(); s.ExitCode != 0 {
		e.Errorf("after the stop signal: exit code %d, %s", s.ExitCode, s.Reason)
	}
}
