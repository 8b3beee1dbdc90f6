package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	cdx "github.com/CycloneDX/cyclonedx-go"
)

var (
	dist = flag.String("dist", "", "directory with what \"make deb rpm archive\" has made")
	arch = flag.String("arch", "amd64", "architecture of that")
	tool = flag.String("tool", "", "subpod of that, for this machine")
	long = flag.Bool("long", false, "build all of it once more, elsewhere, and compare")
)

// made returns the only file in dist that matches, by its absolute path.
func made(t *testing.T, pattern string) string {
	t.Helper()
	if *dist == "" {
		t.Skip("needs packages: make test-pack")
	}
	found, err := filepath.Glob(filepath.Join(*dist, pattern))
	if err != nil || len(found) != 1 {
		t.Fatalf("%s in %s: %q, %v, want one file (make clean)", pattern, *dist, found, err)
	}
	path, err := filepath.Abs(found[0])
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func output(t *testing.T, name string, args ...string) []byte {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		t.Skipf("this machine has no %s", name)
	}
	out, err := exec.Command(name, args...).Output()
	if err != nil {
		t.Fatalf("%s %q: %v", name, args, err)
	}
	return out
}

// programs are those that each package has, all of mode 0755.
var programs = []string{"subpod", "subpod-monitor", "subpod-node", "subpod-node-gvisor", "subpod-server"}

// installed are other files that are looked for by name.
var installed = []string{
	"lib/systemd/user/subpod.service", "lib/systemd/user/subpod.socket",
	"share/man/man1/subpod.1.gz", "share/man/man1/subpod-run.1.gz", "share/man/man1/subpod-setup.1.gz", "share/man/man1/subpod-server.1.gz", "share/man/man5/subpod.toml.5.gz",
	"share/bash-completion/completions/subpod", "share/fish/vendor_completions.d/subpod.fish",
	"share/subpod/apparmor.profile", "share/doc/subpod/examples/subpod.toml", "share/doc/subpod/examples/lima.yaml", "share/doc/subpod/examples/delegate.conf", "share/doc/subpod/licenses.gz",
}

// member is a file in a package.
type member struct {
	mode    fs.FileMode
	content []byte
}

func untar(t *testing.T, r io.Reader) map[string]member {
	t.Helper()
	files := map[string]member{}
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Uid != 0 || h.Gid != 0 {
			t.Errorf("%s belongs to %d:%d", h.Name, h.Uid, h.Gid)
		}
		if h.Typeflag == tar.TypeDir {
			if h.Mode&0o7777 != 0o755 {
				t.Errorf("%s has mode %o", h.Name, h.Mode)
			}
			continue
		}
		content, err := io.ReadAll(tr)
		if err != nil {
			t.Fatal(err)
		}
		files[strings.TrimPrefix(h.Name, "./")] = member{fs.FileMode(h.Mode & 0o7777), content}
	}
}

// look checks names, modes, and that nothing names the machine that built it.
func look(t *testing.T, files map[string]member, prefix string, more ...string) {
	t.Helper()
	for _, name := range programs {
		if m, ok := files[prefix+"bin/"+name]; !ok || m.mode != 0o755 {
			t.Errorf("bin/%s: there %t, mode %o", name, ok, m.mode)
		}
	}
	for _, name := range append(slices.Clone(more), installed...) {
		if strings.HasPrefix(name, "lib/") && prefix != "usr/" {
			continue // an archive has no units: setup writes them
		}
		if m, ok := files[prefix+name]; !ok || m.mode != 0o644 {
			t.Errorf("%s: there %t, mode %o", name, ok, m.mode)
		}
	}
	tree, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	cache := string(bytes.TrimSpace(output(t, "go", "env", "GOMODCACHE")))
	for name, m := range files {
		text := m.content
		if strings.HasSuffix(name, ".gz") {
			if z, err := gzip.NewReader(bytes.NewReader(text)); err == nil {
				text, _ = io.ReadAll(z)
			}
		}
		for _, place := range []string{tree, cache} {
			if bytes.Contains(text, []byte(place)) {
				t.Errorf("%s names a directory of this machine, %s", name, place)
			}
		}
	}
}

func TestDeb(t *testing.T) {
	deb := made(t, "subpod_*_"+*arch+".deb")
	files := untar(t, bytes.NewReader(output(t, "dpkg-deb", "--fsys-tarfile", deb)))
	look(t, files, "usr/", "share/doc/subpod/copyright", "share/doc/subpod/changelog.gz", "share/zsh/vendor-completions/_subpod")
	unit := string(files["usr/lib/systemd/user/subpod.service"].content)
	if !strings.Contains(unit, "\nExecStart=/usr/bin/subpod daemon\n") || strings.Contains(unit, "%h") {
		t.Errorf("the unit:\n%s", unit)
	}
	if profile := string(files["usr/share/subpod/apparmor.profile"].content); !strings.Contains(profile, `"/usr/bin/subpod{,-node,`) {
		t.Errorf("the profile:\n%s", profile)
	}
	control := string(output(t, "dpkg-deb", "--field", deb))
	for _, need := range []string{"crun", "conmon", "fuse-overlayfs", "slirp4netns", "uidmap", "Architecture: " + *arch} {
		if !strings.Contains(control, need) {
			t.Errorf("the control file has no %s:\n%s", need, control)
		}
	}
	scripts := untar(t, bytes.NewReader(output(t, "dpkg-deb", "--ctrl-tarfile", deb)))
	for _, name := range []string{"preinst", "postinst", "prerm", "postrm"} {
		if m := scripts[name]; m.mode != 0o755 || bytes.Contains(m.content, []byte("@STATE@")) {
			t.Errorf("%s has mode %o:\n%s", name, m.mode, m.content)
		}
	}
}

func TestRPM(t *testing.T) {
	rpm := made(t, "subpod-*.rpm")
	list := string(output(t, "rpm", "-qp", "--qf", `[%{FILEMODES:perms} %{FILEUSERNAME} %{FILENAMES}\n]`, rpm))
	for _, name := range programs {
		if !strings.Contains(list, "-rwxr-xr-x root /usr/bin/"+name+"\n") {
			t.Errorf("no %s:\n%s", name, list)
		}
	}
	for _, name := range append([]string{"share/zsh/site-functions/_subpod", "share/doc/subpod/LICENSE"}, installed...) {
		if !strings.Contains(list, "-rw-r--r-- root /usr/"+name+"\n") {
			t.Errorf("no %s:\n%s", name, list)
		}
	}
	if needs := string(output(t, "rpm", "-qp", "--requires", rpm)); !strings.Contains(needs, "/usr/bin/newuidmap") {
		t.Errorf("it requires:\n%s", needs)
	}
	if host := string(output(t, "rpm", "-qp", "--qf", "%{BUILDHOST}", rpm)); host != "localhost" {
		t.Errorf("it names the machine that built it: %s", host)
	}
}

func TestArchive(t *testing.T) {
	path := made(t, "subpod-*-linux-"+*arch+".tar.gz")
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	look(t, untar(t, z), strings.TrimSuffix(filepath.Base(path), ".tar.gz")+"/", "share/doc/subpod/LICENSE", "share/zsh/site-functions/_subpod")
}

func TestSBOM(t *testing.T) {
	f, err := os.Open(made(t, "subpod-*-linux-"+*arch+".cdx.json"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var bom cdx.BOM
	if err := cdx.NewBOMDecoder(f, cdx.BOMFileFormatJSON).Decode(&bom); err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, c := range *bom.Components {
		seen[c.Name] = true
		if c.Version == "" || c.Type == cdx.ComponentTypeLibrary && !strings.HasPrefix(c.PackageURL, "pkg:golang/") {
			t.Errorf("component %+v", c)
		}
	}
	for _, want := range append([]string{"std", "k8s.io/cri-api", "go.podman.io/storage", "github.com/rootless-containers/rootlesskit/v3"}, programs...) {
		if !seen[want] {
			t.Errorf("no %s", want)
		}
	}
	if bom.Dependencies == nil || len(*bom.Dependencies) != len(programs) {
		t.Errorf("dependencies: %+v", bom.Dependencies)
	}
}

// TestSameBytes: the same tree, copied with other times and by another umask, gives the
// same packages.
func TestSameBytes(t *testing.T) {
	for _, c := range []struct{ format, pattern, stage string }{
		{"deb", "subpod_*_" + *arch + ".deb", "package"},
		{"rpm", "subpod-*.rpm", "package"},
		{"archive", "subpod-*-linux-" + *arch + ".tar.gz", "archive"},
		{"sbom", "subpod-*-linux-" + *arch + ".cdx.json", "archive"},
	} {
		t.Run(c.format, func(t *testing.T) {
			first := made(t, c.pattern)
			stage, out := t.TempDir(), t.TempDir()
			copyTree(t, filepath.Join(*dist, "stage", c.stage+"-"+*arch), stage)
			t.Setenv("TOOL", *tool)
			version := string(bytes.TrimSpace(output(t, "../version.sh")))
			if err := run([]string{c.format, "-version", version, "-epoch", os.Getenv("SOURCE_DATE_EPOCH"), "-arch", *arch, "-stage", stage, "-scripts", "scripts", "-out", out}); err != nil {
				t.Fatal(err)
			}
			same(t, first, filepath.Join(out, filepath.Base(first)))
		})
	}
}

// TestBuiltTwice: the committed tree, built in another directory, gives the same packages.
func TestBuiltTwice(t *testing.T) {
	if !*long {
		t.Skip("takes minutes: make test-pack CHECK=-long")
	}
	version := string(bytes.TrimSpace(output(t, "../version.sh")))
	if strings.HasSuffix(version, "dirty") {
		t.Skip("tracked files have changed: only what is committed can be built elsewhere")
	}
	tree := t.TempDir()
	// The cache has crictl and such things; what is built is not in it.
	text := `git -C ../.. archive HEAD | tar -x -C "$0" && cd "$0" && make --no-print-directory VERSION="$1" ARCH="$2" deb rpm "archive-$2"`
	if out, err := exec.Command("sh", "-c", text, tree, version, *arch).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, pattern := range []string{"subpod_*_" + *arch + ".deb", "subpod-*.rpm", "subpod-*-linux-" + *arch + ".tar.gz", "subpod-*-linux-" + *arch + ".cdx.json"} {
		first := made(t, pattern)
		same(t, first, filepath.Join(tree, "dist", filepath.Base(first)))
	}
}

func copyTree(t *testing.T, from, to string) {
	t.Helper()
	err := filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil || d.IsDir() {
			return errors.Join(err, os.MkdirAll(filepath.Join(to, rel), 0o700))
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(to, rel), b, 0o600)
	})
	if err != nil {
		t.Fatal(err)
	}
}

func same(t *testing.T, first, second string) {
	t.Helper()
	a, err := digest(first)
	if err != nil {
		t.Fatal(err)
	}
	b, err := digest(second)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(a, b) {
		t.Errorf("%s is another one: %x, was %x", second, b, a)
	}
}

// TestLintian: Debian's own look finds no error.
func TestLintian(t *testing.T) {
	deb := made(t, "subpod_*_"+*arch+".deb")
	if !*long {
		t.Skip("takes a minute: make test-pack CHECK=-long")
	}
	if _, err := exec.LookPath("lintian"); err != nil {
		t.Skip("this machine has no lintian (apt install lintian)")
	}
	out, err := exec.Command("lintian", "--fail-on", "error", deb).CombinedOutput()
	if err != nil {
		t.Errorf("%v: %s", err, out)
	}
}

// TestVersions: a later build of a version that is to come is newer, and older than that
// version.
func TestVersions(t *testing.T) {
	at := time.Unix(1795346317, 0).UTC()
	for text, want := range map[string]string{
		"0.2.0-dev+d57127d":       "0.2.0 dev20261122111837 d57127d",
		"0.2.0-dev+d57127d-dirty": "0.2.0 dev20261122111837 d57127d.dirty",
		"0.2.0+1f3c9aa":           "0.2.0  ",
		"0.2.0":                   "0.2.0  ",
		"0.2.0+1f3c9aa-dirty":     "0.2.0  1f3c9aa.dirty",
		"0.2.0-rc.1":              "0.2.0 rc.1 ",
	} {
		v, err := parseVersion(text, at)
		if got := fmt.Sprint(v.base, " ", v.pre, " ", v.commit); err != nil || got != want {
			t.Errorf("%s: %q, %v, want %q", text, got, err, want)
		}
	}
	for _, text := range []string{"", "0.2", "v0.2.0", "0.2.0 dev"} {
		if v, err := parseVersion(text, at); err == nil {
			t.Errorf("%q: %+v", text, v)
		}
	}
}

// TestInstall: "make install" below DESTDIR, as for another PREFIX, and "make uninstall",
// which leaves what is not its own.
func TestInstall(t *testing.T) {
	if *tool == "" {
		t.Skip("needs programs: make test-pack")
	}
	dir := t.TempDir()
	script := func(action string) {
		t.Helper()
		cmd := exec.Command("./install.sh", action, filepath.Dir(*tool))
		cmd.Env = append(os.Environ(), "PREFIX=/opt/sub pod", "DESTDIR="+dir)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", action, err, out)
		}
	}
	files := func() (list []string) {
		_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err == nil && !d.IsDir() {
				list = append(list, strings.TrimPrefix(path, dir+"/opt/sub pod/"))
			}
			return nil
		})
		return list
	}
	script("install")
	first := files()
	for _, name := range append([]string{"bin/subpod", "bin/subpod-server", "share/zsh/site-functions/_subpod"}, installed...) {
		if !slices.Contains(first, name) && name != "share/doc/subpod/licenses.gz" { // packages and archives have it
			t.Errorf("no %s in %q", name, first)
		}
	}
	unit, err := os.ReadFile(filepath.Join(dir, "opt/sub pod/lib/systemd/user/subpod.service"))
	if err != nil || !bytes.Contains(unit, []byte("\nExecStart=\"/opt/sub pod/bin/subpod\" daemon\n")) {
		t.Errorf("the unit: %v\n%s", err, unit)
	}
	script("install")
	if again := files(); !slices.Equal(again, first) {
		t.Errorf("installed twice: %q, was %q", again, first)
	}
	other := filepath.Join(dir, "opt/sub pod/bin/other")
	if err := os.WriteFile(other, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	script("uninstall")
	if left := files(); !slices.Equal(left, []string{"bin/other"}) {
		t.Errorf("left: %q", left)
	}
}
