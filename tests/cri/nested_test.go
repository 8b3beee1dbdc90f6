package cri

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/tests/node"
	"github.com/subpod/subpod/tests/registry"
)

// nested is a command that starts another one as root of a user namespace with
// mount and network namespaces of its own, as in a container, with the data
// directory on a file system of the given size in MiB.
func nested(size int) []string {
	script := fmt.Sprintf(`ip link set lo up; mkdir -p "$HOME/.local/share/subpod"
		mount -t tmpfs -o size=%dm,mode=0700 small "$HOME/.local/share/subpod"; exec "$@"`, size)
	return []string{"unshare", "--map-root-user", "--map-auto", "--mount", "--net", "--pid", "--fork", "--mount-proc", "--kill-child", "sh", "-c", script, "sh"}
}

// child returns the process that runs in the namespaces of unshare.
func child(t *testing.T, pid int) string {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil || len(strings.Fields(string(data))) == 0 {
		t.Fatalf("children of %d: %q, %v", pid, data, err)
	}
	first := strings.Fields(string(data))[0]
	if _, err := strconv.Atoi(first); err != nil {
		t.Fatal(err)
	}
	return first
}

// TestNested: in a user namespace that someone else has made, the daemon serves
// without making another one. A pull that fills the disk says so and leaves
// nothing.
func TestNested(t *testing.T) {
	n := node.Start(t, node.Options{
		Prefix:     nested(8),
		Registries: "unqualified-search-registries = [\"docker.io\"]\n[[registry]]\nlocation = \"127.0.0.1:5000\"\ninsecure = true\n",
		Config:     "[node]\nuplink = \"none\"\n",
	})
	inner := child(t, n.PID())
	maps := func(pid string) string {
		data, err := os.ReadFile("/proc/" + pid + "/uid_map")
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	}
	if server := n.For(t).Server(); maps(strconv.Itoa(server)) != maps(inner) {
		t.Errorf("the server runs in a user namespace of its own:\n%s", maps(strconv.Itoa(server)))
	}
	if out, err := n.Subpod("load", "oci-archive:"+node.Path(t, node.Images)+"/busybox.oci.tar"); err != nil {
		t.Fatalf("%s: %v", out, err)
	}
	p := runPod(t, n, "nested", nil)
	id := p.run("c", sh("echo in a nest; exit 6"))
	if s := waitExited(t, n, id).Status; s.ExitCode != 6 {
		t.Errorf("exit code %d", s.ExitCode)
	}
	expect(t, "logs", n.Crictl("logs", id), "in a nest")

	// The registry must be in the same network namespace, where every port is free.
	reg, err := node.StartRegistry(t, 5000, "nsenter", "-t", inner, "-U", "-n", "--preserve-credentials")
	if err != nil {
		t.Fatal(err)
	}
	defer reg.Stop()
	fullDisk(t, n, reg)
}

func fullDisk(t *testing.T, n *node.Node, reg *registry.Registry) {
	image := reg.Addr + "/registry.k8s.io/e2e-test-images/httpd:2.4.39-4"
	cri := n.CRI()
	used := func() uint64 {
		fs, err := cri.ImageFsInfo(t.Context(), &runtimeapi.ImageFsInfoRequest{})
		if err != nil || len(fs.ImageFilesystems) == 0 {
			t.Fatalf("ImageFsInfo: %v, %v", fs, err)
		}
		return fs.ImageFilesystems[0].UsedBytes.GetValue()
	}
	before := used()
	_, err := cri.PullImage(t.Context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: image}})
	if status.Code(err) != codes.ResourceExhausted || !strings.Contains(err.Error(), "no space left on device") {
		t.Errorf("a pull onto a full disk: %v, want ResourceExhausted and the reason", err)
	}
	if out := n.Crictl("images"); strings.Contains(out, "httpd") {
		t.Errorf("half an image is listed:\n%s", out)
	}
	if after := used(); after > before+256<<10 {
		t.Errorf("the failed pull has left %d bytes", after-before)
	}
	expect(t, "the daemon still serves", n.Crictl("version"), "subpod")
}
