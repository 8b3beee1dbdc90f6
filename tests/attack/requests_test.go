package attack

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestHostilePods: what a pod's author writes, and a kubelet passes on, does not become
// a line of a file, a path or a setting of the node.
func TestHostilePods(t *testing.T) {
	c := newCage(t)
	type config = runtimeapi.PodSandboxConfig
	sysctl := func(key, value string) func(*config) {
		return func(p *config) { p.Linux = &runtimeapi.LinuxPodSandboxConfig{Sysctls: map[string]string{key: value}} }
	}
	dns := func(d *runtimeapi.DNSConfig) func(*config) { return func(p *config) { p.DnsConfig = d } }
	for name, edit := range map[string]func(*config){
		"a line in the hostname":    func(p *config) { p.Hostname = "web\n192.0.2.9 registry" },
		"a tab in the hostname":     func(p *config) { p.Hostname = "web\tregistry" },
		"a path in the hostname":    func(p *config) { p.Hostname = "../../etc/passwd" },
		"a line in a DNS server":    dns(&runtimeapi.DNSConfig{Servers: []string{"192.0.2.1\nnameserver 192.0.2.9"}}),
		"a line in a search list":   dns(&runtimeapi.DNSConfig{Searches: []string{"example.com\nnameserver 192.0.2.9"}}),
		"a line in an option":       dns(&runtimeapi.DNSConfig{Options: []string{"ndots:1\nnameserver 192.0.2.9"}}),
		"the core pattern":          sysctl("kernel.core_pattern", "|/tmp/x"),
		"the node's hostname":       sysctl("kernel.hostname", "x"),
		"a sysctl with ..":          sysctl("net/ipv4/../../kernel/core_pattern", "|/tmp/x"),
		"a sysctl with dots":        sysctl("net.ipv4/../../kernel/hostname", "x"),
		"a sysctl with a zero":      sysctl("net.ipv4.ip_forward\x00", "1"),
		"a sysctl of the machine":   sysctl("vm.overcommit_memory", "1"),
		"a log directory with ..":   func(p *config) { p.LogDirectory = "../../logs" },
		"a host port of a negative": func(p *config) { p.PortMappings = []*runtimeapi.PortMapping{{HostPort: -1, ContainerPort: 80}} },
	} {
		t.Run(name, func(t *testing.T) {
			p := &config{Metadata: &runtimeapi.PodSandboxMetadata{Name: "hostile", Namespace: "tests", Uid: name}, LogDirectory: filepath.Join(c.n.Dir, "logs")}
			edit(p)
			pod, err := c.cri.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: p})
			if err == nil {
				_, _ = c.cri.RemovePodSandbox(t.Context(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: pod.PodSandboxId})
			}
			if status.Code(err) != codes.InvalidArgument {
				t.Errorf("it is not refused as invalid: %v", err)
			}
		})
	}
}

// TestHostileContainers: the same for containers. Files that they name in the place of a
// profile, a log or a device are neither waited for nor shown.
func TestHostileContainers(t *testing.T) {
	c := newCage(t)
	server := c.n.Server()
	fifo := filepath.Join(c.n.Dir, "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	profile := func(path string) inmate {
		return inmate{seccomp: &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: path}}
	}
	device := func(path string) inmate {
		return inmate{devices: []*runtimeapi.Device{{HostPath: path, ContainerPath: "/dev/x", Permissions: "rwm"}}}
	}
	for name, i := range map[string]inmate{
		"a log with ..": {log: "../secret"}, "an absolute log": {log: c.secret}, "a log behind a directory": {log: "a/../../secret"},
		"a FIFO as a profile": profile(fifo), "a device as a profile": profile("/dev/zero"), "a directory as a profile": profile("/"), "a secret as a profile": profile(c.secret),
		"a relative profile": profile("../../secret"), "a process's memory as a profile": profile("/proc/self/mem"),
		"a file as a device": device(c.secret), "a FIFO as a device": device(fifo), "a device behind ..": device("/dev/../" + c.secret),
	} {
		t.Run(name, func(t *testing.T) {
			c := c.in(t)
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			i.pid = ownPID
			done := make(chan error, 1)
			go func() { _, err := c.try(i); done <- err }()
			select {
			case err := <-done:
				if err == nil {
					t.Error("it is not refused")
				} else if strings.Contains(err.Error(), secretText) || strings.Contains(err.Error(), secretText[:8]) {
					t.Errorf("the answer has the secret: %v", err)
				}
			case <-ctx.Done():
				t.Error("the server waits for the file")
			}
		})
	}
	if now := c.n.Server(); now != server {
		t.Error("the server has been started again")
	}
	if b, err := os.ReadFile(c.secret); err != nil || string(b) != secretText {
		t.Errorf("the file of the user: %q, %v", b, err)
	}
}

// TestOrdersForTheRuntime: annotations by which OCI runtimes take orders are not theirs
// to read when a pod's author wrote them.
func TestOrdersForTheRuntime(t *testing.T) {
	c := newCage(t)
	l, err := net.Listen("unix", filepath.Join(c.n.XDG, "receiver"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	called := make(chan struct{}, 10)
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			called <- struct{}{}
			conn.Close()
		}
	}()
	orders := map[string]string{
		"run.oci.seccomp.receiver": l.Addr().String(), "run.oci.keep_original_groups": "1", "run.oci.pidfd_receiver": l.Addr().String(),
		"run.oci.mount_context_type": "rootcontext", "io.katacontainers.config.hypervisor.path": "/bin/sh", "io.kubernetes.cri-o.Devices": "/dev/kmsg",
	}
	id, err := c.try(inmate{pid: ownPID, annotations: orders})
	if err != nil {
		t.Error(err) // they are a client's own, which nobody forbids
	} else {
		c.escape(id, "self", c.secret)
	}
	// By whatever way it is handed over.
	for _, pattern := range []string{"containers/" + id + "/config.json", "*/" + id + "/config.json", "*/*/" + id + "/config.json", "*/*/*/" + id + "/config.json"} {
		found, _ := filepath.Glob(filepath.Join(c.n.RunDir, pattern))
		for _, name := range found {
			if b, err := os.ReadFile(name); err == nil && strings.Contains(string(b), "run.oci.keep_original_groups") {
				t.Errorf("the runtime is given the order, in %s", name)
			}
		}
	}
	select {
	case <-called:
		t.Error("the runtime has connected to a socket that an annotation names")
	default:
	}
}

// TestHostileNames: IDs and image names of clients are no paths, and name no files.
func TestHostileNames(t *testing.T) {
	c := newCage(t)
	cri, ctx := c.cri, t.Context()
	server := c.n.Server()
	for _, id := range []string{"..", ".", "/", "../../../../home", "a/b", "x\x00y", "\x1b[2J", strings.Repeat("a", 1<<20), c.secret, "%2e%2e", "*"} {
		for name, call := range map[string]func() error{
			"ContainerStatus": func() error {
				_, err := cri.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: id})
				return err
			},
			"PodSandboxStatus": func() error {
				_, err := cri.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: id})
				return err
			},
			"StartContainer": func() error {
				_, err := cri.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: id})
				return err
			},
			"ExecSync": func() error {
				_, err := cri.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"true"}})
				return err
			},
			"Exec": func() error {
				_, err := cri.Exec(ctx, &runtimeapi.ExecRequest{ContainerId: id, Cmd: []string{"true"}, Stdout: true})
				return err
			},
			"Attach": func() error {
				_, err := cri.Attach(ctx, &runtimeapi.AttachRequest{ContainerId: id, Stdout: true})
				return err
			},
			"PortForward": func() error {
				_, err := cri.PortForward(ctx, &runtimeapi.PortForwardRequest{PodSandboxId: id, Port: []int32{1}})
				return err
			},
			"ReopenContainerLog": func() error {
				_, err := cri.ReopenContainerLog(ctx, &runtimeapi.ReopenContainerLogRequest{ContainerId: id})
				return err
			},
			"ContainerStats": func() error {
				_, err := cri.ContainerStats(ctx, &runtimeapi.ContainerStatsRequest{ContainerId: id})
				return err
			},
		} {
			if code := status.Code(call()); code != codes.NotFound && code != codes.InvalidArgument {
				t.Errorf("%s of %.40q: %v", name, id, code)
			}
		}
	}
	for _, image := range []string{"127.0.0.1:1/a\x1b[2J", "127.0.0.1:1/a\nb", "../../etc/passwd", "/etc/passwd", "file:///etc/passwd", "docker-archive:" + c.secret, "oci:" + c.n.Home, "dir:" + c.n.Home,
		"oci-archive:" + c.secret, "docker-daemon:x:1", "tarball:" + c.secret, "--help", "127.0.0.1:1/a@sha256:../../../x", "a" + strings.Repeat("/a", 1<<16)} {
		_, err := cri.PullImage(ctx, &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: image}})
		if status.Code(err) != codes.InvalidArgument {
			t.Errorf("a pull of %.60q: %.200v", image, err)
		}
		if err != nil && (strings.Contains(err.Error(), secretText) || len(err.Error()) > 4096) {
			t.Errorf("the answer to a pull of %.60q has %d bytes: %.500v", image, len(err.Error()), err)
		}
	}
	if now := c.n.Server(); now != server {
		t.Error("the server has been started again")
	}
}

// TestLogLinks: a container that can write to its directory of logs, as agents do that
// collect them, does not lead the daemon to other files by it.
func TestLogLinks(t *testing.T) {
	c := newCage(t)
	logs := filepath.Join(c.n.Dir, "logs")
	target := filepath.Join(c.n.DataDir, "authorized_keys") // which the server sees with every view
	if err := os.WriteFile(target, []byte("mine\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	agent := c.run(inmate{pid: ownPID, mounts: []*runtimeapi.Mount{{HostPath: logs, ContainerPath: "/logs"}}})
	plant := func(names ...string) {
		for _, name := range names {
			c.exec(agent, "ln", "-sfn", target, "/logs/"+name)
		}
	}
	unchanged := func(t *testing.T, when string) {
		t.Helper()
		if b, err := os.ReadFile(target); err != nil || string(b) != "mine\n" {
			t.Errorf("%s: the user's file is now %q, %v", when, b, err)
		}
	}
	const evil = "while :; do echo evil; sleep 0.1; done"
	t.Run("create", func(t *testing.T) {
		plant("planted.log", "planted.log.tmp")
		if id, err := c.in(t).try(inmate{pid: ownPID, log: "planted.log", command: []string{"sh", "-c", evil}}); err == nil {
			c.exec(id, "sleep", "0.5")
		}
		unchanged(t, "a link in the place of a new log")
	})
	t.Run("reopen", func(t *testing.T) {
		id := c.in(t).run(inmate{pid: ownPID, log: "re.log", command: []string{"sh", "-c", evil}})
		plant("re.log", "re.log.tmp")
		_, err := c.cri.ReopenContainerLog(t.Context(), &runtimeapi.ReopenContainerLogRequest{ContainerId: id})
		t.Logf("reopen: %v", err)
		c.exec(id, "sleep", "0.5")
		unchanged(t, "a link in the place of a log that is reopened")
	})
	t.Run("read", func(t *testing.T) {
		id := c.in(t).run(inmate{pid: ownPID, log: "read.log", command: []string{"sh", "-c", "echo hello; sleep 100"}})
		c.exec(agent, "ln", "-sfn", c.secret, "/logs/read.log")
		out, err := c.n.Subpod("logs", id)
		if strings.Contains(out+fmt.Sprint(err), secretText) {
			t.Errorf("subpod logs shows another file: %s", out)
		}
	})
}
