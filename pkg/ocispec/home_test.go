package ocispec

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestHome: HOME is always set, and whatever is in passwd cannot make it what the process
// or the OCI runtime cannot be given.
func TestHome(t *testing.T) {
	const alice = "alice:x:1001:1002::/home/alice:/bin/sh\n"
	for name, c := range map[string]struct {
		passwd string
		user   string
		env    string
		want   string
	}{
		"an entry":               {alice, "1001", "", "/home/alice"},
		"by name":                {alice, "alice", "", "/home/alice"},
		"no entry":               {alice, "4242", "", "/"},
		"no passwd":              {"", "0", "", "/"},
		"root":                   {"root:x:0:0::/root:/bin/sh\n", "", "", "/root"},
		"the first of two":       {alice + "bob:x:1001:1::/home/bob:/bin/sh\n", "bob", "", "/home/alice"},
		"an empty home":          {"a:x:5:5:::/bin/sh\n", "5", "", "/"},
		"a short entry":          {"a:x:5:5\n", "5", "", "/"},
		"a zero byte":            {"a:x:5:5::/ho\x00me:/bin/sh\n", "5", "", "/"},
		"not UTF-8":              {"a:x:5:5::/h\xff:/bin/sh\n", "5", "", "/"},
		"the image sets it":      {alice, "1001", "HOME=/srv", "/srv"},
		"the image sets nothing": {alice, "1001", "HOME=", ""},
		"a million of entries":   {strings.Repeat("x:::\n", 1<<20) + alice, "alice", "", "/home/alice"},
		"a million of its own":   {strings.Repeat("x::9::\n", 1<<20), "9", "", "/"},
	} {
		in := goldenInput(t)
		must(t, os.WriteFile(filepath.Join(in.Rootfs, "etc/passwd"), []byte(c.passwd), 0o644))
		in.Image.User = c.user
		if c.env != "" {
			in.Image.Env = append(in.Image.Env, c.env)
		}
		if got := homeIn(t, in); got != c.want {
			t.Errorf("%s: HOME=%q, want %q", name, got, c.want)
		}
	}
}

func homeIn(t *testing.T, in Input) string {
	t.Helper()
	out, err := Build(in)
	must(t, err)
	var homes []string
	for _, v := range out.Spec.Process.Env {
		if home, ok := strings.CutPrefix(v, "HOME="); ok {
			homes = append(homes, home)
		}
	}
	if len(homes) != 1 {
		t.Fatalf("%d HOME in %q, want 1", len(homes), out.Spec.Process.Env)
	}
	if p := ExecProcess(out.Spec, []string{"true"}, false); !strings.Contains(strings.Join(p.Env, "\n"), "HOME="+homes[0]) {
		t.Errorf("an exec has %q", p.Env)
	}
	return homes[0]
}

// TestHomeOfMount: the passwd that counts is the one that the process sees.
func TestHomeOfMount(t *testing.T) {
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	must(t, os.WriteFile(path("passwd"), []byte("other:x:1001:1::/other:/bin/sh\n"), 0o644))
	must(t, unix.Mkfifo(path("fifo"), 0o644))
	must(t, os.Mkdir(path("empty"), 0o755))
	must(t, os.Mkdir(path("out"), 0o755))
	must(t, os.Symlink(path("passwd"), path("out/passwd")))
	must(t, os.WriteFile(path("huge"), nil, 0o644))
	must(t, os.Truncate(path("huge"), maxAccounts+1))
	for _, c := range []struct{ target, source, want string }{
		{"/etc/passwd", "passwd", "/other"},
		{"/etc/passwd", "fifo", "/"},
		{"/etc/passwd", "huge", "/"},
		{"/etc/passwd", "empty", "/"},
		{"/etc", ".", "/other"},
		{"/etc/", "empty", "/"},
		{"/etc", "out", "/"}, // a link is one of the container's
		{"/srv", "passwd", "/home/alice"},
	} {
		in := goldenInput(t)
		must(t, os.WriteFile(filepath.Join(in.Rootfs, "etc/passwd"), []byte("alice:x:1001:1002::/home/alice:/bin/sh\n"), 0o644))
		in.Image.User = "1001"
		in.Mounts = append(in.Mounts, &runtimeapi.Mount{ContainerPath: c.target, HostPath: path(c.source)})
		if got := homeIn(t, in); got != c.want {
			t.Errorf("%s on %s: HOME=%q, want %q", c.source, c.target, got, c.want)
		}
	}
}

// TestManyGroups: a group file cannot make a process of the kernel's limit, nor take
// minutes.
func TestManyGroups(t *testing.T) {
	root := accountsRoot(t)
	var groups strings.Builder
	for i := range maxGroups + 1 {
		fmt.Fprintf(&groups, "g:x:%d:default-user\ng:x:%d:default-user\n", i+70000, i+70000)
	}
	must(t, os.WriteFile(filepath.Join(root, "etc/group"), []byte(groups.String()), 0o644))
	if _, err := ResolveUser(root, nil, "default-user"); err == nil || !strings.Contains(err.Error(), "65536 groups") {
		t.Errorf("%v, want too many groups", err)
	}
	for _, loop := range []string{"etc/passwd", "etc/group"} {
		root := accountsRoot(t)
		must(t, os.Remove(filepath.Join(root, loop)))
		must(t, os.Symlink(filepath.Base(loop), filepath.Join(root, loop)))
		if _, err := ResolveUser(root, nil, "5"); err == nil || !strings.Contains(err.Error(), "loop of symbolic links") {
			t.Errorf("%s is a loop: %v", loop, err)
		}
	}
}
