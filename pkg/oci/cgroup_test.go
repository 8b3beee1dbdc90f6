package oci

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Delete must leave no cgroup, whether or not the runtime is needed for that.
func TestCgroup(t *testing.T) {
	const root = "/sys/fs/cgroup"
	var st unix.Statfs_t
	if err := unix.Statfs(root, &st); err != nil || st.Type != unix.CGROUP2_SUPER_MAGIC || unix.Access(root, unix.W_OK) != nil {
		t.Skip("no cgroup v2 tree is delegated to the tests: they were not started in a user's own scope")
	}
	eachHandler(t, func(t *testing.T, handler string) {
		shared := executor(t)
		e, err := New(context.Background(), Options{
			Handlers: map[string]Handler{handler: {Name: handler}}, RunDir: shared.runDir, CgroupManager: "cgroupfs",
			MonitorSocket: shared.monitorSocket,
			Log:           slog.New(slog.NewTextHandler(testLog{t}, nil)),
		})
		if err != nil {
			t.Fatal(err)
		}
		for _, pid := range []string{"own", "host"} {
			path := "/subpod-test-" + newID()[:8]
			b := create(t, e, container{handler: handler, pid: pid, change: func(s *specs.Spec) { s.Linux.CgroupsPath = path }}).start()
			if procs, err := os.ReadFile(filepath.Join(root, path, "cgroup.procs")); err != nil || strings.TrimSpace(string(procs)) == "" {
				t.Errorf("the container is not in its cgroup: %q, %v", procs, err)
			}
			if r, err := b.exec(0, sh("exit 3")...); err != nil || r.ExitCode != 3 {
				t.Errorf("exec: %+v, %v", r, err)
			}
			if err := b.Signal(context.Background(), b.id, b.ctr, syscall.SIGKILL, false); err != nil {
				t.Error(err)
			}
			b.wait()
			if err := e.Delete(context.Background(), b.id, b.ctr); err != nil {
				t.Error(err)
			}
			if _, err := os.Stat(filepath.Join(root, path)); !os.IsNotExist(err) {
				t.Errorf("cgroup after Delete: %v", err)
			}
		}
	})
}
