package attack

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/tests/node"
)

// TestAudit: whatever reaches into a container or beyond it leaves a line in the log
// that says who, what and which container, without a secret.
func TestAudit(t *testing.T) {
	n := node.Start(t, node.Options{Config: node.Bridge})
	cri := n.CRI()
	const secret = "correct-horse-battery"
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	_, err := cri.PullImage(t.Context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: node.Busybox}})
	must(err)
	namespaces := &runtimeapi.NamespaceOption{Network: runtimeapi.NamespaceMode_NODE, Pid: runtimeapi.NamespaceMode_CONTAINER}
	config := &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Name: "audited", Namespace: "tests", Uid: "u"}, LogDirectory: filepath.Join(n.Dir, "logs"), Annotations: map[string]string{"a": secret},
		Linux: &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: namespaces, Privileged: true}},
	}
	pod, err := cri.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: config})
	must(err)
	t.Cleanup(func() {
		_, _ = cri.RemovePodSandbox(context.Background(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: pod.PodSandboxId})
	})
	made, err := cri.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: pod.PodSandboxId, SandboxConfig: config, Config: &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: "c"}, Image: &runtimeapi.ImageSpec{Image: node.Busybox}, LogPath: "c.log",
		Command: []string{"sh", "-c", "trap 'exit 0' TERM; while :; do sleep 0.1; done # " + secret},
		Envs:    []*runtimeapi.KeyValue{{Key: "PASSWORD", Value: []byte(secret)}},
		Mounts:  []*runtimeapi.Mount{{HostPath: n.Home, ContainerPath: "/home"}},
		Linux:   &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{NamespaceOptions: namespaces, Privileged: true}},
	}})
	must(err)
	_, err = cri.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: made.ContainerId})
	must(err)
	_, err = cri.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: made.ContainerId, Cmd: []string{"echo", secret}, Timeout: 60})
	must(err)
	_, err = cri.Exec(t.Context(), &runtimeapi.ExecRequest{ContainerId: made.ContainerId, Cmd: []string{"cat", secret}, Stdout: true})
	must(err)
	_, err = cri.Attach(t.Context(), &runtimeapi.AttachRequest{ContainerId: made.ContainerId, Stdout: true})
	must(err)
	_, err = cri.PortForward(t.Context(), &runtimeapi.PortForwardRequest{PodSandboxId: pod.PodSandboxId, Port: []int32{80}})
	must(err)
	if _, err := n.Subpod("exec", made.ContainerId, "true", secret); err != nil {
		t.Fatal(err)
	}
	if _, err := n.Subpod("cp", made.ContainerId+":/etc/passwd", filepath.Join(n.Home, "passwd")); err != nil {
		t.Fatal(err)
	}
	// From inside of the node, as a kubelet: the process is known.
	n.Enter(node.Path(t, "bin/subpod"), "exec", made.ContainerId, "ls")

	audit := func() (lines []string) {
		for line := range strings.Lines(n.Log()) {
			if strings.Contains(line, "msg=audit") {
				lines = append(lines, line)
			}
		}
		return lines
	}
	const name = "name=tests/audited/c"
	for _, want := range [][]string{
		{"action=run-pod", "client.uid=0", "name=tests/audited", "privileged=true", "node_namespaces=network"},
		{"action=create-container", name, "privileged=true", "host_paths=" + n.Home + ":rw"},
		{"action=exec", name, "id=" + made.ContainerId, "command=echo", "words=2"},
		{"action=exec", name, "command=cat"},
		{"action=attach", name},
		{"action=port-forward", "name=tests/audited", "ports=80"},
		{"action=exec", name, "command=true", "client.pid=0"},
		{"action=copy-out", name, "path=/etc/passwd"},
		{"action=exec", name, "command=ls", "client.program=subpod"},
	} {
		node.Eventually(t, "the log has it", func() error { // it comes through a pipe
			lines := audit()
			if err := hasLine(lines, want); err != nil {
				return fmt.Errorf("%w in:\n%s", err, strings.Join(lines, ""))
			}
			return nil
		})
	}
	if log := n.Log(); strings.Contains(log, secret) {
		t.Errorf("a secret in the log:\n%s", log)
	}
}

func hasLine(lines, words []string) error {
	for _, line := range lines {
		missing := false
		for _, w := range words {
			missing = missing || !strings.Contains(line, w)
		}
		if !missing {
			return nil
		}
	}
	return fmt.Errorf("no line with %q", words)
}
