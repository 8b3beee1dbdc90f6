package attack

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/tests/node"
)

// The test binary is also the program of attackers, mounted into their containers as
// /attack. Each prints a line that begins with gotMark for what it should not have got,
// and tried at its end, without which nothing was shown.
func init() {
	if len(os.Args) < 2 || !strings.HasPrefix(os.Args[1], "escape-") {
		return
	}
	go func() { time.Sleep(2 * time.Minute); os.Exit(3) }()
	program := map[string]func([]string) error{
		"escape-look": lookInto, "escape-enter": enterNamespaces, "escape-handles": openHandles, "escape-watch": watchJoins,
		"escape-trace": traceProcess, "escape-signal": signalProcess, "escape-self": lookAtSelf, "escape-foreign": foreignCalls, "escape-sleep": sleepLong, "escape-all": lookAtAll, "escape-hijack": hijackJoins, "escape-uid": printUID, "escape-own-handle": ownHandle,
		"escape-reach": reachHost, "escape-packets": packetsToHost, "escape-surface": trySurface, "escape-write": tryWrites, "escape-session": trySession, "escape-keys": tryKeys, "escape-with-key": withKey,
		"escape-hold": holdConnections, "escape-tokens": tryTokens, "escape-open": openAll, "escape-other": lookAround, "escape-exchange": exchange, "escape-overwrite": overwrite,
		"escape-egress-dial": egressDial, "escape-egress-rewrite": egressRewrite, "escape-egress-swap": egressSwap, "escape-egress-many": egressMany,
	}[os.Args[1]]
	if program == nil {
		fmt.Println("no such program")
		os.Exit(2)
	}
	if err := program(os.Args[2:]); err != nil {
		fmt.Println("broken:", err)
		os.Exit(1)
	}
	fmt.Println(tried)
	os.Exit(0)
}

const (
	gotMark = "GOT "
	tried   = "TRIED"
)

func got(format string, args ...any) { fmt.Printf(gotMark+format+"\n", args...) }

// cage is a node with a secret in the user's home and a listener on the host's loopback.
// The node sees the home (the view is full): what stops an attack is the layer that it is on.
type cage struct {
	*testing.T
	n      *node.Node
	cri    node.Client
	secret string // path
	port   string // of the host's loopback
}

const secretText = "the user's own: 6b1f"

func newCage(t *testing.T) *cage {
	t.Helper()
	n := node.Start(t, node.Options{Config: node.Bridge + "[node]\nview = \"full\"\n"})
	c := &cage{T: t, n: n, cri: n.CRI(), secret: filepath.Join(n.Home, "secret")}
	n.WriteHome("secret", secretText)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			fmt.Fprint(conn, secretText)
			conn.Close()
		}
	}()
	_, c.port, _ = net.SplitHostPort(l.Addr().String())
	c.pull(node.Busybox)
	return c
}

func (c *cage) pull(image string) {
	c.Helper()
	if _, err := c.cri.PullImage(c.Context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: image}}); err != nil {
		c.Fatal(err)
	}
}

// in is the cage for a subtest.
func (c *cage) in(t *testing.T) *cage {
	sub := *c
	sub.T, sub.n = t, c.n.For(t)
	return &sub
}

// inmate is what is asked for of one container; it has a pod sandbox for itself.
type inmate struct {
	image            string
	caps             []string
	pid, net         runtimeapi.NamespaceMode
	ipc              runtimeapi.NamespaceMode
	users            *runtimeapi.UserNamespace
	user, group      *int64
	privileged       bool
	seccomp          *runtimeapi.SecurityProfile
	mounts           []*runtimeapi.Mount
	command          []string
	workdir          string
	masked, readOnly []string
	devices          []*runtimeapi.Device
	log              string // below the log directory; "" is a name of its own
	annotations      map[string]string
}

const (
	podPID = runtimeapi.NamespaceMode_POD
	ownPID = runtimeapi.NamespaceMode_CONTAINER
	onNode = runtimeapi.NamespaceMode_NODE
)

var runtimeDefault = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault}

// ownUsers is the user namespace of "hostUsers: false". The node of the tests has
// 196608 subordinate IDs.
func ownUsers() *runtimeapi.UserNamespace {
	ids := []*runtimeapi.IDMapping{{HostId: 65536, ContainerId: 0, Length: 65536}}
	return &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_POD, Uids: ids, Gids: ids}
}

func idle() []string {
	return []string{"sh", "-c", "trap 'exit 0' TERM; while :; do sleep 0.1; done"}
}

// run starts a container and returns its ID; it must succeed.
func (c *cage) run(i inmate) string {
	c.Helper()
	id, err := c.try(i)
	if err != nil {
		c.Fatal(err)
	}
	return id
}

func (c *cage) try(i inmate) (string, error) {
	c.Helper()
	exe, err := os.Executable()
	if err != nil {
		return "", err
	}
	name := strings.NewReplacer("/", "-", "_", "-").Replace(strings.ToLower(c.Name())) + fmt.Sprint(time.Now().UnixNano())
	ns := &runtimeapi.NamespaceOption{Pid: i.pid, Network: i.net, Ipc: i.ipc, UsernsOptions: i.users}
	config := &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Name: name, Namespace: "tests", Uid: name}, LogDirectory: filepath.Join(c.n.Dir, "logs"), Annotations: i.annotations,
		Linux: &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: ns, Privileged: i.privileged}},
	}
	pod, err := c.cri.RunPodSandbox(c.Context(), &runtimeapi.RunPodSandboxRequest{Config: config})
	if err != nil {
		return "", err
	}
	c.Cleanup(func() {
		_, _ = c.cri.RemovePodSandbox(context.Background(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: pod.PodSandboxId})
	})
	if i.image == "" {
		i.image = node.Busybox
	}
	if i.command == nil {
		i.command = idle()
	}
	if i.seccomp == nil {
		i.seccomp = runtimeDefault
	}
	sec := &runtimeapi.LinuxContainerSecurityContext{
		NamespaceOptions: ns, Privileged: i.privileged, Seccomp: i.seccomp, MaskedPaths: i.masked, ReadonlyPaths: i.readOnly,
		Capabilities: &runtimeapi.Capability{AddCapabilities: i.caps},
	}
	if i.log == "" {
		i.log = name + ".log"
	}
	if i.user != nil {
		sec.RunAsUser = &runtimeapi.Int64Value{Value: *i.user}
	}
	if i.group != nil {
		sec.RunAsGroup = &runtimeapi.Int64Value{Value: *i.group}
	}
	ctr := &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: "c"}, Image: &runtimeapi.ImageSpec{Image: i.image}, LogPath: i.log,
		Command: i.command, WorkingDir: i.workdir, Devices: i.devices, Annotations: i.annotations,
		Mounts: append([]*runtimeapi.Mount{{HostPath: exe, ContainerPath: "/attack", Readonly: true}}, i.mounts...),
		Linux:  &runtimeapi.LinuxContainerConfig{SecurityContext: sec},
	}
	made, err := c.cri.CreateContainer(c.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: pod.PodSandboxId, SandboxConfig: config, Config: ctr})
	if err != nil {
		return "", err
	}
	_, err = c.cri.StartContainer(c.Context(), &runtimeapi.StartContainerRequest{ContainerId: made.ContainerId})
	return made.ContainerId, err
}

// exec runs a command in a container and returns all of its output.
func (c *cage) exec(id string, argv ...string) string {
	c.Helper()
	resp, err := c.cri.ExecSync(c.Context(), &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: argv, Timeout: 110})
	if err != nil {
		c.Fatalf("%.80q: %v", argv, err)
	}
	return string(resp.Stdout) + string(resp.Stderr)
}

// escape runs an attacker's program, which must get nothing; it returns its output.
func (c *cage) escape(id, program string, args ...string) string {
	c.Helper()
	out := c.exec(id, append([]string{"/attack", "escape-" + program}, args...)...)
	c.repelled(out)
	return out
}

func (c *cage) repelled(out string) {
	c.Helper()
	lines := strings.Split(strings.TrimSpace(out), "\n")
	if slices.ContainsFunc(lines, func(l string) bool { return strings.HasPrefix(l, gotMark) }) {
		c.Errorf("the attack got through:\n%s", out)
	}
	if strings.Contains(out, secretText) {
		c.Errorf("the secret came out:\n%s", out)
	}
	if lines[len(lines)-1] != tried {
		c.Errorf("the attack was not tried to its end:\n%s", out)
	}
}
