package landlock

import (
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// confined runs do on a thread of its own under r.
func confined(t *testing.T, r Rules, do func() error) error {
	t.Helper()
	result := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
		if err == nil {
			err = r.Enter()
		}
		if err != nil {
			result <- errors.Join(errors.New("not confined"), err)
			return
		}
		result <- do()
	}()
	return <-result
}

func need(t *testing.T, version int) {
	t.Helper()
	if Version() < version {
		t.Skipf("the kernel has version %d of Landlock, and %d is needed", Version(), version)
	}
}

func TestFiles(t *testing.T) {
	need(t, versionRefer)
	dir := t.TempDir()
	for _, name := range []string{"in", "look", "out"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name, "file"), []byte("x"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	at := func(name string) string { return filepath.Join(dir, name) }
	r := Rules{Files: []Files{
		{Change, []string{at("in"), at("missing"), at("in/file/below")}},
		{Read, []string{at("look"), "/proc/self/ns/net"}},
		{Read | Execute | Change, []string{at("out/file")}}, // what is for directories is left out
	}}
	for name, c := range map[string]struct {
		do      func() error
		allowed bool
	}{
		"write":            {func() error { return os.WriteFile(at("in/file"), []byte("y"), 0o644) }, true},
		"make":             {func() error { return os.WriteFile(at("in/new"), nil, 0o644) }, true},
		"move":             {func() error { return os.Rename(at("in/file"), at("in/moved")) }, true},
		"read":             {func() error { return read(at("look/file")) }, true},
		"write unwritable": {func() error { return os.WriteFile(at("look/file"), []byte("y"), 0o644) }, false},
		"make there":       {func() error { return os.WriteFile(at("look/new"), nil, 0o644) }, false},
		"one file":         {func() error { return read(at("out/file")) }, true},
		"its directory":    {func() error { _, err := os.ReadDir(at("out")); return err }, false},
		"make beside":      {func() error { return os.WriteFile(at("out/new"), nil, 0o644) }, false},
		"a link out":       {func() error { return errors.Join(os.Symlink("../out", at("in/link")), listed(at("in/link"))) }, false},
	} {
		if err := confined(t, r, c.do); (err == nil) != c.allowed || err != nil && !errors.Is(err, os.ErrPermission) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := os.WriteFile(at("out/new"), nil, 0o644); err != nil {
		t.Errorf("another thread is confined, too: %v", err)
	}
}

func read(name string) error {
	_, err := os.ReadFile(name)
	return err
}

func listed(dir string) error {
	_, err := os.ReadDir(dir)
	return err
}

func TestNet(t *testing.T) {
	need(t, versionNet)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	connect := func() error { return tcp(unix.Connect, l.Addr().(*net.TCPAddr).Port) }
	listen := func() error { return tcp(unix.Bind, 0) }
	for _, c := range []struct {
		rules           Rules
		listen, connect bool
	}{
		{Rules{}, true, true},
		{Rules{NoListen: true}, false, true},
		{Rules{NoConnect: true}, true, false},
		{Rules{NoConnect: true, NoListen: true}, false, false},
	} {
		if err := confined(t, c.rules, listen); (err == nil) != c.listen || err != nil && !errors.Is(err, unix.EACCES) {
			t.Errorf("listen under %+v: %v", c.rules, err)
		}
		if err := confined(t, c.rules, connect); (err == nil) != c.connect || err != nil && !errors.Is(err, unix.EACCES) {
			t.Errorf("connect under %+v: %v", c.rules, err)
		}
	}
}

// tcp does not use package net, whose sockets are of MPTCP and connect on other threads.
func tcp(do func(int, unix.Sockaddr) error, port int) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return do(fd, &unix.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 1}})
}

func TestScoped(t *testing.T) {
	need(t, versionScopes)
	other := exec.Command("sleep", "60")
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = other.Process.Kill(), other.Wait() }()
	signal := func() error { return unix.Kill(other.Process.Pid, 0) }
	if err := confined(t, Rules{}, signal); err != nil {
		t.Errorf("a signal without a domain: %v", err)
	}
	if err := confined(t, Rules{Scoped: true}, signal); !errors.Is(err, unix.EPERM) {
		t.Errorf("a signal out of the domain: %v", err)
	}
	// What it starts is of the same domain.
	err := confined(t, Rules{Scoped: true}, func() error {
		cmd := exec.Command("sleep", "60")
		if err := cmd.Start(); err != nil {
			return err
		}
		err := cmd.Process.Kill()
		_ = cmd.Wait()
		return err
	})
	if err != nil {
		t.Errorf("a signal within the domain: %v", err)
	}
}

func TestMissing(t *testing.T) {
	all := Rules{Files: []Files{{Change, []string{"/tmp"}}}, NoListen: true, Scoped: true}
	for version, want := range map[int]string{0: "no Landlock", 1: "files", 3: "TCP", 5: "signals", 6: "", 99: ""} {
		got := all.missing(version)
		if (got == "") != (want == "") || !strings.Contains(got, want) {
			t.Errorf("version %d: %q, want %q", version, got, want)
		}
	}
	if got := (Rules{Files: []Files{{Read, []string{"/tmp"}}}}).missing(1); got != "" {
		t.Errorf("reading is ruled by the first version: %q", got)
	}
}
