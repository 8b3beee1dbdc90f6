package fields

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/tests/node"
)

// TestPrograms: what programs of the real world expect of a container.
func TestPrograms(t *testing.T) {
	start(t, []string{byName}, func(e env) {
		p := e.pod("programs", nil)
		nobody := secure(func(s *security) { s.RunAsUser = value(4242) })
		c := p.start("home", idle(), nobody)
		e.equal("HOME of a user without an entry in passwd", c.sh("echo $HOME"), "/")
		e.equal("first port for everybody", c.sh("cat /proc/sys/net/ipv4/ip_unprivileged_port_start"), "0")
		c.sh("nc -l -p 80 </dev/null >/dev/null 2>&1 & sleep 0.3; kill $!") // fails where it could not bind
		first, last, _ := strings.Cut(c.sh("cat /proc/sys/net/ipv4/ping_group_range"), "\t")
		if first != "0" || len(last) < 5 {
			e.Errorf("ping_group_range: %q to %q", first, last)
		}

		asked := e.pod("sysctls", func(c *podConfig) {
			c.Linux.Sysctls = map[string]string{"net/ipv4/ip_unprivileged_port_start": "500", "net.ipv4.ping_group_range": "0 2147483647"}
		})
		c = asked.start("c", idle(), nobody)
		e.equal("the pod's own sysctl", c.sh("cat /proc/sys/net/ipv4/ip_unprivileged_port_start"), "500")

		_, err := e.tryPod("ports", func(c *podConfig) {
			c.PortMappings = []*runtimeapi.PortMapping{{HostPort: 28080, ContainerPort: 1}, {HostPort: 28080, ContainerPort: 2}}
		})
		e.refused("a host port twice", err, codes.InvalidArgument, "28080", "mapped twice")
	})
}

// TestUmask: the umask of who starts the daemon is not the containers': their users read what
// is made for them.
func TestUmask(t *testing.T) {
	n := node.Start(t, node.Options{Config: bridge, Prefix: []string{"sh", "-c", `umask 0777; exec "$@"`, "sh"}})
	e := env{T: t, n: n, cri: n.CRI(), handler: "crun"}
	e.pull(busybox)
	c := e.pod("umask", nil).start("c", idle(), secure(func(s *security) { s.RunAsUser = value(4242) }))
	e.equal("the container's", c.sh("umask"), "0022")
	c.sh("cat /etc/hosts /etc/resolv.conf /etc/hostname")
}

// TestCommandsThatCannotRun: they are start errors, as the kubelet shows them.
func TestCommandsThatCannotRun(t *testing.T) {
	start(t, []string{byName}, func(e env) {
		p := e.pod("cannot-run", nil)
		dir := filepath.Join(e.n.Dir, "scripts")
		e.must(os.MkdirAll(dir, 0o755))
		for name, script := range map[string]struct {
			text string
			mode os.FileMode
			says string
		}{
			"crlf":           {"#!/bin/sh\r\necho hi\r\n", 0o755, "Windows"},
			"no-interpreter": {"#!/no/such\n", 0o755, "/no/such"},
			"no-shebang":     {"echo hi\n", 0o755, "exec format error"},
			"not-executable": {"#!/bin/sh\n", 0o644, "ermission denied"},
		} {
			file := filepath.Join(dir, name)
			e.must(os.WriteFile(file, []byte(script.text), script.mode))
			e.must(os.Chmod(file, script.mode))
			c := p.create(name, func(c *ctrConfig) { c.Command = []string{"/script"} }, mounts(&runtimeapi.Mount{ContainerPath: "/script", HostPath: file}))
			_, err := e.cri.StartContainer(e.Context(), &runtimeapi.StartContainerRequest{ContainerId: c.id})
			if err == nil || !strings.Contains(err.Error(), script.says) {
				e.Errorf("%s: %v, want %q", name, err, script.says)
			}
			s := c.status()
			if s.State != runtimeapi.ContainerState_CONTAINER_EXITED || s.ExitCode != 128 || s.Reason != "StartError" || !strings.Contains(s.Message, script.says) {
				e.Errorf("%s: %v, code %d, reason %q, message %q", name, s.State, s.ExitCode, s.Reason, s.Message)
			}
		}
		long := p.create("long", func(c *ctrConfig) { c.Command = []string{"/bin/echo", strings.Repeat("x", 200<<10)} })
		_, err := e.cri.StartContainer(e.Context(), &runtimeapi.StartContainerRequest{ContainerId: long.id})
		e.refused("an argument longer than the kernel takes", err, codes.InvalidArgument, "rgument list too long")
		if s := long.status(); s.ExitCode != 128 || s.Reason != "StartError" {
			e.Errorf("an argument longer than the kernel takes: code %d, reason %q", s.ExitCode, s.Reason)
		}
	})
}

// TestCopyContents: a source that ends in "/." is what is in the directory, as other programs'
// cp has it.
func TestCopyContents(t *testing.T) {
	start(t, []string{byName}, func(e env) {
		c := e.pod("copy", nil).start("c", idle())
		from := filepath.Join(e.n.Dir, "copy-from")
		to, err := os.MkdirTemp(e.n.Home, "copy-to")
		e.must(err)
		e.must(os.MkdirAll(filepath.Join(from, "sub"), 0o755))
		e.must(os.WriteFile(filepath.Join(from, "sub", "file"), []byte("in"), 0o644))
		cp := func(source, target string) {
			e.Helper()
			if out, err := e.n.Subpod("cp", source, target); err != nil {
				e.Errorf("cp %s %s: %v: %s", source, target, err, out)
			}
		}
		cp(from+"/.", c.id+":/tmp")
		e.equal("in /tmp", c.sh("ls /tmp; cat /tmp/sub/file"), "sub\nin")
		cp(from+"/.", c.id+":/tmp/new")
		e.equal("in a new directory", c.sh("cat /tmp/new/sub/file"), "in")
		cp(c.id+":/tmp/new/.", to)
		if got, err := os.ReadFile(filepath.Join(to, "sub", "file")); err != nil || string(got) != "in" {
			e.Errorf("out of the container: %q, %v", got, err)
		}
		if _, err := e.n.Subpod("cp", filepath.Join(from, "sub", "file")+"/.", c.id+":/tmp"); err == nil {
			e.Error("the contents of a file were copied")
		}
	})
}
