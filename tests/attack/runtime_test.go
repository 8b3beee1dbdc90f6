package attack

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestImageLinks: links of an image, where the runtime or the server mounts, masks,
// makes or reads something, lead nowhere but into the image.
func TestImageLinks(t *testing.T) {
	c := newCage(t)
	target := filepath.Join(c.n.Home, "target")
	if err := os.Mkdir(target, 0o700); err != nil {
		t.Fatal(err)
	}
	c.n.WriteHome("target/file", secretText)
	c.n.WriteHome("target/passwd", "outsider:x:4242:4242::/:/bin/sh\n")
	shared := filepath.Join(c.n.Dir, "shared")
	if err := os.Mkdir(shared, 0o755); err != nil {
		t.Fatal(err)
	}
	c.n.WriteHome("../shared/mounted", "mounted")
	before := listing(t, target)
	mounts := mountsBelow(c, target)
	up := "../../../../../../../../../../../../.." // from wherever the root file system lies
	for i, a := range []struct {
		name    string
		entries []entry
		workdir string
		inmate
	}{
		{name: "dev", entries: []entry{{name: "dev", link: up + target}}},
		{name: "dev, absolute", entries: []entry{{name: "dev", link: target}}},
		{name: "proc", entries: []entry{{name: "proc", link: up + target}}},
		{name: "sys", entries: []entry{{name: "sys", link: up + target}}},
		{name: "dev/shm", entries: []entry{{name: "dev", dir: true}, {name: "dev/shm", link: up + target}, {name: "dev/null", link: up + target + "/file"}, {name: "dev/pts", link: up + target}}},
		{name: "etc", entries: []entry{{name: "etc", link: up + target}}},
		{name: "etc/hosts", entries: []entry{{name: "etc", dir: true}, {name: "etc/hosts", link: up + target + "/file"}, {name: "etc/resolv.conf", link: up + target + "/new"}, {name: "etc/hostname", link: up + target + "/file"}}},
		{name: "mount target", entries: []entry{{name: "data", link: up + target}}, inmate: inmate{mounts: []*runtimeapi.Mount{{HostPath: shared, ContainerPath: "/data"}}}},
		{name: "above a mount target", entries: []entry{{name: "data", link: up + target}}, inmate: inmate{mounts: []*runtimeapi.Mount{{HostPath: shared, ContainerPath: "/data/made/here"}}}},
		{name: "mount target by proc", entries: []entry{{name: "data", link: "/proc/self/root" + up + target}}, inmate: inmate{mounts: []*runtimeapi.Mount{{HostPath: shared, ContainerPath: "/data/x"}}}},
		{name: "working directory", entries: []entry{{name: "work", link: up + target}}, workdir: "/work/made"},
		{name: "working directory by proc", entries: []entry{{name: "work", link: "/proc/1/cwd"}}, workdir: "/work" + up + target + "/made"},
		{name: "masked path", entries: []entry{{name: "masked", link: up + target + "/file"}, {name: "maskeddir", link: up + target}}, inmate: inmate{masked: []string{"/masked", "/maskeddir"}}},
		{name: "program", entries: []entry{{name: "bin", link: up + "/bin"}, {name: "usr", link: up + "/usr"}}},
		{name: "attack", entries: []entry{{name: "attack", link: up + target + "/file"}}},
	} {
		t.Run(a.name, func(t *testing.T) {
			c := c.in(t)
			i2 := a.inmate
			i2.image = c.load(fmt.Sprint("links", i), "", a.workdir, append(a.entries, entry{name: "marker", content: "x"})...)
			i2.pid, i2.command = ownPID, []string{"/attack", "escape-sleep"}
			if id, err := c.try(i2); err != nil {
				t.Log("refused:", err)
			} else {
				c.escape(id, "self", c.secret)
			}
			if now := listing(t, target); now != before {
				t.Errorf("the directory outside has changed:\n%s\nwas\n%s", now, before)
			}
			if now := mountsBelow(c, target); now != mounts {
				t.Errorf("something is mounted outside: %s", now)
			}
		})
	}
	t.Run("passwd", func(t *testing.T) {
		c := c.in(t)
		i := inmate{pid: ownPID, command: []string{"/attack", "escape-sleep"}}
		i.image = c.load("passwd", "outsider", "", entry{name: "etc", dir: true}, entry{name: "etc/passwd", link: up + target + "/passwd"})
		if id, err := c.try(i); err == nil {
			t.Errorf("the user of a file outside: %s", c.exec(id, "/attack", "escape-self", c.secret))
		}
	})
}

// listing has names, sizes, modes and contents of a directory.
func listing(t *testing.T, dir string) string {
	t.Helper()
	var out strings.Builder
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		fmt.Fprintln(&out, path, info.Mode())
		if info.Mode().IsRegular() {
			b, err := os.ReadFile(path)
			fmt.Fprintf(&out, "%q %v\n", b, err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out.String()
}

// mountsBelow are the node's mounts at or below a directory.
func mountsBelow(c *cage, dir string) string {
	c.Helper()
	var out []string
	for line := range strings.Lines(c.n.Enter("cat", "/proc/1/mountinfo")) {
		if f := strings.Fields(line); len(f) > 4 && (f[4] == dir || strings.HasPrefix(f[4], dir+"/")) {
			out = append(out, line)
		}
	}
	return strings.Join(out, "")
}

func sleepLong([]string) error {
	time.Sleep(time.Minute)
	return nil
}

// TestNonRoot: no USER of an image is both not root for whoever checks runAsNonRoot
// (a kubelet, play) and root in the container.
func TestNonRoot(t *testing.T) {
	c := newCage(t)
	passwd := entry{name: "etc/passwd", content: "root:x:0:0::/:/bin/sh\n1000:x:0:0::/:/bin/sh\n01000:x:0:0::/:/bin/sh\napp:x:0:0::/:/bin/sh\n4294967296:x:0:0::/:/bin/sh\n-1:x:0:0::/:/bin/sh\n"}
	group := entry{name: "etc/group", content: "root:x:0:\n1000:x:0:\n"}
	for i, user := range []string{
		"1000", "01000", "+1000", "1000:1000", "1000:root", "app", "app:1000", "0", "00", "+0", "-0", "-1", "0x0", " 1000", "1000 ", "1000:0:0",
		"4294967296", "4294968296", "2147483648", "18446744073709551616", "9223372036854775808", "1e3", "1_000", "٠", "root", ":1000", ":",
	} {
		t.Run(user, func(t *testing.T) {
			c := c.in(t)
			image := c.load(fmt.Sprint("user", i), user, "", entry{name: "etc", dir: true}, passwd, group)
			st, err := c.cri.ImageStatus(t.Context(), &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: image}})
			if err != nil {
				t.Fatal(err)
			}
			// As the kubelet decides (pkg/kubelet/kuberuntime: verifyRunAsNonRoot).
			uid, name := st.Image.GetUid(), st.Image.GetUsername()
			if uid != nil && uid.Value == 0 || uid == nil {
				return // refused: root, or a name
			}
			id, err := c.try(inmate{pid: ownPID, image: image, command: []string{"/attack", "escape-sleep"}})
			if err != nil {
				t.Logf("refused: %v", err)
				return
			}
			if out := c.exec(id, "/attack", "escape-uid"); !strings.HasPrefix(out, fmt.Sprintln("uid", uid.Value)) {
				t.Errorf("USER %q is UID %v, name %q in the image's status, in the container: %s", user, uid, name, out)
			}
		})
	}
}

func printUID([]string) error {
	fmt.Println("uid", os.Getuid())
	return nil
}
