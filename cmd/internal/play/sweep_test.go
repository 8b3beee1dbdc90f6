package play

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/subpod/subpod/cmd/internal/kube"
	"github.com/subpod/subpod/pkg/client"
	"github.com/subpod/subpod/tests/inject"
)

const swept = `
apiVersion: v1
kind: ConfigMap
metadata: {name: conf}
data: {a: b}
---
apiVersion: v1
kind: Pod
metadata: {name: web}
spec:
  containers: [{name: c, image: image, volumeMounts: [{name: d, mountPath: /d}, {name: m, mountPath: /m}]}]
  volumes: [{name: d, emptyDir: {}}, {name: m, configMap: {name: conf}}]
`

// TestMain is the command that is killed, where a test asks for one.
func TestMain(m *testing.M) {
	if socket := os.Getenv("PLAY_TEST_SOCKET"); socket != "" {
		if err := playIn(socket, os.Getenv("PLAY_TEST_DATA")); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println("played")
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func playIn(socket, dir string) error {
	fmt.Println("ready")
	if _, err := bufio.NewReader(os.Stdin).ReadString('\n'); err != nil {
		return err
	}
	c, err := client.Dial(socket)
	if err != nil {
		return err
	}
	set, err := kube.Parse(kube.Source{Text: []byte(swept)})
	if err != nil {
		return err
	}
	return Play(context.Background(), set, Options{
		Client: c, DataDir: filepath.Join(dir, "data"), RunDir: filepath.Join(dir, "run"), Detach: true,
		Report: func(string, ...any) {}, Remove: func(_ context.Context, dir string) error { return os.RemoveAll(dir) },
	})
}

// killedAt runs the command and kills it at the entry of a call, counted from 1, that has
// an effect outside of it; "" when it had fewer, and ended.
func killedAt(t *testing.T, f *fakeServer, o Options, n int) (hit string) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), "PLAY_TEST_SOCKET="+f.socket, "PLAY_TEST_DATA="+filepath.Dir(o.DataDir))
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	r := bufio.NewReader(out)
	if line, err := r.ReadString('\n'); line != "ready\n" {
		t.Fatalf("%q, %v", line, err)
	}
	injection, err := inject.Attach(cmd.Process.Pid, inject.Plan{At: n, Action: inject.Kill})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := in.Write([]byte("\n")); err != nil {
		t.Fatal(err)
	}
	line, _ := r.ReadString('\n')
	report, err := injection.Stop() // first: see inject.Attach
	if err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // or the tracer has reaped it
	if report.Hit == "" && line != "played\n" {
		t.Fatalf("it failed: %s", line)
	}
	return report.Hit
}

// age makes what there is of pods old enough to be swept.
func age(t *testing.T, o Options) {
	t.Helper()
	dirs, err := filepath.Glob(filepath.Join(o.DataDir, "play", "*"))
	if err != nil {
		t.Fatal(err)
	}
	past := time.Now().Add(-2 * sweepAge)
	for _, dir := range dirs {
		if err := os.Chtimes(dir, past, past); err != nil {
			t.Fatal(err)
		}
	}
}

// TestSweep: whenever a command is killed, the next one leaves no file of a pod that is
// not there, and all of one that is.
func TestSweep(t *testing.T) {
	empty := parse(t, podSpec("other", "{containers: [{name: c, image: image}]}"))
	made, lost := 0, 0
	for n := 1; ; n++ {
		f, o := newFake(t)
		hit := killedAt(t, f, o, n)
		if hit == "" { // it has ended by itself, and the pod stays
			hit = "its end"
		}
		age(t, o)
		before := len(f.podNames())
		if err := Down(t.Context(), empty, o); err != nil {
			t.Fatal(err)
		}
		pods := len(f.podNames())
		if pods != before { // the server had not come to the request yet: once more
			n--
			continue
		}
		if pods == 0 {
			lost++
			leftFiles(t, o)
		} else {
			made++
			for _, path := range []string{"play/web-*/volumes/d", "play/web-*/files/volumes/m/a", "logs/web-*"} {
				if found, err := filepath.Glob(filepath.Join(o.DataDir, path)); err != nil || len(found) != 1 {
					t.Errorf("killed at %s, with its pod made: %s: %v, %v", hit, path, found, err)
				}
			}
		}
		if t.Failed() {
			t.Fatalf("killed at %s (%d)", hit, n)
		}
		if hit == "its end" {
			break
		}
	}
	// A kill may also come after the pod was made, since the client has threads that write
	// on their own (answers to what the server sends).
	if lost < 5 || made < 1 {
		t.Errorf("killed %d times before the pod was made, and %d pods", lost, made)
	}
}

// TestSweepSpares: what a command is making is left alone, also when it takes long, and so
// is what a killed one has made a moment ago.
func TestSweepSpares(t *testing.T) {
	f, o := newFake(t)
	other := parse(t, podSpec("other", "{containers: [{name: c, image: image}]}"))
	f.making = func(ctx context.Context, name string) {
		age(t, o)
		if err := Down(ctx, other, o); err != nil {
			t.Error(err)
		}
	}
	if err := Play(t.Context(), parse(t, swept), o); err != nil {
		t.Fatal(err)
	}
	if found, err := filepath.Glob(filepath.Join(o.DataDir, "play/web-*/files/volumes/m/a")); err != nil || len(found) != 1 {
		t.Errorf("it was swept while it was made: %v, %v", found, err)
	}
	killed := filepath.Join(o.DataDir, "play", "killed-1")
	if err := os.MkdirAll(killed, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := Down(t.Context(), other, o); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(killed); err != nil {
		t.Errorf("what was made a moment ago is swept: %v", err)
	}
}
