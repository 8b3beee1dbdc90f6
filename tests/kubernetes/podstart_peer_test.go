package kubernetes

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/subpod/subpod/tests/containerd"
	"github.com/subpod/subpod/tests/node"
)

// containerdSetup lets a kubelet run in containerd's namespaces: what it writes is on the
// disk, and what it mounts is seen by containerd.
const containerdSetup = `echo 1 >/proc/sys/net/ipv4/ip_forward
for dir in /etc/kubernetes /var/lib/kubelet /var/log; do
	mkdir -p "$DIR/node$dir" $dir
	mount --bind "$DIR/node$dir" $dir
done
mount --make-rshared /
`

// joinContainerd makes a worker of a rootless containerd, with the configuration and by the
// command of a worker of subpod's.
func joinContainerd(t *testing.T, like *cluster) *starter {
	t.Helper()
	const name = "containerd"
	registry := node.Registry(t)
	c := containerd.Start(t, containerd.Options{Registry: registry, Setup: containerdSetup})
	c.Client(t) // waits
	child := c.Child(t)
	command := func(ctx context.Context, argv ...string) *exec.Cmd {
		cmd := exec.CommandContext(ctx, "nsenter", append([]string{"--target", strconv.Itoa(child), "--user", "--preserve-credentials",
			"--mount", "--net", "--pid", "--wdns=/", "--"}, argv...)...)
		cmd.Env = append(os.Environ(), "PATH="+*programs+":"+os.Getenv("PATH")+":/usr/sbin:/sbin")
		return cmd
	}
	in := func(argv ...string) (string, error) {
		ctx, cancel := context.WithTimeout(context.Background(), initTimeout)
		defer cancel()
		var stderr bytes.Buffer
		cmd := command(ctx, argv...)
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			err = fmt.Errorf("%s: %w: %s%s", strings.Join(argv, " "), err, out, stderr.String())
		}
		return string(out), err
	}
	replace := strings.NewReplacer(like.Socket, c.Socket(), `"`+like.name+`"`, `"`+name+`"`,
		filepath.Join(like.RunDir, "node/resolv.conf"), "/etc/resolv.conf")
	from, to := filepath.Join(like.DataDir, "kubernetes"), filepath.Join(c.Dir, "node/etc/kubernetes")
	files, err := filepath.Glob(filepath.Join(from, "subpod/patches/*.yaml"))
	must(t, err)
	for _, path := range append(files, filepath.Join(from, "subpod/join.yaml")) {
		data, err := os.ReadFile(path)
		must(t, err)
		path = to + strings.TrimPrefix(path, from)
		must(t, os.MkdirAll(filepath.Dir(path), 0o755))
		must(t, os.WriteFile(path, []byte(replace.Replace(string(data))), 0o600))
	}
	ctx, cancel := context.WithCancel(context.Background())
	kubelet := command(ctx, node.Path(t, node.Subpod), "kubernetes", "kubelet", "--in-node")
	log, err := os.Create(filepath.Join(c.Dir, "kubelet.log"))
	must(t, err)
	kubelet.Stdout, kubelet.Stderr, kubelet.WaitDelay = log, log, time.Second
	must(t, kubelet.Start())
	t.Cleanup(func() {
		cancel()
		_ = kubelet.Wait()
		log.Close()
		if t.Failed() {
			t.Logf("the end of the logs of containerd and its kubelet:\n%s\n%s", c.Log(), tail(log.Name(), 60))
		}
	})
	_, err = in("kubeadm", "join", "--config=/etc/kubernetes/subpod/join.yaml")
	must(t, err)
	return &starter{name: name, what: "containerd " + containerd.Version(t), in: in,
		image: containerd.Reaches(registry + "/" + busybox)}
}
