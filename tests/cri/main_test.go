// Package cri drives the real daemon by the real crictl, as an ordinary user, and
// looks at what comes out.
package cri

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/subpod/subpod/tests/node"
)

// TestMain lets the test binary also be a program in a pod or in another namespace.
func TestMain(m *testing.M) {
	if len(os.Args) > 2 && parts[os.Args[1]] != nil {
		if err := parts[os.Args[1]](os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	node.Main(m)
}

// parts are the programs that the test binary can be, by first argument.
var parts = map[string]func(args []string) error{
	"tell-peers":   tellPeers,
	"ask-peer":     askPeer,
	"answer-names": answerNames,
	"resolve":      resolve,
	"take-much":    takeMuch,
	"much":         much,
}

const (
	busybox = node.Busybox
	nginx   = node.Nginx
)

// obj is a piece of a CRI message in crictl's JSON.
type obj = map[string]any

// podConfig returns the configuration of a pod sandbox; changes are merged in.
func podConfig(n *node.Node, name string, changes ...obj) obj {
	config := obj{
		"metadata":      obj{"name": name, "namespace": "tests", "uid": "uid-" + name, "attempt": 0},
		"log_directory": filepath.Join(n.Dir, "logs", name),
		"labels":        obj{"app": name},
		"annotations":   obj{"example.com/note": "kept as it is"},
		"linux":         linux(ownPID),
	}
	merge(config, changes)
	return config
}

// containerConfig returns the configuration of a busybox container.
func containerConfig(name string, command []string, changes ...obj) obj {
	config := obj{
		"metadata": obj{"name": name, "attempt": 0},
		"image":    obj{"image": busybox},
		"command":  command,
		"log_path": name + "/0.log",
		"labels":   obj{"container": name},
		"linux":    linux(ownPID),
	}
	merge(config, changes)
	return config
}

// ownPID is what the kubelet asks for: the zero value of the field means a PID
// namespace that the pod's containers share.
var ownPID = obj{"pid": 1}

// linux asks for namespaces.
func linux(namespaces obj) obj {
	return obj{"security_context": obj{"namespace_options": namespaces}}
}

func merge(into obj, changes []obj) {
	for _, change := range changes {
		for key, value := range change {
			into[key] = value
		}
	}
}

// pod is a sandbox that a test runs.
type pod struct {
	n      *node.Node
	id     string
	name   string
	config string // path
	logs   string
	peers  string // container of runPeers
}

// runPod starts a sandbox. It is removed at the end of the test.
func runPod(t *testing.T, n *node.Node, name string, args []string, changes ...obj) *pod {
	t.Helper()
	config := podConfig(n, name, changes...)
	p := &pod{n: n, name: name, config: n.File("pod-"+name+".json", config), logs: config["log_directory"].(string)}
	if err := os.MkdirAll(p.logs, 0o700); err != nil {
		t.Fatal(err)
	}
	p.id = n.Crictl(append(append([]string{"runp"}, args...), p.config)...)
	if !hex64.MatchString(p.id) {
		t.Fatalf("runp printed %q, not an ID of 64 hexadecimal digits", p.id)
	}
	t.Cleanup(func() { n.TryCrictl("rmp", "-f", p.id) })
	return p
}

var hex64 = regexp.MustCompile(`^[0-9a-f]{64}$`)

// in returns the same pod for a subtest.
func (p *pod) in(n *node.Node) *pod {
	sub := *p
	sub.n = n
	return &sub
}

// create makes a container of the pod without starting it.
func (p *pod) create(name string, command []string, changes ...obj) string {
	path := p.n.File("container-"+p.name+"-"+name+".json", containerConfig(name, command, changes...))
	return p.n.Crictl("create", p.id, path, p.config)
}

// run makes and starts a container of the pod.
func (p *pod) run(name string, command []string, changes ...obj) string {
	id := p.create(name, command, changes...)
	p.n.Crictl("start", id)
	return id
}

func sh(script string) []string { return []string{"sh", "-c", script} }

// sleeper is a command that ends at SIGTERM.
func sleeper() []string { return sh("trap 'exit 0' TERM; while :; do sleep 0.1; done") }

// containerStatus is what the tests read of crictl inspect.
type containerStatus struct {
	Status struct {
		ID, State, Reason, Message       string
		ImageRef, ImageID, LogPath       string
		ExitCode                         int
		Image                            struct{ Image string }
		CreatedAt, StartedAt, FinishedAt string
		Labels                           map[string]string
		Metadata                         struct{ Name string }
		Mounts                           []struct{ ContainerPath, HostPath string }
	}
	Info map[string]any
}

func inspect(n *node.Node, id string) containerStatus {
	var s containerStatus
	n.CrictlJSON(&s, "inspect", "-o", "json", id)
	return s
}

// waitExited waits for a container to end and returns its status.
func waitExited(t *testing.T, n *node.Node, id string) containerStatus {
	t.Helper()
	var s containerStatus
	eventually(t, "container ends", func() error {
		if s = inspect(n, id); s.Status.State != "CONTAINER_EXITED" {
			return fmt.Errorf("state %s", s.Status.State)
		}
		return nil
	})
	return s
}

// The rig's checks, by short names.
var (
	eventually = node.Eventually
	expect     = node.Contains
)

// noLeaks takes a picture of the inside of the node after one pod has come and
// gone, and compares it with one at the end of the test, when all pods and
// containers are removed. Call it once everything that the test keeps is pulled.
func noLeaks(t *testing.T, n *node.Node) {
	t.Helper()
	p := runPod(t, n, "warm-up", nil)
	p.run("c", []string{"true"})
	n.Crictl("stopp", p.id)
	n.Crictl("rmp", p.id)
	before := n.Look()
	t.Cleanup(func() {
		for _, id := range strings.Fields(n.Crictl("pods", "-q")) {
			n.TryCrictl("rmp", "-f", id)
		}
		n.For(t).NothingLeft(before)
	})
}
