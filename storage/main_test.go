package storage

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/subpod/subpod/tests/nstest"
)

// childMode names what a re-executed test binary does instead of running tests.
const childMode = "SUBPOD_STORAGE_CHILD"

func TestMain(m *testing.M) {
	if os.Getenv(childMode) == confinedMode {
		os.Exit(runConfined())
	}
	if os.Getenv(childMode) == fuserMode && os.Args[0] != os.Getenv(fusermountEnv) {
		os.Exit(runFuser())
	}
	Dispatch() // first of all: pulls re-execute this binary
	switch os.Getenv(childMode) {
	case "":
		os.Exit(nstest.Main(m, nstest.Options{PID: true, IDs: 65536}))
	case "fuzz": // references need no namespace, and fuzzing passes descriptors on
		os.Exit(m.Run())
	default:
		os.Exit(runChild(os.Getenv(childMode)))
	}
}

// testOptions returns options for a store below dir that depend on nothing of
// this machine.
func testOptions(t testing.TB, dir, driver string) Options {
	t.Helper()
	home := filepath.Join(dir, "home")
	conf := filepath.Join(home, ".config", "containers")
	if err := os.MkdirAll(filepath.Join(conf, "certs.d"), 0o755); err != nil {
		t.Fatal(err)
	}
	return Options{
		Root: filepath.Join(dir, "root"), RunRoot: filepath.Join(dir, "run"), Driver: driver,
		Home: home, PullTimeout: 10 * time.Second,
		RegistriesConf: writeFile(t, filepath.Join(conf, "registries.conf"), ""),
		PolicyJSON:     writeFile(t, filepath.Join(conf, "policy.json"), `{"default":[{"type":"insecureAcceptAnything"}]}`),
		AuthFile:       writeFile(t, filepath.Join(conf, "auth.json"), `{}`),
		CertsDir:       filepath.Join(conf, "certs.d"),
		Log:            slog.New(slog.NewTextHandler(testWriter{t}, &slog.HandlerOptions{Level: slog.LevelInfo})),
	}
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(p)))
	return len(p), nil
}

func openStore(t testing.TB, o Options) *Store {
	t.Helper()
	s, err := Open(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeStore(t, s) })
	return s
}

// closeStore removes all root file systems, closes the store and checks that no
// mount and no process of it is left.
func closeStore(t testing.TB, s *Store) {
	t.Helper()
	ctx := context.Background()
	ids, err := s.Rootfs.IDs(ctx)
	if err != nil {
		t.Error(err)
	}
	for _, id := range ids {
		if err := s.Rootfs.Delete(ctx, id); err != nil {
			t.Error(err)
		}
	}
	ids, err = s.Rootfs.ImageMountIDs(ctx)
	if err != nil {
		t.Error(err)
	}
	for _, id := range ids {
		if err := s.Rootfs.UnmountImage(ctx, id); err != nil {
			t.Error(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	wantNoLeaks(t, s.layers.opts.Root)
}

func writeFile(t testing.TB, path, content string) string {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func mustRead(t testing.TB, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// wantNoLeaks fails the test when a mount below root or a live process that
// names root in its arguments is left. FUSE processes get a moment to end.
func wantNoLeaks(t testing.TB, root string) {
	t.Helper()
	mounts := mountsBelow(t, root)
	if len(mounts) > 0 {
		t.Errorf("mounts left: %v", mounts)
	}
	deadline := time.Now().Add(patience)
	for {
		procs := processesNaming(root)
		if len(procs) == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Errorf("processes left: %v", procs)
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func mountsBelow(t testing.TB, root string) []string {
	t.Helper()
	var found []string
	for line := range strings.Lines(mustRead(t, "/proc/self/mountinfo")) {
		if f := strings.Fields(line); strings.HasPrefix(f[4], root+"/") {
			found = append(found, f[4])
		}
	}
	return found
}

// processesNaming lists live processes (no zombies) with text in their command
// line.
func processesNaming(text string) []string {
	var found []string
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, d := range dirs {
		cmdline, _ := os.ReadFile(d + "/cmdline")
		if strings.Contains(string(cmdline), text) {
			found = append(found, filepath.Base(d)+" "+strings.ReplaceAll(string(cmdline), "\x00", " "))
		}
	}
	return found
}

// containerID makes a container ID for tests.
func containerID(n byte) string {
	return strings.Repeat(string([]byte{"0123456789abcdef"[n>>4], "0123456789abcdef"[n&15]}), 32)
}
