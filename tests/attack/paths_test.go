package attack

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/tests/node"
)

// outOf leads from wherever a root file system or a volume lies to the node's root.
const outOf = "../../../../../../../../../../../../../../../../../../../.."

// TestCopyLinks: links in a container, on the way of a copy out of it or into it, lead
// nowhere but into the container (the class of CVE-2018-15664 and CVE-2019-14271).
func TestCopyLinks(t *testing.T) {
	c := newCage(t)
	id := c.run(inmate{pid: ownPID})
	home := c.n.Home
	c.exec(id, "sh", "-c", fmt.Sprintf("mkdir /links && cd /links && ln -s %[1]s abs && ln -s %[2]s%[1]s up && ln -s /proc/1/root/../..%[1]s proc && ln -s %[1]s/secret file", home, outOf))
	to := filepath.Join(home, "copies")
	if err := os.Mkdir(to, 0o700); err != nil {
		t.Fatal(err)
	}
	for i, from := range []string{"/links/abs/secret", "/links/up/secret", "/links/proc/secret", "/links/file", "/links/abs/.", "/links/../.." + home + "/secret", outOf + c.secret} {
		t.Run("out of "+strings.ReplaceAll(from, "/", " "), func(t *testing.T) {
			name := filepath.Join(to, fmt.Sprint(i))
			out, err := c.n.Subpod("cp", id+":"+from, name)
			t.Logf("%s, %v", out, err)
			_ = filepath.WalkDir(name, func(path string, d os.DirEntry, err error) error {
				if err == nil && d.Type().IsRegular() {
					if b, _ := os.ReadFile(path); strings.Contains(string(b), secretText) {
						t.Errorf("%s has come out", path)
					}
				}
				return nil
			})
		})
	}
	t.Run("out of a directory that is exchanged", func(t *testing.T) {
		c := c.in(t)
		c.exec(id, "sh", "-c", fmt.Sprintf("mkdir -p /race/dir && echo mine >/race/dir/secret && ln -s %s%s /race/link", outOf, home))
		done := make(chan struct{})
		go func() {
			defer close(done)
			_, _ = c.cri.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"/attack", "escape-exchange", "/race/dir", "/race/link"}, Timeout: 60})
		}()
		copied := 0
		for i := 0; running(done); i++ {
			name := filepath.Join(to, fmt.Sprint("race", i))
			if _, err := c.n.Subpod("cp", id+":/race/dir/secret", name); err != nil {
				continue
			}
			copied++
			if b, _ := os.ReadFile(name); strings.Contains(string(b), secretText) {
				t.Fatal("the secret has come out")
			}
		}
		t.Log(copied, "copies")
	})
	planted := filepath.Join(to, "planted")
	if err := os.WriteFile(planted, []byte("evil"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, into := range []string{"/links/abs/planted", "/links/up/planted", "/links/proc/planted", "/links/abs", "/links/file"} {
		t.Run("into "+strings.ReplaceAll(into, "/", " "), func(t *testing.T) {
			out, err := c.n.Subpod("cp", planted, id+":"+into)
			t.Logf("%s, %v", out, err)
			if _, err := os.Lstat(filepath.Join(home, "planted")); err == nil {
				t.Error("a file is written outside of the container")
			}
			if b, err := os.ReadFile(c.secret); err != nil || string(b) != secretText {
				t.Errorf("the secret is overwritten: %q, %v", b, err)
			}
		})
	}
}

// TestSubPath: links that a container has made in a volume lead no other container's
// sub path out of it (CVE-2017-1002101, CVE-2021-25741).
func TestSubPath(t *testing.T) {
	c := newCage(t)
	if err := os.Mkdir(filepath.Join(c.n.Home, "deep"), 0o700); err != nil {
		t.Fatal(err)
	}
	c.n.WriteHome("deep/secret", secretText)
	for i, sub := range []string{"subPath: abs", "subPath: up", "subPath: proc", "subPath: abs/deep", "subPath: new/../../..", "subPath: /etc", "subPath: file", "subPathExpr: $(WHERE)", "subPathExpr: $(LINK)/deep"} {
		t.Run(strings.NewReplacer("/", " ", ":", "").Replace(sub), func(t *testing.T) {
			c := c.in(t)
			name := fmt.Sprintf("sub%d", i)
			path := filepath.Join(c.n.Home, name+".yaml")
			seen := filepath.Join(c.n.Home, name+"-seen")
			if err := os.Mkdir(seen, 0o700); err != nil {
				t.Fatal(err)
			}
			text := fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: %[1]s}
spec:
  restartPolicy: Never
  initContainers:
  - name: links
    image: %[2]s
    command: [sh, -c, "cd /v && ln -s %[3]s abs && ln -s %[4]s%[3]s up && ln -s /proc/self/root%[3]s proc && ln -s %[3]s/secret file && mkdir new"]
    volumeMounts: [{name: v, mountPath: /v}]
  containers:
  - name: main
    image: %[2]s
    env: [{name: WHERE, value: ../../..}, {name: LINK, value: abs}]
    command: [sh, -c, "ls -a /mnt >/out/seen; cat /mnt /mnt/secret /mnt/deep/secret >>/out/seen; touch /mnt/planted"]
    volumeMounts: [{name: v, mountPath: /mnt, %[5]s}, {name: out, mountPath: /out}]
  volumes: [{name: v, emptyDir: {}}, {name: out, hostPath: {path: %[6]s}}]
`, name, node.Busybox, c.n.Home, outOf, sub, seen)
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			out, err := c.n.Subpod("play", path)
			b, _ := os.ReadFile(filepath.Join(seen, "seen"))
			if strings.Contains(string(b), secretText) || strings.Contains(string(b), "secret\n") {
				t.Errorf("the sub path leads out: %s", b)
			}
			for _, dir := range []string{c.n.Home, c.n.Home + "/deep", c.n.Dir} {
				if _, err := os.Lstat(filepath.Join(dir, "planted")); err == nil {
					t.Errorf("the sub path leads out: a file is written to %s", dir)
				}
			}
			t.Logf("%s %.300v", out, err)
			_, _ = c.n.Subpod("play", "--down", path)
		})
	}
}

// TestImageVolumes: VOLUMEs of an image, and links at their places, have nothing of the
// node's copied into a volume.
func TestImageVolumes(t *testing.T) {
	c := newCage(t)
	target := filepath.Join(c.n.Home, "target")
	c.n.WriteHome("target/file", secretText)
	for i, a := range []struct {
		name, volume string
		entries      []entry
	}{
		{"link", "/vol", []entry{{name: "vol", link: outOf + target}}},
		{"absolute link", "/vol", []entry{{name: "vol", link: target}}},
		{"below a link", "/a/target", []entry{{name: "a", link: outOf + c.n.Home}}},
		{"name with dots", outOf + target, nil},
		{"link by proc", "/vol", []entry{{name: "vol", link: "/proc/1/root" + target}}},
		{"link to a link", "/vol", []entry{{name: "vol", link: "next"}, {name: "next", link: outOf + target}}},
	} {
		t.Run(a.name, func(t *testing.T) {
			c := c.in(t)
			config := map[string]any{"Cmd": []string{"/attack"}, "Volumes": map[string]any{a.volume: map[string]any{}}}
			image := c.loadConfig(fmt.Sprint("volume", i), config, append(a.entries, entry{name: "marker", content: "x"})...)
			id, err := c.try(inmate{pid: ownPID, image: image, command: []string{"/attack", "escape-sleep"}})
			if err != nil {
				t.Log("refused:", err)
				return
			}
			places := []string{"/vol/file", "/a/target/file", target + "/file", "/target/file", a.volume + "/file", "/next/file"}
			c.escape(id, "open", places...)
		})
	}
}

// TestPlayPaths: names and keys of a manifest, which become names of files and
// directories, lead nowhere else.
func TestPlayPaths(t *testing.T) {
	c := newCage(t)
	evil := outOf + c.n.Home + "/planted"
	before := listing(t, c.n.Home+"/.config")
	for i, volume := range []string{
		`volumes: [{name: v, configMap: {name: m}}]`,
		`volumes: [{name: v, configMap: {name: m, items: [{key: k, path: "` + evil + `"}]}}]`,
		`volumes: [{name: v, configMap: {name: m, items: [{key: k, path: "` + c.n.Home + `/planted"}]}}]`,
		`volumes: [{name: v, secret: {secretName: s, items: [{key: k, path: "a/../` + evil + `"}]}}]`,
		`volumes: [{name: v, projected: {sources: [{configMap: {name: m, items: [{key: k, path: "` + evil + `"}]}}]}}]`,
		`volumes: [{name: v, downwardAPI: {items: [{path: "` + evil + `", fieldRef: {fieldPath: metadata.name}}]}}]`,
		`volumes: [{name: v, persistentVolumeClaim: {claimName: "` + outOf + c.n.Home + `"}}]`,
		`volumes: [{name: "` + evil + `", emptyDir: {medium: Memory}}]`,
	} {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			path := filepath.Join(c.n.Home, "paths.yaml")
			text := fmt.Sprintf(`
apiVersion: v1
kind: ConfigMap
metadata: {name: m}
data: {k: evil, "%[1]s": evil}
---
apiVersion: v1
kind: Secret
metadata: {name: s}
stringData: {k: evil, "%[1]s": evil}
---
apiVersion: v1
kind: Pod
metadata: {name: paths%[2]d}
spec:
  restartPolicy: Never
  containers:
  - name: main
    image: %[3]s
    command: [sh, -c, "touch /mnt/planted"]
    volumeMounts: [{name: v, mountPath: /mnt}]
  %[4]s
`, evil, i, node.Busybox, volume)
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			out, err := c.n.Subpod("play", path)
			t.Logf("%.300s, %.300v", out, err)
			for _, dir := range []string{c.n.Home, c.n.Dir, c.n.XDG, c.n.RunDir} {
				if _, err := os.Lstat(filepath.Join(dir, "planted")); err == nil {
					t.Errorf("a file is written to %s", dir)
				}
			}
			_, _ = c.n.Subpod("play", "--down", path)
		})
	}
	if now := listing(t, c.n.Home+"/.config"); now != before {
		t.Errorf("the user's configuration is now:\n%s", now)
	}
}

// exchange exchanges two names for some seconds: args are both.
func exchange(args []string) error {
	for end := time.Now().Add(2 * time.Second); time.Now().Before(end); {
		if err := unix.Renameat2(unix.AT_FDCWD, args[0], unix.AT_FDCWD, args[1], unix.RENAME_EXCHANGE); err != nil {
			return err
		}
	}
	return nil
}
