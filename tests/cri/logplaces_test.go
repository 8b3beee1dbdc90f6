package cri

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/subpod/subpod/tests/node"
)

// minimalView has the node show no more than it needs.
var minimalView = node.Options{Config: "[node]\nview = \"auto\"\n"}

// TestLogPlaces: who uses crictl on the host finds the logs in the directory that the pod
// names, there or not yet, also where the node does not get that as a whole; a directory
// that the node may not have is an error.
func TestLogPlaces(t *testing.T) {
	n := node.Start(t, minimalView)
	n.Crictl("pull", busybox)
	home := filepath.Join(n.Dir, "home") // the daemon's
	unique := filepath.Base(n.Dir)
	run := func(t *testing.T, dir, path string) (id string, err error) {
		n := n.For(t)
		config := n.File(unique+"-pod.json", podConfig(n, "logs", obj{"log_directory": dir}))
		pod := n.Crictl("runp", config)
		t.Cleanup(func() { n.TryCrictl("rmp", "-f", pod) })
		c, err := n.TryCrictl("create", pod, n.File(unique+"-c.json", containerConfig("c", sh("echo written"), obj{"log_path": path})), config)
		if err != nil {
			return c, err
		}
		c = strings.TrimSpace(c)
		n.Crictl("start", c)
		waitExited(t, n, c)
		if got := n.Crictl("logs", c); got != "written" {
			t.Errorf("logs: %q", got)
		}
		file, err := os.ReadFile(filepath.Join(dir, path))
		if err != nil || strings.Count(string(file), "written") != 1 {
			t.Errorf("%s on the host: %q, %v", path, file, err)
		}
		n.Crictl("rmp", "-f", pod)
		return c, nil
	}
	for name, dir := range map[string]string{
		"below tmp": filepath.Join("/tmp", unique), "tmp": "/tmp",
		"below home": filepath.Join(home, unique), "deep below home": filepath.Join(home, unique+"-x", "pod"), "home": home,
	} {
		t.Run(name, func(t *testing.T) {
			for range 2 { // again, after the first has been removed
				for _, path := range []string{unique + ".log", unique + "-d/0.log"} {
					if out, err := run(t, dir, path); err != nil {
						t.Fatalf("create: %v: %s", err, out)
					}
					_ = os.RemoveAll(filepath.Join(dir, filepath.Dir(path), unique+".log"))
					_ = os.RemoveAll(filepath.Join(dir, unique+"-d"))
				}
				if dir != home && dir != "/tmp" {
					_ = os.RemoveAll(dir)
				}
			}
			_ = os.Remove(filepath.Join(home, unique+"-x"))
		})
	}
	hidden := filepath.Join(home, ".logs")
	if _, err := run(t, hidden, "c.log"); err == nil || !strings.Contains(err.Error(), "log_directory") || !strings.Contains(err.Error(), "node.host_paths") {
		t.Errorf("logs in %s: %v", hidden, err)
	}
	if _, err := os.Stat(hidden); err == nil {
		t.Errorf("%s was made", hidden)
	}
}

// TestMountsOfTheHome: a mount of what the node has in the home's place would show a
// container an empty directory, and lose what it writes there. It is refused.
func TestMountsOfTheHome(t *testing.T) {
	n := node.Start(t, minimalView)
	n.Crictl("pull", busybox)
	home := filepath.Join(n.Dir, "home") // the daemon's
	config := n.File("home-pod.json", podConfig(n, "home", nil))
	pod := n.Crictl("runp", config)
	t.Cleanup(func() { n.TryCrictl("rmp", "-f", pod) })
	if err := os.MkdirAll(filepath.Join(home, ".hidden"), 0o755); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		home: "no client outside", filepath.Dir(home): "no client outside", filepath.Join(home, ".hidden"): "needs an entry",
		filepath.Join(home, "missing"): "no such file", "/tmp": "", "/run": "",
	} {
		file := n.File("home-c.json", containerConfig("c", sh("true"), obj{"mounts": []obj{{"host_path": path, "container_path": "/x"}}}))
		out, err := n.TryCrictl("create", pod, file, config)
		if (err != nil) != (want != "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v: %s", path, err, out)
		}
		if err == nil {
			n.Crictl("rm", "-f", strings.TrimSpace(out))
		}
	}
}
