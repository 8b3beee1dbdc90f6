package attack

import (
	"context"
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/tests/node"
)

// victim is a daemon with a container whose names, labels and arguments a stranger has
// chosen.
type victim struct {
	*testing.T
	n    *node.Node
	cri  node.Client
	pod  string
	conf *runtimeapi.PodSandboxConfig
}

// escapes would clear the screen, set the title, paste keys, and write a line of their own.
const escapes = "\x1b[2J\x1b]0;title\a\u009b31m\r\nNAME  fake\t\x7f\u202e"

var ownProcesses = &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER}

func newVictim(t *testing.T) *victim {
	t.Helper()
	n := node.Start(t, node.Options{Config: node.Bridge})
	v := &victim{T: t, n: n, cri: n.CRI()}
	if _, err := v.cri.PullImage(t.Context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: node.Busybox}}); err != nil {
		t.Fatal(err)
	}
	v.conf = &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: "web" + escapes, Namespace: "shop" + escapes, Uid: "uid" + escapes},
		LogDirectory: filepath.Join(n.Dir, "logs"),
		Labels:       map[string]string{"app" + escapes: "value" + escapes}, Annotations: map[string]string{"note": escapes},
		Linux: &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: ownProcesses}},
	}
	p, err := v.cri.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: v.conf})
	if err != nil {
		t.Fatal(err)
	}
	v.pod = p.PodSandboxId
	t.Cleanup(func() {
		_, _ = v.cri.RemovePodSandbox(context.Background(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: v.pod})
	})
	return v
}

// start runs a container that idles.
func (v *victim) start(edit func(*runtimeapi.ContainerConfig)) (string, error) {
	v.Helper()
	ctr := &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: "main"}, Image: &runtimeapi.ImageSpec{Image: node.Busybox}, LogPath: "main.log",
		Command: []string{"sh", "-c", "trap 'exit 0' TERM; while :; do sleep 0.1; done"},
		Linux:   &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{NamespaceOptions: ownProcesses}},
	}
	edit(ctr)
	c, err := v.cri.CreateContainer(v.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: v.pod, SandboxConfig: v.conf, Config: ctr})
	if err != nil {
		return "", err
	}
	_, err = v.cri.StartContainer(v.Context(), &runtimeapi.StartContainerRequest{ContainerId: c.ContainerId})
	return c.ContainerId, err
}

// TestTerminalEscapes: what strangers have named does nothing to the terminal on which it
// is shown.
func TestTerminalEscapes(t *testing.T) {
	v := newVictim(t)
	id, err := v.start(func(c *runtimeapi.ContainerConfig) {
		c.Metadata.Name = "main" + escapes
		c.Command = append(c.Command, "argument"+strings.ReplaceAll(escapes, "\u009b", ""))
		c.Labels = map[string]string{escapes: escapes}
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"ps"}, {"ps", "-a"}, {"pods"}, {"images"}, {"top", id}, {"stats", "--no-stream"}, {"events"},
		{"inspect", "-o", "table", id}, {"inspect", "-o", "table", "--type", "pod", v.pod}, {"inspect", id},
		{"inspect", "no-such" + escapes}, {"stop", "none" + escapes}, {"pull", "docker.io/none" + escapes},
	} {
		out, err := v.n.Subpod(args...)
		if err != nil { // it has what the command wrote to stderr
			_, text, _ := strings.Cut(err.Error(), ": exit status ")
			out += text
		}
		shown := strings.Map(func(r rune) rune {
			if r == '\n' || r == '\t' && args[0] == "inspect" {
				return -1
			}
			return r
		}, out)
		if strings.ContainsAny(shown, "\x1b\a\r\x7f\u009b\u202e") {
			t.Errorf("subpod %q: %q", args, out)
		}
		for line := range strings.Lines(out) {
			if strings.HasPrefix(line, "NAME  fake") {
				t.Errorf("subpod %q: a stranger wrote the line %q", args, line)
			}
		}
	}
	if out, _ := v.n.Subpod("ps"); !strings.Contains(out, `\x1b[2J`) {
		t.Errorf("the name was not shown, so that nothing has been tried: %q", out)
	}
}

// TestSecretsInErrors: a value that is refused is neither in the answer nor in the log.
func TestSecretsInErrors(t *testing.T) {
	v := newVictim(t)
	const secret = "hunter2-7c1e"
	try := func(what string, edit func(*runtimeapi.ContainerConfig)) {
		t.Helper()
		if _, err := v.start(edit); err == nil {
			t.Errorf("%s was accepted", what)
		} else if strings.Contains(err.Error(), secret) {
			t.Errorf("%s: the answer has the secret: %v", what, err)
		}
	}
	env := func(key string, value []byte) func(*runtimeapi.ContainerConfig) {
		return func(c *runtimeapi.ContainerConfig) { c.Envs = []*runtimeapi.KeyValue{{Key: key, Value: value}} }
	}
	try("a value that is not UTF-8", env("PASSWORD", []byte(secret+"\xff")))
	try("a value with a zero byte", env("PASSWORD", []byte(secret+"\x00")))
	try("a value in the name", env("PASSWORD="+secret, nil))
	try("an argument with a zero byte", func(c *runtimeapi.ContainerConfig) { c.Args = []string{"--password", secret + "\x00"} })
	try("a mount option", func(c *runtimeapi.ContainerConfig) {
		c.Mounts = []*runtimeapi.Mount{{ContainerPath: "/mnt", HostPath: v.n.Dir, MountOptions: []string{"password=" + secret}}}
	})
	for what, auth := range map[string]*runtimeapi.AuthConfig{
		"a password":  {Username: "me", Password: secret},
		"auth":        {Auth: base64.StdEncoding.EncodeToString([]byte("me:" + secret))},
		"broken auth": {Auth: secret},
		"a token":     {RegistryToken: secret},
	} {
		_, err := v.cri.PullImage(t.Context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: "127.0.0.1:1/none:1"}, Auth: auth})
		if err == nil || strings.Contains(err.Error(), secret) {
			t.Errorf("%s: the answer to a pull: %v", what, err)
		}
	}
	for _, ref := range []string{"https://me:" + secret + "@127.0.0.1:1/image", "me:" + secret + "@127.0.0.1:1/image:tag"} {
		_, err := v.cri.PullImage(t.Context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}})
		if err == nil || strings.Contains(err.Error(), secret) {
			t.Errorf("a pull by an address with a password: %v", err)
		}
	}
	file := filepath.Join(v.n.Home, "env")
	if err := os.WriteFile(file, []byte("A=b\n"+secret+" of two words\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := v.n.Subpod("run", "--rm", "--env-file", file, node.Busybox, "true"); err == nil || strings.Contains(err.Error(), secret) || !strings.Contains(err.Error(), "line 2") {
		t.Errorf("a bad line of an environment file: %v", err)
	}
	if log := v.n.Log(); strings.Contains(log, secret) {
		t.Error("the daemon's log has the secret")
	}
}

// TestCopyDropsSetID: a program that leaves a container does not act as the user who has
// copied it.
func TestCopyDropsSetID(t *testing.T) {
	v := newVictim(t)
	id, err := v.start(func(*runtimeapi.ContainerConfig) {})
	if err != nil {
		t.Fatal(err)
	}
	const script = "mkdir /x && cp /bin/busybox /x/shell && chmod 6755 /x/shell && ln /x/shell /x/hard && cp -r /x /y && chmod 6777 /y"
	if _, err := v.cri.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"sh", "-c", script}}); err != nil {
		t.Fatal(err)
	}
	to := filepath.Join(v.n.Home, "copy")
	if err := os.Mkdir(to, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, from := range []string{"/x", "/y", "/x/shell"} {
		if out, err := v.n.Subpod("cp", id+":"+from, to); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	for _, file := range []string{"x/shell", "x/hard", "y", "shell"} {
		info, err := os.Lstat(filepath.Join(to, file))
		if err != nil {
			t.Error(err)
		} else if info.Mode()&(os.ModeSetuid|os.ModeSetgid) != 0 {
			t.Errorf("%s has the mode %v", file, info.Mode())
		}
	}
	if out, err := v.n.Subpod("cp", filepath.Join(to, "shell"), id+":/plain"); err != nil {
		t.Errorf("back: %v: %s", err, fmt.Sprint(out))
	}
}
