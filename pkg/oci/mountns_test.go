package oci

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// keptIn makes a directory for kept mounts in an Executor's, forgetKept takes its mounts away.
func keptIn(t testing.TB, dir string) string {
	t.Helper()
	kept := filepath.Join(dir, "kept")
	check(t, KeepMounts(kept))
	return kept
}

func forgetKept(t testing.TB, dir string) {
	t.Helper()
	for range 2 {
		check(t, unix.Unmount(filepath.Join(dir, "kept"), unix.MNT_DETACH))
	}
}

// forget ends the template.
func (n *mountNamespaces) forget() {
	if template, err := n.template(); err == nil {
		template.Close()
	}
}

// keeping mounts a tmpfs for each name in the Executor's directory for kept mounts.
func keeping(t *testing.T, e *Executor, names ...string) (dir string) {
	t.Helper()
	dir = e.mounts.kept[0][0]
	check(t, KeepMounts(dir)) // as the next server does
	for _, name := range names {
		keepTmpfs(t, filepath.Join(dir, name))
	}
	return dir
}

func keepTmpfs(t *testing.T, path string) {
	t.Helper()
	check(t, os.MkdirAll(path, 0o755))
	check(t, unix.Mount("tmpfs", path, "tmpfs", 0, ""))
	check(t, os.WriteFile(filepath.Join(path, "name"), []byte(filepath.Base(path)), 0o644))
	t.Cleanup(func() { check(t, unix.Unmount(path, unix.MNT_DETACH)) })
}

// A runtime sees what is mounted for its own container, and nothing of others; what was
// mounted before there was a template, by a server that has ended, is no exception.
func TestMountNamespace(t *testing.T) {
	eachHandler(t, func(t *testing.T, handler string) {
		e := executor(t)
		dir := keeping(t, e, "own", "before")
		link := filepath.Join(e.runDir, "link") // as /var/run often is
		check(t, os.Symlink(dir, link))
		e.mounts.kept[0][0] = link
		seen := filepath.Join(e.runDir, "seen-"+handler)
		of := dir // what the container's mount is named by
		c := container{handler: handler, args: []string{"/bin/cat", "/own/name"}, change: func(s *specs.Spec) {
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/own", Type: "bind", Source: filepath.Join(of, "own"), Options: []string{"rbind"}})
			s.Hooks = &specs.Hooks{CreateRuntime: []specs.Hook{{Path: "/bin/sh", Args: []string{"sh", "-c", "cat /proc/self/mountinfo >" + seen}}}}
		}}
		for i := range 2 { // the first one makes the template
			of = []string{dir, link}[i]
			keepTmpfs(t, filepath.Join(dir, "other"+itoa(i)))
			b := create(t, e, c).start()
			if x := b.wait(); x.Code != 0 {
				t.Fatalf("exit %+v: %q", x, b.logLines())
			}
			if got := b.logLines(); !slices.Equal(got, []string{"stdout P own"}) {
				t.Errorf("the container's mount has %q", got)
			}
			mounts, err := os.ReadFile(seen)
			check(t, err)
			if !strings.Contains(string(mounts), " "+dir+"/own ") {
				t.Errorf("its own mount is not in the runtime's namespace:\n%s", mounts)
			}
			for _, other := range []string{"before", "other0", "other1"} {
				if strings.Contains(string(mounts), dir+"/"+other) {
					t.Errorf("%s of another is in the runtime's namespace:\n%s", other, mounts)
				}
			}
			for _, name := range []string{"own", "before", "other0"} {
				if _, err := os.Stat(filepath.Join(dir, name, "name")); err != nil {
					t.Errorf("the node has lost a mount: %v", err)
				}
			}
		}
	})
}

// What is mounted later outside of the kept directories reaches a container that asks for it,
// and what one mounts for others reaches them.
func TestMountNamespacePropagation(t *testing.T) {
	e := executor(t)
	keeping(t, e, "own")
	volume := t.TempDir()
	check(t, unix.Mount("tmpfs", volume, "tmpfs", 0, ""))
	defer unix.Unmount(volume, unix.MNT_DETACH)
	for _, name := range []string{"down", "up"} {
		check(t, os.Mkdir(filepath.Join(volume, name), 0o755))
	}
	with := func(propagation string) container {
		return container{change: func(s *specs.Spec) {
			caps := append(slices.Clone(s.Process.Capabilities.Bounding), "CAP_SYS_ADMIN")
			s.Process.Capabilities = &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps}
			s.Linux.RootfsPropagation = propagation
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/volume", Type: "bind", Source: volume, Options: []string{"rbind", propagation}})
		}}
	}
	slave, shared := create(t, e, with("rslave")).start(), create(t, e, with("rshared")).start()
	check(t, unix.Mount("tmpfs", filepath.Join(volume, "down"), "tmpfs", 0, ""))
	check(t, os.WriteFile(filepath.Join(volume, "down/file"), nil, 0o644))
	for _, b := range []*box{slave, shared} {
		if r, err := b.exec(0, "/bin/cat", "/volume/down/file"); err != nil || r.ExitCode != 0 {
			t.Errorf("what the node has mounted is not in the container: %v, %s", err, r.Stderr)
		}
	}
	if r, err := shared.exec(0, "/bin/busybox", "mount", "-t", "tmpfs", "tmpfs", "/volume/up"); err != nil || r.ExitCode != 0 {
		t.Fatalf("mount in the container: %v, %s", err, r.Stderr)
	}
	var of, above unix.Stat_t
	check(t, errors.Join(unix.Stat(filepath.Join(volume, "up"), &of), unix.Stat(volume, &above)))
	if of.Dev == above.Dev {
		t.Error("what the container has mounted is not in the node")
	}
	if r, err := slave.exec(0, "/bin/busybox", "mountpoint", "-q", "/volume/up"); err != nil || r.ExitCode != 0 {
		t.Errorf("what one container has mounted is not in the other: %v, %s", err, r.Stderr)
	}
}

// A server that was killed between the two mounts of KeepMounts, or one that finds mounts of
// an earlier version, takes nothing away from the node.
func TestMountNamespaceHalfMade(t *testing.T) {
	e := executor(t)
	older, dir := filepath.Join(e.runDir, "older"), filepath.Join(e.runDir, "half")
	keepTmpfs(t, filepath.Join(older, "old"))
	if err := KeepMounts(older); !errors.Is(err, ErrMounted) {
		t.Errorf("with a mount below it: %v", err)
	}
	check(t, os.Mkdir(dir, 0o711), unix.Mount(dir, dir, "", unix.MS_BIND, "")) // shared, as the one above it is
	t.Cleanup(func() { check(t, unix.Unmount(dir, unix.MNT_DETACH)) })
	keepTmpfs(t, filepath.Join(dir, "own"))
	check(t, KeepMounts(dir))
	n, err := newMountNamespaces([]string{dir})
	check(t, err)
	if ns, err := n.forSpec(&specs.Spec{Root: &specs.Root{}, Linux: &specs.Linux{}}); err == nil {
		t.Error("a namespace was made")
		ns.Close()
	}
	if _, err := os.Stat(filepath.Join(dir, "own/name")); err != nil {
		t.Errorf("the node has lost a mount: %v", err)
	}
}

// With few pods runtimes are started in the server's own namespace, as that is quicker.
func TestMountNamespaceFew(t *testing.T) {
	e := executor(t)
	dir := keeping(t, e, "own")
	var st unix.Stat_t
	check(t, unix.Stat(dir, &st))
	if st.Nlink < 2 {
		t.Skip("the file system of the temporary directory does not count a directory's entries, as btrfs")
	}
	e.mounts.from = 3
	for n, want := range []bool{false, false, true} {
		if got := e.mounts.worthwhile(); got != want {
			t.Errorf("with %d: %v", n+1, got)
		}
		p, err := e.Begin(t.Context(), createSpec(t, e, container{}).BeginSpec)
		check(t, err)
		if p.apart != want {
			t.Errorf("with %d: apart is %v", n+1, p.apart)
		}
		p.Abandon()
		check(t, os.Mkdir(filepath.Join(dir, itoa(n)), 0o755))
	}
	if (*mountNamespaces)(nil).worthwhile() {
		t.Error("without such directories")
	}
}
