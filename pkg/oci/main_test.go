package oci

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/moby/sys/mountinfo"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	monitorlib "github.com/subpod/subpod/pkg/monitor"
	"github.com/subpod/subpod/pkg/monitor/keeper"
	"github.com/subpod/subpod/pkg/monitor/wire"
	"github.com/subpod/subpod/pkg/proc"
	"github.com/subpod/subpod/tests/nstest"
)

// The tests run real containers. They need a user namespace with 65536 IDs and
// mount, PID, network, IPC and UTS namespaces of their own, so the test binary
// runs itself again in such namespaces (nstest), twice: PID 1 there reaps.
const (
	namespaceStage = "SUBPOD_OCI_TEST_STAGE"
	monitorStage   = "SUBPOD_OCI_TEST_MONITOR" // set in the node's monitor
	monitorDir     = "SUBPOD_OCI_TEST_DIR"     // where its socket is
)

func TestMain(m *testing.M) {
	if os.Getenv(monitorStage) != "" {
		os.Exit(monitorlib.Run("test", slog.New(slog.NewTextHandler(os.Stderr, nil))))
	}
	if os.Getenv(namespaceStage) == "tests" {
		os.Exit(m.Run())
	}
	os.Exit(nstest.Main(m, nstest.Options{
		Net: true, PID: true, IPC: true, UTS: true, IDs: 65536,
		// It never returns: PID 1 reaps while the tests run in a child.
		Setup: func() error { os.Exit(runTests()); return nil },
	}))
}

// prepareNamespace does what the node does: shared propagation and a hybrid
// cgroup tree hidden behind a tmpfs.
func prepareNamespace() error {
	mounts := []struct {
		source, target, fstype string
		flags                  uintptr
	}{
		{"", "/", "", unix.MS_REC | unix.MS_SHARED},
	}
	for _, m := range mounts {
		if err := unix.Mount(m.source, m.target, m.fstype, m.flags, ""); err != nil {
			return fmt.Errorf("mount %s on %s: %w", m.source, m.target, err)
		}
	}
	var st unix.Statfs_t
	if err := unix.Statfs("/sys/fs/cgroup", &st); err == nil && st.Type != unix.CGROUP2_SUPER_MAGIC {
		if err := unix.Mount("tmpfs", "/sys/fs/cgroup", "tmpfs", 0, "mode=755"); err != nil {
			return fmt.Errorf("hide /sys/fs/cgroup: %w", err)
		}
	}
	return nil
}

// runTests is PID 1 of the namespace: it reaps what is orphaned, such as
// conmon, as rootlesskit does in the node, while the tests run in a child.
func runTests() int {
	if err := prepareNamespace(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	dir, err := os.MkdirTemp("", "monitor")
	if err == nil {
		err = errors.Join(os.Setenv(namespaceStage, "tests"), os.Setenv(monitorDir, dir))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	keep, err := keeper.New(keeper.Options{
		Socket: filepath.Join(dir, wire.Socket), Program: []string{filepath.Join(dir, "program")},
		Env: append(os.Environ(), monitorStage+"=1"), Log: slog.New(slog.NewTextHandler(os.Stderr, nil)),
	})
	if err == nil {
		// A file that can be replaced, as by an upgrade.
		err = installMonitor(filepath.Join(dir, "program"))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	go keep.Run()
	tests, err := syscall.ForkExec("/proc/self/exe", os.Args, &syscall.ProcAttr{Env: os.Environ(), Files: []uintptr{0, 1, 2}})
	if err != nil {
		fmt.Fprintln(os.Stderr, "run the tests:", err)
		return 1
	}
	for {
		var ws syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &ws, 0, nil)
		if err != nil && err != syscall.EINTR {
			fmt.Fprintln(os.Stderr, "wait for the tests:", err)
			return 1
		}
		if pid == tests {
			return ws.ExitStatus()
		}
		keep.Reaped(pid, unix.WaitStatus(ws))
	}
}

// installMonitor makes a copy of the test program, which is the monitor there.
func installMonitor(path string) error {
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		return err
	}
	if err := os.WriteFile(path+".new", self, 0o755); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// eachMonitor runs a test with conmon, and with the node's monitor.
func eachMonitor(t *testing.T, test func(t *testing.T, e *Executor)) {
	for _, kind := range []string{MonitorConmon, MonitorNode} {
		t.Run(kind, func(t *testing.T) { test(t, executorWith(t, kind)) })
	}
}

// executor makes an Executor with conmon, or with the node's monitor in a test whose name
// says so: see eachHandler and eachMonitor.
func executor(t testing.TB) *Executor {
	if strings.Contains(t.Name(), MonitorNode) {
		return executorWith(t, MonitorNode)
	}
	return executorWith(t, MonitorConmon)
}

// executorWith makes an Executor with both runtimes and, at the end of the test,
// proves that nothing of it is left.
func executorWith(t testing.TB, kind string) *Executor {
	t.Helper()
	dir, err := os.MkdirTemp("", "oci")
	if err != nil {
		t.Fatal(err)
	}
	before := openFiles(t)
	e, err := New(context.Background(), Options{
		KeptMounts:    []string{keptIn(t, dir)},
		Handlers:      map[string]Handler{"crun": {Name: "crun"}, "runc": {Name: "runc"}},
		RunDir:        dir,
		Monitor:       kind,
		MonitorSocket: filepath.Join(os.Getenv(monitorDir), wire.Socket), MonitorProgram: filepath.Join(os.Getenv(monitorDir), "program"),
		CgroupManager: "disabled",
		Log:           slog.New(slog.NewTextHandler(testLog{t}, &slog.HandlerOptions{Level: slog.LevelWarn})),
	})
	if err != nil {
		t.Fatal(err)
	}
	e.mounts.from = 0
	if kind == MonitorNode && !e.ownMonitor {
		t.Fatal("the node's monitor cannot be used")
	}
	mounts := ourMounts(t)
	t.Cleanup(func() {
		checkNothingLeft(t, e)
		e.mounts.forget()
		if after := ourMounts(t); !slices.Equal(after, mounts) {
			t.Errorf("mounts changed: before %q, after %q", mounts, after)
		}
		for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
			after := openFiles(t)
			if len(after) <= len(before) {
				break
			}
			if time.Now().After(deadline) {
				t.Errorf("open files grew:\nbefore %q\nafter %q", before, after)
				break
			}
		}
		forgetKept(t, dir)
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return e
}

type testLog struct{ t testing.TB }

func (l testLog) Write(b []byte) (int, error) {
	l.t.Log(strings.TrimSpace(string(b)))
	return len(b), nil
}

func checkNothingLeft(t testing.TB, e *Executor) {
	t.Helper()
	for _, dir := range []string{e.exitDir, e.execDir, e.handlers["crun"].root, e.handlers["runc"].root} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Error(err)
		}
		for _, d := range entries {
			t.Errorf("left behind: %s/%s", dir, d.Name())
		}
	}
	_ = filepath.WalkDir(e.runDir, func(p string, d fs.DirEntry, err error) error {
		if err == nil && d.Type()&(fs.ModeSocket|fs.ModeNamedPipe) != 0 {
			t.Errorf("left behind: %s", p)
		}
		return nil
	})
	if ids, err := (nodeMonitor{e}).watched(context.Background()); err != nil || len(ids) > 0 {
		t.Errorf("the monitor still watches %q: %v", ids, err)
	}
	all, _ := proc.PIDs()
	for _, pid := range all {
		if _, _, ok := e.ownConmon(pid, argsOf(pid)); ok {
			t.Errorf("conmon %d is left", pid)
		}
	}
}

func openFiles(t testing.TB) []string {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	var files []string
	for _, d := range entries {
		l, err := os.Readlink("/proc/self/fd/" + d.Name())
		// Go's poller appears with its first use and stays.
		if err == nil && !strings.HasPrefix(l, "/proc/") && l != "anon_inode:[eventpoll]" && l != "anon_inode:[eventfd]" {
			files = append(files, l)
		}
	}
	return files
}

// ourMounts lists the mounts below the tests' temporary directory: others come and
// go as the machine likes.
func ourMounts(t testing.TB) []string {
	t.Helper()
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(filepath.Clean(os.TempDir())))
	if err != nil {
		t.Fatal(err)
	}
	var points []string
	for _, m := range mounts {
		points = append(points, m.Mountpoint)
	}
	return points
}

// container describes a test container.
type container struct {
	handler   string // "" = crun
	args      []string
	pid       string // "own" (default), "host" or a path
	terminal  bool
	stdin     bool
	stdinOnce bool
	noLog     bool
	bpf       string
	change    func(*specs.Spec)
}

func sh(script string) []string { return []string{"/bin/sh", "-c", script} }

// box is a created container.
type box struct {
	*Executor
	t    testing.TB
	id   string
	ctr  Container
	log  string
	spec *specs.Spec
}

func newID() string {
	b := make([]byte, 32)
	_, _ = rand.Read(b)
	return hex.EncodeToString(b)
}

// create makes a container and deletes it at the end of the test.
func create(t testing.TB, e *Executor, c container) *box {
	t.Helper()
	b, err := tryCreate(t, e, c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Delete(context.Background(), b.id, b.ctr); err != nil {
			t.Error(err)
		}
	})
	return b
}

func tryCreate(t testing.TB, e *Executor, c container) (*box, error) {
	t.Helper()
	s := createSpec(t, e, c)
	b := &box{Executor: e, t: t, id: s.ID, log: s.LogPath, spec: s.Spec}
	var err error
	b.ctr, err = createAs(context.Background(), e, s)
	return b, err
}

// creation is what Begin and Create are called with.
type creation struct {
	BeginSpec
	Spec *specs.Spec
	BPF  string
}

func createSpec(t testing.TB, e *Executor, c container) creation {
	t.Helper()
	s := creation{
		BeginSpec: BeginSpec{
			ID: newID(), Handler: c.handler, Terminal: c.terminal, Stdin: c.stdin, StdinOnce: c.stdinOnce,
		},
		Spec: baseSpec(t, e, c), BPF: c.bpf,
	}
	if s.Handler == "" {
		s.Handler = "crun"
	}
	s.Bundle = filepath.Join(e.runDir, "containers", s.ID)
	if !c.noLog {
		s.LogPath = filepath.Join(t.TempDir(), "0.log")
	}
	return s
}

// createAs creates a container as a caller does: again as often as it is told.
func createAs(ctx context.Context, e *Executor, s creation) (Container, error) {
	for {
		p, err := e.Begin(ctx, s.BeginSpec)
		if err != nil {
			return Container{}, err
		}
		c, err := p.Create(ctx, s.Spec, s.BPF)
		if !errors.Is(err, ErrRetry) {
			return c, err
		}
	}
}

// rootfs makes one root file system per Executor, from Debian's busybox-static.
func rootfs(t testing.TB, e *Executor) string {
	t.Helper()
	dir := filepath.Join(e.runDir, "rootfs")
	if _, err := os.Stat(dir); err == nil {
		return dir
	}
	for _, d := range []string{"bin", "proc", "dev", "tmp", "etc", "sys", "root"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(filepath.Join(dir, "tmp"), 0o1777); err != nil {
		t.Fatal(err)
	}
	busybox, err := os.ReadFile("../../.cache/images/busybox")
	if err != nil {
		t.Fatalf("%v: make it by 'make test-images'", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "bin/busybox"), busybox, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"sh", "true", "sleep", "cat", "stty", "head", "yes", "echo", "setsid", "id", "chmod", "mkdir", "rmdir", "ps", "rm", "mkfifo", "touch"} {
		if err := os.Symlink("busybox", filepath.Join(dir, "bin", name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "bin/notexec"), []byte("text\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	return dir
}

func baseSpec(t testing.TB, e *Executor, c container) *specs.Spec {
	t.Helper()
	args := c.args
	if args == nil {
		args = []string{"/bin/sleep", "1000"}
	}
	caps := []string{"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_SETUID", "CAP_SETGID", "CAP_KILL", "CAP_SETPCAP"}
	s := &specs.Spec{
		Version: "1.0.2",
		Root:    &specs.Root{Path: rootfs(t, e)},
		Process: &specs.Process{
			Args: args, Cwd: "/", Env: []string{"PATH=/bin", "TERM=xterm"},
			Capabilities: &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps},
		},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
			{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"}},
		},
		Linux: &specs.Linux{Namespaces: []specs.LinuxNamespace{{Type: "mount"}, {Type: "ipc"}, {Type: "uts"}}},
	}
	switch c.pid {
	case "", "own":
		s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: "pid"})
	case "host":
	default:
		s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: "pid", Path: c.pid})
	}
	if c.change != nil {
		c.change(s)
	}
	return s
}

func (b *box) start() *box {
	b.t.Helper()
	if err := b.Start(context.Background(), b.id, b.ctr); err != nil {
		b.t.Fatal(err)
	}
	return b
}

func (b *box) wait() Exit {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	x, err := b.Wait(ctx, b.id, b.ctr)
	if err != nil {
		b.t.Fatal(err)
	}
	return x
}

func (b *box) process(args ...string) *specs.Process {
	p := *b.spec.Process
	p.Args = args
	return &p
}

func (b *box) exec(timeout time.Duration, args ...string) (ExecResult, error) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	return b.ExecSync(ctx, b.id, b.ctr, ExecSpec{Process: b.process(args...), Timeout: timeout})
}

// logLines returns the log as "stream tag text".
func (b *box) logLines() []string {
	b.t.Helper()
	data, err := os.ReadFile(b.log)
	if err != nil {
		b.t.Fatal(err)
	}
	var lines []string
	for line := range strings.Lines(string(data)) {
		stamp, rest, ok := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		if _, err := time.Parse(time.RFC3339Nano, stamp); err != nil || !ok {
			b.t.Fatalf("log line %q does not begin with a time: %v", line, err)
		}
		lines = append(lines, rest)
	}
	return lines
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within a minute: %s", what)
		}
	}
}

var handlers = []string{"crun", "runc"}

func eachHandler(t *testing.T, test func(t *testing.T, handler string)) {
	eachHandlerOf(t, MonitorConmon, test)
	eachHandlerOf(t, MonitorNode, test)
}

func eachHandlerOf(t *testing.T, monitor string, test func(t *testing.T, handler string)) {
	for _, h := range slices.Clone(handlers) {
		t.Run(h+"-"+monitor, func(t *testing.T) { test(t, h) })
	}
}
