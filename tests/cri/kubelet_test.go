package cri

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/subpod/subpod/tests/node"
)

// kubelet stands for a kubelet: it makes what that makes for a pod, and looks at what the
// containers have made of it.
type kubelet struct {
	root, logs string                              // its root directory, and the pod's for logs
	sh         func(script string) (string, error) // where it runs
}

// TestKubeletPaths: a kubelet in the node, and one of the user's on the host, find their
// volumes, plugins' directories, logs and messages in the containers, whatever the node
// shows of the host.
func TestKubeletPaths(t *testing.T) {
	for _, view := range []string{"auto", "full"} {
		t.Run(view, func(t *testing.T) {
			n := node.Start(t, node.Options{Config: fmt.Sprintf("[node]\nview = %q\n", view)})
			n.Crictl("pull", busybox)
			for name, k := range map[string]kubelet{
				"node": {"/var/lib/kubelet", "/var/log/pods/tests_in-the-node_uid", func(script string) (string, error) {
					return n.TryEnter("sh", "-ec", script)
				}},
				"host": {filepath.Join(n.Dir, "kubelet"), filepath.Join(n.Dir, "logs/tests_on-the-host_uid"), func(script string) (string, error) {
					out, err := exec.Command("sh", "-ec", script).CombinedOutput()
					return string(out), err
				}},
			} {
				t.Run(name, func(t *testing.T) { k.test(t, n.For(t), name) })
			}
		})
	}
}

func (k kubelet) do(t *testing.T, script string) string {
	t.Helper()
	out, err := k.sh(script)
	if err != nil {
		t.Fatalf("%s: %v: %s", script, err, out)
	}
	return out
}

func (k kubelet) test(t *testing.T, n *node.Node, name string) {
	pod := filepath.Join(k.root, "pods/uid")
	at := func(name string) string { return filepath.Join(pod, name) }
	plugins := filepath.Join(k.root, "plugins_registry")
	k.do(t, fmt.Sprintf(`mkdir -p %[1]s/volumes/kubernetes.io~empty-dir/v %[1]s/volumes/kubernetes.io~configmap/c/..data %[1]s/containers/c %[2]s %[3]s
echo 10.0.0.1 web >%[1]s/etc-hosts; : >%[1]s/containers/c/message
echo value >%[1]s/volumes/kubernetes.io~configmap/c/..data/key; ln -s ..data/key %[1]s/volumes/kubernetes.io~configmap/c/key`, pod, plugins, k.logs))
	config := n.File("kubelet-"+name+".json", podConfig(n, "kubelet-"+name, obj{"log_directory": k.logs}))
	id := n.Crictl("runp", config)
	t.Cleanup(func() { n.TryCrictl("rmp", "-f", id) })
	container := n.File("kubelet-c-"+name+".json", containerConfig("c", sh("cat /etc/hosts /config/key; echo data >/v/file; echo bye >/dev/termination-log; echo socket >/plugins/csi; sleep 0.1"), obj{
		"log_path": "c/0.log",
		"mounts": []obj{
			{"host_path": at("volumes/kubernetes.io~empty-dir/v"), "container_path": "/v"},
			{"host_path": at("volumes/kubernetes.io~configmap/c"), "container_path": "/config", "readonly": true},
			{"host_path": at("etc-hosts"), "container_path": "/etc/hosts"},
			{"host_path": at("containers/c/message"), "container_path": "/dev/termination-log"},
			{"host_path": plugins, "container_path": "/plugins", "propagation": 2},
		},
	}))
	c := n.Crictl("create", id, container, config)
	n.Crictl("start", c)
	if s := waitExited(t, n, c); s.Status.ExitCode != 0 {
		t.Errorf("the container ends with %d: %s", s.Status.ExitCode, k.do(t, "cat "+k.logs+"/c/0.log"))
	}
	for file, want := range map[string]string{
		at("volumes/kubernetes.io~empty-dir/v/file"): "data", at("containers/c/message"): "bye",
		plugins + "/csi": "socket", k.logs + "/c/0.log": "value",
	} {
		if got := k.do(t, "cat "+file); !strings.Contains(got, want) {
			t.Errorf("%s: %q, want %q", file, got, want)
		}
	}
	n.Crictl("rmp", "-f", id)
	k.do(t, fmt.Sprintf("rm -rf %s %s %s", pod, plugins, k.logs))
	if name == "host" {
		_ = os.Remove(k.root)
	}
}
