package cri

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/subpod/subpod/tests/node"
)

// TestWalk goes through crictl's commands in the order in which a person would.
func TestWalk(t *testing.T) {
	n := node.Start(t, node.Options{})
	t.Run("socket", func(t *testing.T) {
		info, err := os.Stat(n.Socket)
		if err != nil {
			t.Fatal(err)
		}
		if mode := info.Mode().Perm(); mode != 0o600 {
			t.Errorf("mode of %s is %o, want 600", n.Socket, mode)
		}
	})
	t.Run("version", func(t *testing.T) {
		expect(t, "version", n.For(t).Crictl("version"), "Version:  0.1.0", "RuntimeName:  subpod", "RuntimeVersion:  ", "RuntimeApiVersion:  v1")
	})
	t.Run("info", func(t *testing.T) { walkInfo(t, n.For(t)) })
	var imageID string
	t.Run("images", func(t *testing.T) { imageID = walkImages(t, n.For(t)) })
	if imageID == "" {
		t.Fatal("no image, no pod")
	}
	noLeaks(t, n)
	p := runPod(t, n, "walk", nil, obj{"hostname": "walker"})
	t.Run("pods", func(t *testing.T) { walkPods(t, n.For(t), p.in(n.For(t))) })
	t.Run("container", func(t *testing.T) { walkContainer(t, n.For(t), p.in(n.For(t)), imageID) })
	t.Run("outcomes", func(t *testing.T) { walkOutcomes(t, n.For(t), p.in(n.For(t))) })
	t.Run("remove", func(t *testing.T) { walkRemove(t, n.For(t), p.in(n.For(t))) })
}

func walkInfo(t *testing.T, n *node.Node) {
	var info struct {
		Status struct {
			Conditions []struct {
				Type    string
				Status  bool
				Reason  string
				Message string
			}
		}
		RuntimeHandlers []struct{ Name string }
	}
	n.CrictlJSON(&info, "info")
	ready := map[string]bool{}
	for _, c := range info.Status.Conditions {
		ready[c.Type] = c.Status
	}
	if !ready["RuntimeReady"] || !ready["NetworkReady"] {
		t.Errorf("conditions %+v, want RuntimeReady and NetworkReady", info.Status.Conditions)
	}
	handlers := map[string]bool{}
	for _, h := range info.RuntimeHandlers {
		handlers[h.Name] = true
	}
	if !handlers["crun"] || !handlers["runc"] {
		t.Errorf("runtime handlers %v, want crun and runc", handlers)
	}
}

func walkImages(t *testing.T, n *node.Node) string {
	expect(t, "pull", n.Crictl("pull", "busybox"), "Image is up to date for ")
	n.Crictl("pull", "registry.k8s.io/pause:3.9")
	table := n.Crictl("images")
	expect(t, "images", table, "docker.io/library/busybox", "latest", "registry.k8s.io/pause", "3.9")
	var image struct {
		Status struct {
			ID, Size              string
			RepoTags, RepoDigests []string
		}
		Info any
	}
	n.CrictlJSON(&image, "inspecti", "-o", "json", busybox)
	id := strings.TrimPrefix(image.Status.ID, "sha256:")
	if !hex64.MatchString(id) {
		t.Errorf("image ID %q", image.Status.ID)
	}
	if len(image.Status.RepoTags) != 1 || image.Status.RepoTags[0] != busybox {
		t.Errorf("repoTags %v, want %s", image.Status.RepoTags, busybox)
	}
	if len(image.Status.RepoDigests) != 1 || !regexp.MustCompile(`^docker.io/library/busybox@sha256:[0-9a-f]{64}$`).MatchString(image.Status.RepoDigests[0]) {
		t.Errorf("repoDigests %v", image.Status.RepoDigests)
	}
	if image.Status.Size == "" || image.Status.Size == "0" {
		t.Errorf("size %q", image.Status.Size)
	}
	for _, ref := range []string{id, id[:12], image.Status.RepoDigests[0], "busybox"} {
		if out := n.Crictl("inspecti", "-o", "json", ref); !strings.Contains(out, id) {
			t.Errorf("inspecti %s is about another image: %s", ref, out)
		}
	}
	expect(t, "imagefsinfo", n.Crictl("imagefsinfo"), "mountpoint", "usedBytes")
	expect(t, "rmi", n.Crictl("rmi", "registry.k8s.io/pause:3.9"), "Deleted: registry.k8s.io/pause:3.9")
	if out := n.Crictl("images"); strings.Contains(out, "pause") {
		t.Errorf("the removed image is listed:\n%s", out)
	}
	if _, err := n.TryCrictl("inspecti", "registry.k8s.io/pause:3.9"); err == nil {
		t.Error("inspecti finds the removed image")
	}
	return id
}

func walkPods(t *testing.T, n *node.Node, p *pod) {
	expect(t, "pods", n.Crictl("pods"), p.id[:13], "Ready", "walk", "tests")
	if out := n.Crictl("pods", "-q", "--label", "app=walk", "--namespace", "tests", "--state", "ready"); out != p.id {
		t.Errorf("pods by label, namespace and state: %q, want %s", out, p.id)
	}
	if out := n.Crictl("pods", "-q", "--label", "app=other"); out != "" {
		t.Errorf("pods with another label: %q", out)
	}
	var status struct {
		Status struct {
			State       string
			Network     struct{ IP string }
			Annotations map[string]string
			Metadata    struct{ Name, Namespace, UID string }
		}
	}
	n.CrictlJSON(&status, "inspectp", "-o", "json", p.id)
	s := status.Status
	if s.State != "SANDBOX_READY" || s.Network.IP == "" || s.Metadata.Name != "walk" || s.Metadata.UID != "uid-walk" {
		t.Errorf("inspectp: %+v", s)
	}
	if s.Annotations["example.com/note"] != "kept as it is" {
		t.Errorf("annotations %v", s.Annotations)
	}
	if out := n.Crictl("runp", p.config); out != p.id {
		t.Errorf("runp once more with the same configuration: %s, want the same pod %s", out, p.id)
	}
}

func walkContainer(t *testing.T, n *node.Node, p *pod, imageID string) {
	mount := filepath.Join(n.Dir, "mounted")
	if err := os.WriteFile(mount, []byte("from the host\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	id := p.create("main", sh(`echo "hello from $NAME"; echo oops >&2; trap 'echo got TERM; exit 7' TERM; while :; do sleep 0.1; done`), obj{
		"envs":        []obj{{"key": "NAME", "value": "subpod"}},
		"working_dir": "/tmp",
		"mounts":      []obj{{"container_path": "/mounted", "host_path": mount, "readonly": true}},
	})
	if !hex64.MatchString(id) {
		t.Fatalf("create printed %q", id)
	}
	if state := inspect(n, id).Status.State; state != "CONTAINER_CREATED" {
		t.Errorf("state after create: %s", state)
	}
	if out := n.Crictl("start", id); out != id {
		t.Errorf("start printed %q", out)
	}
	expect(t, "ps", n.Crictl("ps"), id[:13], "Running", "main", p.id[:13])
	s := inspect(n, id)
	if s.Status.State != "CONTAINER_RUNNING" || strings.TrimPrefix(s.Status.ImageID, "sha256:") != imageID || s.Status.Image.Image != busybox {
		t.Errorf("inspect: %+v", s.Status)
	}
	if s.Status.LogPath != filepath.Join(p.logs, "main/0.log") {
		t.Errorf("log path %q", s.Status.LogPath)
	}
	if _, err := time.Parse(time.RFC3339Nano, s.Status.StartedAt); err != nil || strings.HasPrefix(s.Status.StartedAt, "1970") {
		t.Errorf("startedAt %q: %v", s.Status.StartedAt, err)
	}
	eventually(t, "logs", func() error {
		if out, err := n.TryCrictl("logs", id); err != nil || !strings.Contains(out, "hello from subpod") {
			return errors.New(out)
		}
		return nil
	})
	logFormat(t, s.Status.LogPath)
	for _, c := range []struct {
		name, want string
		argv       []string
	}{
		{"hostname", "walker", []string{"hostname"}},
		{"working directory", "/tmp", []string{"pwd"}},
		{"environment", "subpod", sh("echo $NAME")},
		{"mount", "from the host", []string{"cat", "/mounted"}},
		{"user", "uid=0(root)", []string{"id"}},
	} {
		expect(t, c.name, n.Crictl(append([]string{"exec", "-s", id}, c.argv...)...), c.want)
	}
	if _, err := n.TryCrictl("exec", "-s", id, "sh", "-c", "echo x >/mounted"); err == nil {
		t.Error("a read-only mount was written to")
	}
	if out, err := n.TryCrictl("exec", "-s", id, "sh", "-c", "exit 42"); err == nil || !strings.Contains(err.Error(), "42") {
		t.Errorf("exit code of exec: %q, %v", out, err)
	}
	if _, err := n.TryCrictl("exec", "-s", "--timeout", "1", id, "sleep", "30"); err == nil || !strings.Contains(err.Error(), "DeadlineExceeded") {
		t.Errorf("timeout of exec: %v", err)
	}
	expect(t, "stats", n.Crictl("stats", "-o", "json", id), `"writableLayer"`, `"memory"`)
	if out := n.Crictl("stop", "-t", "10", id); out != id {
		t.Errorf("stop printed %q", out)
	}
	end := inspect(n, id).Status
	if end.State != "CONTAINER_EXITED" || end.ExitCode != 7 || end.Reason != "Error" {
		t.Errorf("after stop: %s, exit code %d, reason %q; want EXITED, 7, Error", end.State, end.ExitCode, end.Reason)
	}
	expect(t, "logs", n.Crictl("logs", id), "got TERM")
	n.Crictl("stop", id) // once more: nothing to do
	if out := n.Crictl("rm", id); out != id {
		t.Errorf("rm printed %q", out)
	}
	if _, err := n.TryCrictl("inspect", id); err == nil {
		t.Error("the removed container is still there")
	}
}

// logFormat checks the kubelet's format: time, stream, F or P, text.
func logFormat(t *testing.T, path string) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	line := regexp.MustCompile(`^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+(Z|[+-]\d\d:\d\d) (stdout|stderr) F (hello from subpod|oops)$`)
	for text := range strings.Lines(string(data)) {
		if !line.MatchString(strings.TrimSuffix(text, "\n")) {
			t.Errorf("%s: %q is not in the kubelet's log format", path, text)
		}
	}
}

func walkOutcomes(t *testing.T, n *node.Node, p *pod) {
	for _, c := range []struct {
		name    string
		command []string
		code    int
		reason  string
	}{
		{"completed", []string{"true"}, 0, "Completed"},
		{"failed", sh("exit 3"), 3, "Error"},
	} {
		s := waitExited(t, n, p.run(c.name, c.command)).Status
		if s.ExitCode != c.code || s.Reason != c.reason {
			t.Errorf("%s: exit code %d, reason %q; want %d, %q", c.name, s.ExitCode, s.Reason, c.code, c.reason)
		}
		if s.FinishedAt < s.StartedAt {
			t.Errorf("%s: finished %s, before its start %s", c.name, s.FinishedAt, s.StartedAt)
		}
	}
	// What ignores SIGTERM is killed when its time is over, not before.
	stubborn := p.run("stubborn", sh("trap '' TERM; touch /ready; while :; do sleep 0.1; done"))
	eventually(t, "it ignores SIGTERM", func() error {
		_, err := n.TryCrictl("exec", "-s", stubborn, "test", "-e", "/ready")
		return err
	})
	begin := time.Now()
	n.Crictl("stop", "-t", "1", stubborn)
	if took := time.Since(begin); took < time.Second {
		t.Errorf("stop with 1 s of grace took %v", took)
	}
	if s := inspect(n, stubborn).Status; s.ExitCode != 137 {
		t.Errorf("exit code of what was killed: %d", s.ExitCode)
	}
	// A child that holds the log open does not hold up Stop: it would for 1,000 s, and
	// crictl gives up after one minute.
	n.Crictl("stop", "-t", "1", p.run("holder", sh("sleep 1000 & wait")))
}

func walkRemove(t *testing.T, n *node.Node, p *pod) {
	running := p.run("running", sleeper())
	if out := n.Crictl("stopp", p.id); !strings.Contains(out, p.id) {
		t.Errorf("stopp printed %q", out)
	}
	if s := inspect(n, running).Status; s.State != "CONTAINER_EXITED" {
		t.Errorf("a container of the stopped pod is %s", s.State)
	}
	expect(t, "pods", n.Crictl("pods", "--id", p.id), "NotReady")
	n.Crictl("stopp", p.id) // once more: nothing to do
	n.Crictl("rmp", p.id)
	if out := n.Crictl("pods", "-q"); out != "" {
		t.Errorf("pods after rmp: %q", out)
	}
	if out := n.Crictl("ps", "-aq"); out != "" {
		t.Errorf("containers after rmp: %q", out)
	}
}

// TestRuntimeHandler runs a pod by runc, and asks for a handler that isn't there.
func TestRuntimeHandler(t *testing.T) {
	n := node.Start(t, node.Options{})
	n.Crictl("pull", busybox)
	noLeaks(t, n)
	p := runPod(t, n, "runc", []string{"--runtime", "runc"})
	s := waitExited(t, n, p.run("c", sh("echo by runc; exit 4"))).Status
	if s.ExitCode != 4 {
		t.Errorf("exit code %d, want 4", s.ExitCode)
	}
	expect(t, "logs", n.Crictl("logs", s.ID), "by runc")
	var pods struct {
		Items []struct{ RuntimeHandler string }
	}
	n.CrictlJSON(&pods, "pods", "-o", "json")
	if len(pods.Items) != 1 || pods.Items[0].RuntimeHandler != "runc" {
		t.Errorf("pods: %+v, want one by runc", pods)
	}
	if _, err := n.TryCrictl("runp", "--runtime", "kata", n.File("kata.json", podConfig(n, "kata"))); err == nil || !strings.Contains(err.Error(), "kata") {
		t.Errorf("unknown handler: %v", err)
	}
}

// TestSecondDaemon: the state has one owner, and the second one is told who.
func TestSecondDaemon(t *testing.T) {
	n := node.Start(t, node.Options{})
	out, err := n.Subpod("daemon")
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		t.Fatalf("the second daemon: %q, %v", out, err)
	}
	if !regexp.MustCompile(`(?i)pid:? *\d+`).MatchString(err.Error()) {
		t.Errorf("it does not say who holds the state: %v", err)
	}
	expect(t, "the first one still serves", n.Crictl("version"), "subpod")
}

// TestSharedPID: containers of the pod see each other's processes, and stopping
// one that has forked does not hang.
func TestSharedPID(t *testing.T) {
	n := node.Start(t, node.Options{})
	n.Crictl("pull", busybox)
	noLeaks(t, n)
	p := runPod(t, n, "shared", nil, obj{"linux": linux(obj{"pid": 0})})
	a := p.run("a", sh("sleep 4321 & wait"), obj{"linux": linux(obj{"pid": 0})})
	b := p.run("b", sleeper(), obj{"linux": linux(obj{"pid": 0})})
	expect(t, "ps in b", n.Crictl("exec", "-s", b, "ps"), "sleep 4321")
	n.Crictl("stop", "-t", "1", a) // crictl gives up after one minute
	if s := inspect(n, b).Status.State; s != "CONTAINER_RUNNING" {
		t.Errorf("the other container is %s", s)
	}
}

// TestEvents: what happens to a container is told to who listens.
func TestEvents(t *testing.T) {
	n := node.Start(t, node.Options{})
	n.Crictl("pull", busybox)
	cmd := n.CrictlCommand(t.Context(), "events", "-o", "json")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	seen := make(chan string, 100)
	go func() {
		defer close(seen)
		for d := json.NewDecoder(out); ; {
			var e struct{ ContainerEventType string }
			if d.Decode(&e) != nil {
				return
			}
			seen <- e.ContainerEventType
		}
	}()
	p := runPod(t, n, "events", nil)
	want := map[string]bool{"CONTAINER_CREATED_EVENT": true, "CONTAINER_STARTED_EVENT": true, "CONTAINER_STOPPED_EVENT": true, "CONTAINER_DELETED_EVENT": true}
	// crictl does not say when it listens: containers come until it has told of all.
	for i, timeout := 0, time.After(node.Converge); len(want) > 0; i++ {
		n.Crictl("rm", waitExited(t, n, p.run(fmt.Sprint("c", i), []string{"true"})).Status.ID)
		for more := true; more && len(want) > 0; {
			select {
			case e, ok := <-seen:
				if !ok {
					t.Fatalf("crictl has ended, and not told: %v", want)
				}
				delete(want, e)
			case <-time.After(time.Second):
				more = false
			case <-timeout:
				t.Fatalf("not told: %v", want)
			}
		}
	}
	cmd.Process.Signal(os.Interrupt)
	cmd.Wait()
}
