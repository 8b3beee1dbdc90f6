package ocispec

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/idmap"
)

func accountsRoot(t *testing.T) string {
	root := t.TempDir()
	must(t, os.Mkdir(filepath.Join(root, "etc"), 0o755))
	must(t, os.WriteFile(filepath.Join(root, "etc/passwd"), []byte(testPasswd), 0o644))
	must(t, os.WriteFile(filepath.Join(root, "etc/group"), []byte(testGroup), 0o644))
	return root
}

func TestResolveUser(t *testing.T) {
	root := accountsRoot(t)
	for _, c := range []struct {
		name  string
		image string
		sec   *secContext
		uid   uint32
		gid   uint32
		more  []uint32
		err   string
	}{
		{name: "nothing is root", more: []uint32{0}},
		{name: "image uid with entry", image: "1000", uid: 1000, gid: 1000, more: []uint32{1000, 50000, 50001}},
		{name: "image uid without entry", image: "4242", uid: 4242, more: []uint32{0}},
		{name: "image name", image: "www-data", uid: 33, gid: 33, more: []uint32{33, 50001}},
		{name: "image uid:gid", image: "1003:1004", uid: 1003, gid: 1004, more: []uint32{1004}},
		{name: "image name:gid", image: "www-data:1004", uid: 33, gid: 1004, more: []uint32{1004, 50001}},
		{name: "image name:group", image: "www-data:group-in-image", uid: 33, gid: 50000, more: []uint32{50000, 50001}},
		{name: "image uid:", image: "33:", uid: 33, gid: 33, more: []uint32{33, 50001}},
		{name: "image :group", image: ":both", gid: 50001, more: []uint32{50001}},
		{name: "image unknown name", image: "who", err: `"who" is not in the image's /etc/passwd`},
		{name: "image unknown group", image: "0:who", err: `"who" is not in the image's /etc/group`},
		{name: "image negative", image: "-1", err: "user ID -1"},
		{name: "image too big", image: "4294967295", err: "user ID 4294967295"},
		{name: "run_as_user replaces the image's user and group", image: "www-data:1004", sec: &secContext{RunAsUser: id(0)}, more: []uint32{0}},
		{name: "run_as_user and group", sec: &secContext{RunAsUser: id(1000), RunAsGroup: id(5)}, uid: 1000, gid: 5, more: []uint32{5, 50000, 50001}},
		{name: "run_as_username", sec: &secContext{RunAsUsername: "default-user"}, uid: 1000, gid: 1000, more: []uint32{1000, 50000, 50001}},
		{name: "run_as_username that is a number", sec: &secContext{RunAsUsername: "1234"}, uid: 55, gid: 56, more: []uint32{56}},
		{name: "run_as_username that is a number, missing", sec: &secContext{RunAsUsername: "1000"}, err: "not in the image's /etc/passwd"},
		{name: "run_as_username missing", sec: &secContext{RunAsUsername: "who"}, err: "not in the image's /etc/passwd"},
		{name: "group alone", sec: &secContext{RunAsGroup: id(5)}, err: "run_as_group"},
		{name: "group alone, image has a user", image: "33", sec: &secContext{RunAsGroup: id(5)}, err: "run_as_group"},
		{name: "both", sec: &secContext{RunAsUser: id(1), RunAsUsername: "root"}, err: "both"},
		{name: "strict", image: "1000", sec: &secContext{SupplementalGroups: []int64{9, 9}, SupplementalGroupsPolicy: 1}, uid: 1000, gid: 1000, more: []uint32{1000, 9}},
		{name: "merge", image: "1000", sec: &secContext{SupplementalGroups: []int64{9}}, uid: 1000, gid: 1000, more: []uint32{1000, 50000, 50001, 9}},
		{name: "unknown policy", sec: &secContext{SupplementalGroupsPolicy: 7}, err: "supplemental_groups_policy"},
		{name: "bad supplemental group", sec: &secContext{SupplementalGroups: []int64{-4}}, err: "supplemental group -4"},
	} {
		t.Run(c.name, func(t *testing.T) {
			u, err := ResolveUser(root, c.sec, c.image)
			if c.err != "" {
				if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), c.err) {
					t.Fatalf("error %v, want ErrInvalid with %q", err, c.err)
				}
				return
			}
			must(t, err)
			if u.UID != c.uid || u.GID != c.gid || !slices.Equal(u.AdditionalGids, c.more) {
				t.Errorf("got %d:%d %v, want %d:%d %v", u.UID, u.GID, u.AdditionalGids, c.uid, c.gid, c.more)
			}
		})
	}
}

// TestAccountsWithoutNumbers: a line of passwd or group whose ID is no number makes nobody
// root.
func TestAccountsWithoutNumbers(t *testing.T) {
	root := t.TempDir()
	must(t, os.Mkdir(filepath.Join(root, "etc"), 0o755))
	must(t, os.WriteFile(filepath.Join(root, "etc/passwd"), []byte("bob:x:abc:5::/root:/bin/sh\nbob:x:12:13::/:/bin/sh\neve:x:1OOO:0::/:/bin/sh\ngus:x:7:seven::/:/bin/sh\nshort:x:9\nempty:x:8::\n"), 0o644))
	must(t, os.WriteFile(filepath.Join(root, "etc/group"), []byte("wheel:x:zero:bob\nstaff:x:50:bob\nstaff:x:5x:bob\n"), 0o644))
	for image, want := range map[string]string{
		"bob": "12:13 [13 50]", "eve": `user "eve" is not in`, "gus": `user "gus" is not in`, "bob:wheel": `group "wheel" is not in`, "bob:staff": "12:50 [50]",
		"short": "9:0 [0]", "empty": "8:0 [0]", "0": "0:0 [0]",
	} {
		u, err := ResolveUser(root, nil, image)
		got := fmt.Sprintf("%d:%d %v", u.UID, u.GID, u.AdditionalGids)
		if err != nil {
			got = err.Error()
		}
		if !strings.Contains(got, want) || err != nil && !errors.Is(err, ErrInvalid) {
			t.Errorf("USER %s: %s, want %s", image, got, want)
		}
	}
}

// TestLongGroup: a group may have many members.
func TestLongGroup(t *testing.T) {
	root := t.TempDir()
	must(t, os.Mkdir(filepath.Join(root, "etc"), 0o755))
	must(t, os.WriteFile(filepath.Join(root, "etc/passwd"), []byte("bob:x:12:13::/:/bin/sh\n"), 0o644))
	must(t, os.WriteFile(filepath.Join(root, "etc/group"), []byte("all:x:50:"+strings.Repeat("somebody,", 20_000)+"bob\n"), 0o644))
	if u, err := ResolveUser(root, nil, "bob"); err != nil || !slices.Contains(u.AdditionalGids, 50) {
		t.Errorf("%v, %v", u.AdditionalGids, err)
	}
}

// TestHostileAccounts: the files of an image can be anything.
func TestHostileAccounts(t *testing.T) {
	lookup := func(make func(root, passwd string)) error {
		root := t.TempDir()
		must(t, os.Mkdir(filepath.Join(root, "etc"), 0o755))
		make(root, filepath.Join(root, "etc/passwd"))
		_, err := ResolveUser(root, &runtimeapi.LinuxContainerSecurityContext{RunAsUsername: "daemon"}, "")
		return err
	}
	for name, make := range map[string]func(root, passwd string){
		// The host's own /etc/passwd has a user daemon, too.
		"link to the host": func(_, p string) { must(t, os.Symlink("/etc/passwd", p)) },
		"link out":         func(_, p string) { must(t, os.Symlink("../../../../../../../../etc/passwd", p)) },
		"fifo":             func(_, p string) { must(t, unix.Mkfifo(p, 0o644)) },
		"directory":        func(_, p string) { must(t, os.Mkdir(p, 0o755)) },
		"endless line":     func(_, p string) { must(t, os.WriteFile(p, make1MB(), 0o644)) },
		"huge":             func(_, p string) { must(t, os.WriteFile(p, nil, 0o644)); must(t, os.Truncate(p, maxAccounts+1)) },
		"id out of range":  func(_, p string) { must(t, os.WriteFile(p, []byte("daemon:x:99999999999:1::/:\n"), 0o644)) },
		"negative id":      func(_, p string) { must(t, os.WriteFile(p, []byte("daemon:x:-1:-1::/:\n"), 0o644)) },
		"missing":          func(_, p string) {},
		"etc is a link away": func(r, p string) {
			must(t, os.Remove(filepath.Join(r, "etc")))
			must(t, os.Symlink("/etc", filepath.Join(r, "etc")))
		},
	} {
		if err := lookup(make); err == nil {
			t.Errorf("%s: a user was found", name)
		} else {
			t.Logf("%s: %v", name, err)
		}
	}
	if err := lookup(func(root, p string) {
		must(t, os.WriteFile(filepath.Join(root, "accounts"), []byte("daemon:x:1:1::/:\n"), 0o644))
		must(t, os.Symlink("/accounts", p))
	}); err != nil {
		t.Errorf("an absolute link within the image: %v", err)
	}
}

// With one ID only, groups that the image adds by itself are left out; what the
// request asks for is refused.
func TestSingleID(t *testing.T) {
	one := []idmap.Map{{Container: 0, Host: 1000, Size: 1}}
	in := goldenInput(t)
	in.Host.UIDMap, in.Host.GIDMap, in.Image.User = one, one, ""
	must(t, os.WriteFile(filepath.Join(in.Rootfs, "etc/group"), []byte("root:x:0:\nwheel:x:10:root\n"), 0o644))
	must(t, os.WriteFile(filepath.Join(in.Rootfs, "etc/passwd"), []byte("root:x:0:0:root:/root:/bin/sh\n"), 0o644))
	out, err := Build(in)
	must(t, err)
	if got := out.Spec.Process.User.AdditionalGids; !slices.Equal(got, []uint32{0}) {
		t.Errorf("groups %v, want 0 alone", got)
	}
	if !strings.Contains(strings.Join(out.Warnings, "\n"), "group 10 of the image") {
		t.Errorf("warnings: %q", out.Warnings)
	}
	in.secctx().SupplementalGroups = []int64{10}
	wantInvalid(t, in, "group ID 10 is outside of the user namespace: it has the IDs 0-0")
	in.secctx().SupplementalGroups = nil
	in.secctx().RunAsUser, in.secctx().RunAsGroup = id(0), id(7)
	wantInvalid(t, in, "group ID 7 is outside of the user namespace")
}

func make1MB() []byte { return []byte("daemon" + strings.Repeat("x", 1<<20)) }
