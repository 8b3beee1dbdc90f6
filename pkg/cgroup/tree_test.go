package cgroup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const treeMarker = "SUBPOD_TEST_CGROUP_TREE"

const testUser = 1500000

// TestDelegatedTree works as an unprivileged user in a real, delegated cgroup v2
// tree: root makes and gives away a directory, enters it, and shows the tree at
// the usual place in a mount namespace of the test's own.
func TestDelegatedTree(t *testing.T) {
	if dir := os.Getenv(treeMarker); dir != "" {
		insideTree(t)
		return
	}
	if os.Geteuid() != 0 {
		t.Skip("delegating a cgroup directory needs root here; the test itself runs without")
	}
	mount := cgroup2Mount(t)
	dir, err := os.MkdirTemp(mount, "subpod-test-")
	if err != nil {
		t.Skipf("this root may not make cgroups: %v", err)
	}
	delegation := Delegation{Root: mount}
	defer func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		_ = kill(dir)
		if err := delegation.Remove(ctx, dir); err != nil {
			t.Errorf("clean up: %v", err)
		}
	}()
	for _, name := range []string{"", "cgroup.procs", "cgroup.subtree_control", "cgroup.threads"} {
		if err := os.Chown(filepath.Join(dir, name), testUser, testUser); err != nil {
			t.Fatal(err)
		}
	}
	fd, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer fd.Close()
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestDelegatedTree$", "-test.v")
	cmd.Env = append(os.Environ(), treeMarker+"="+dir)
	maps := []syscall.SysProcIDMap{{HostID: testUser, Size: 65536}}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWUSER | unix.CLONE_NEWNS, UidMappings: maps, GidMappings: maps,
		Credential: &syscall.Credential{}, UseCgroupFD: true, CgroupFD: int(fd.Fd()),
	}
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: TestDelegatedTree") {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Logf("%s", out)
}

func cgroup2Mount(t *testing.T) string {
	for _, dir := range []string{Mount, Mount + "/unified"} {
		var st unix.Statfs_t
		if unix.Statfs(dir, &st) == nil && st.Type == unix.CGROUP2_SUPER_MAGIC {
			return dir
		}
	}
	t.Skip("no cgroup v2 file system is mounted on this machine")
	return ""
}

func insideTree(t *testing.T) {
	// In a namespace of our own the tree goes where it belongs.
	source := filepath.Dir(os.Getenv(treeMarker))
	check(t, unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""))
	if source != Mount {
		check(t, unix.Mount(source, Mount, "", unix.MS_BIND|unix.MS_REC, ""))
	}
	dir := filepath.Join(Mount, filepath.Base(os.Getenv(treeMarker)))
	if f := Detect("auto", ""); f.Enabled() {
		t.Errorf("a cgroup with processes in it cannot be divided: %+v", f)
	}
	const leaf = "leaf"
	check(t, os.Mkdir(filepath.Join(dir, leaf), 0o755))
	check(t, writeFile(filepath.Join(dir, leaf), "cgroup.procs", "0"))
	check(t, passOn(dir, words(dir, "cgroup.controllers")))
	f := Detect("auto", leaf)
	if f.Version != 2 || !f.Delegated || f.Driver != DriverCgroupfs || f.Root != dir {
		t.Fatalf("%+v, want root %s", f, dir)
	}
	containerInTree(t, f)
}

func containerInTree(t *testing.T, f Delegation) {
	pod, err := f.PodPath("/kubepods/pod1", "p")
	check(t, err)
	check(t, pod.Make())
	check(t, pod.Make())
	path, dir := pod.Container("c")
	if want := fmt.Sprintf("/%s/kubepods/pod1/c", filepath.Base(f.Root)); path != want {
		t.Errorf("cgroupsPath %q, want %q", path, want)
	}
	check(t, os.Mkdir(dir, 0o755))
	burn := exec.Command("/bin/sh", "-c", "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done; sleep 60")
	fd, err := os.Open(dir)
	check(t, err)
	defer fd.Close()
	burn.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(fd.Fd())}
	check(t, burn.Start())
	var s Stats
	for range 500 {
		if s, err = Read(dir); err != nil || s.CPU.UsageUsec > 10000 {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	check(t, err)
	if s.CPU.UsageUsec <= 10000 || s.CPU.UserUsec == 0 {
		t.Errorf("CPU %+v", s.CPU)
	}
	if f.Has("memory") != (s.Memory != nil) {
		t.Errorf("memory %+v with controllers %v", s.Memory, f.Controllers)
	}
	t.Logf("CPU %+v, pressure %+v, IO %+v", s.CPU, s.CPU.Pressure, s.IO)

	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	if err := f.Remove(ctx, pod.Dir); !errors.Is(err, unix.EBUSY) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("removing a cgroup with a process in it: %v", err)
	}
	check(t, kill(dir))
	_ = burn.Wait()
	ctx, cancel = context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	check(t, f.Remove(ctx, pod.Dir))
	check(t, f.Remove(ctx, pod.Dir))
	check(t, kill(dir))
	if _, err := Read(dir); !errors.Is(err, ErrGone) {
		t.Errorf("reading what is gone: %v", err)
	}
	for _, bad := range []string{f.Root, filepath.Dir(f.Root), "/tmp", ""} {
		if err := f.Remove(ctx, bad); err == nil {
			t.Errorf("%q was removed", bad)
		}
	}
}

// kill sends SIGKILL to every process in dir and below. A cgroup that is gone has none.
func kill(dir string) error {
	if err := writeFile(dir, "cgroup.kill", "1"); err != nil && !isGone(err) {
		return err
	}
	return nil
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestReadAll parses every file, in the form that the kernel's cgroup-v2.rst gives.
// Real controllers are there in the machine that the VM tests boot.
func TestReadAll(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"cpu.stat":       "usage_usec 10\nuser_usec 6\nsystem_usec 4\nnr_periods 3\nnr_throttled 2\nthrottled_usec 1\n",
		"cpu.pressure":   "some avg10=1.50 avg60=0.25 avg300=0.01 total=77\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=5\n",
		"memory.current": "1000\n", "memory.max": "max\n", "memory.swap.current": "5\n", "memory.swap.max": "6\n",
		"memory.stat": "anon 1\ninactive_file 300\n", "memory.events": "oom 2\noom_kill 1\n",
		"pids.current": "3\n", "pids.max": "max\n",
		"io.stat": "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0\n8:16 rbytes=10 wbytes=20 rios=30 wios=40\n",
	} {
		check(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644))
	}
	s, err := Read(dir)
	check(t, err)
	if c := s.CPU; c.UsageUsec != 10 || c.UserUsec != 6 || c.SystemUsec != 4 || c.Periods != 3 || c.ThrottledPeriods != 2 || c.ThrottledUsec != 1 ||
		c.Pressure.Some != (Stall{1.5, 0.25, 0.01, 77}) || c.Pressure.Full.TotalUsec != 5 {
		t.Errorf("CPU %+v %+v", c, c.Pressure)
	}
	if m := s.Memory; m.Current != 1000 || m.Limit != 0 || m.Swap != 5 || m.SwapLimit != 6 || m.WorkingSet() != 700 || m.OOMKills != 1 || m.Pressure != nil {
		t.Errorf("memory %+v", m)
	}
	if *s.Pids != (Pids{3, 0}) || s.IO.ReadBytes != 11 || s.IO.WriteBytes != 22 || s.IO.Reads != 33 || s.IO.Writes != 44 {
		t.Errorf("pids %+v io %+v", s.Pids, s.IO)
	}
}
