package cri

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/subpod/subpod/tests/node"
)

// A CI job in a container that has been given nothing: no privileges, no device,
// no subordinate IDs, no login. What it needs is said in docs/ci.md: no seccomp
// filter, an unmasked /proc, and a volume for the images.
const ciJob = `exec 2>&1
	id
	subpod doctor -q; echo "doctor ends with $?"
	subpod --storage-driver auto daemon >/tmp/daemon.log 2>&1 &
	for i in $(seq 600); do subpod info >/tmp/info 2>&1 && break; sleep 0.1; done
	subpod load oci-archive:/archive.tar
	subpod run --rm busybox sh -c 'echo "inner $(id -u) of"; cat /proc/self/uid_map; ip -o address show; touch /written && exit 5'
	echo "run ends with $?"
	subpod run --rm --user 70000 busybox true; echo "another user ends with $?"
	kill $!; wait $!; echo "the daemon ends with $?"
	cat /tmp/daemon.log
`

// ciContainer runs ciJob in a container of subpod's own, whose programs are this
// machine's, and returns its log.
func ciContainer(t *testing.T, n *node.Node, user, namespaces obj) string {
	t.Helper()
	name := strings.ToLower(strings.ReplaceAll(filepath.Base(t.Name()), "_", "-"))
	volume := filepath.Join(n.Dir, name)
	// As a kubelet makes an emptyDir: open to whoever the container runs as.
	if err := os.Mkdir(volume, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(volume, 0o777); err != nil {
		t.Fatal(err)
	}
	mount := func(host, container string) obj {
		return obj{"host_path": host, "container_path": container, "readonly": true}
	}
	security := obj{"seccomp": obj{"profile_type": 1}, "masked_paths": []string{}, "readonly_paths": []string{}}
	merge(security, []obj{user, {"namespace_options": namespaces}})
	p := runPod(t, n, name, nil, obj{"linux": linux(namespaces)})
	id := p.run("job", []string{"/usr/bin/sh", "-c", ciJob}, obj{
		"envs": []obj{{"key": "PATH", "value": "/subpod:/usr/sbin:/usr/bin"}, {"key": "HOME", "value": "/home/ci"}},
		"mounts": []obj{mount("/usr", "/usr"), mount("/usr/bin", "/bin"), mount("/usr/lib", "/lib"), mount("/usr/lib64", "/lib64"),
			mount(filepath.Dir(node.Path(t, node.Subpod)), "/subpod"),
			mount(filepath.Join(node.Path(t, node.Images), "busybox.oci.tar"), "/archive.tar"),
			{"host_path": volume, "container_path": "/home/ci"}},
		"linux": obj{"security_context": security},
	})
	waitExited(t, n, id)
	return n.Crictl("logs", id)
}

// TestCI: subpod in an unprivileged container of subpod's, as an ordinary user
// with one ID and as the container's root, who has all the IDs that the container
// has.
func TestCI(t *testing.T) {
	n := node.Start(t, node.Options{})
	n.Crictl("pull", busybox)
	t.Run("user", func(t *testing.T) {
		out := ciContainer(t, n.For(t), obj{"run_as_user": obj{"value": 1000}}, ownPID)
		expect(t, "the job's log", out, "uid=1000", "inner 0 of", " 1000          1\n", "run ends with 5",
			"the daemon ends with 0", "user ID 70000 is outside of the user namespace: it has the IDs 0-0", "another user ends with 125",
			"the node has one user and one group ID", "pods have no network of their own", "driver=native")
		expect(t, "doctor", out, "the node will have one ID", "pods share the network that the daemon is started in")
	})
	// As a pod with hostUsers: false, on which docs/ci.md relies.
	t.Run("user namespace", func(t *testing.T) {
		ids := []obj{{"container_id": 0, "host_id": 65536, "length": 65536}}
		out := ciContainer(t, n.For(t), obj{"run_as_user": obj{"value": 1000}},
			obj{"pid": 1, "userns_options": obj{"mode": 0, "uids": ids, "gids": ids}})
		expect(t, "the job's log", out, "uid=1000", "inner 0 of", " 1000          1\n", "run ends with 5", "the daemon ends with 0")
	})
	t.Run("root", func(t *testing.T) {
		out := ciContainer(t, n.For(t), obj{}, ownPID)
		expect(t, "the job's log", out, "uid=0", "inner 0 of", "run ends with 5", "the daemon ends with 0", "pods have no network of their own")
		if strings.Contains(out, "one user and one group ID") {
			t.Errorf("root of the container has one ID only:\n%s", out)
		}
	})
}
