package fields

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/tests/node"
)

// variant loads an image with this name that is busybox, a layer over it, and what edit
// changes in its configuration.
func variant(t testing.TB, n *node.Node, name string, layer func(*tar.Writer), edit func(*v1.ImageConfig)) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	base, err := os.Open(filepath.Join(node.Path(t, node.Images), "busybox.docker.tar"))
	must(err)
	defer base.Close()
	files := map[string][]byte{}
	for r := tar.NewReader(base); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		must(err)
		files[h.Name], err = io.ReadAll(r)
		must(err)
	}
	var manifest []struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	must(json.Unmarshal(files["manifest.json"], &manifest))
	var config v1.Image
	must(json.Unmarshal(files[manifest[0].Config], &config))
	var top bytes.Buffer
	w := tar.NewWriter(&top)
	layer(w)
	must(w.Close())
	config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, digest.FromBytes(top.Bytes()))
	config.History = nil
	edit(&config.Config)
	manifest[0].Layers = append(manifest[0].Layers, "top/layer.tar")
	manifest[0].RepoTags = []string{name}
	files["top/layer.tar"] = top.Bytes()
	files[manifest[0].Config], err = json.Marshal(config)
	must(err)
	files["manifest.json"], err = json.Marshal(manifest)
	must(err)
	var archive bytes.Buffer
	w = tar.NewWriter(&archive)
	for file, data := range files {
		must(w.WriteHeader(&tar.Header{Name: file, Size: int64(len(data)), Mode: 0o644}))
		_, err := w.Write(data)
		must(err)
	}
	must(w.Close())
	path := filepath.Join(n.Dir, "image.tar")
	must(os.WriteFile(path, archive.Bytes(), 0o644))
	_, err = n.Subpod("load", "docker-archive:"+path)
	must(err)
}

// dataLayer has a directory /data of user 1001 and group 1002 with a file in it, another
// behind a link, and a file where a volume is to be.
func dataLayer(w *tar.Writer) {
	for _, h := range []*tar.Header{
		{Name: "data/", Typeflag: tar.TypeDir, Mode: 0o750, Uid: 1001, Gid: 1002},
		{Name: "data/seed", Typeflag: tar.TypeReg, Mode: 0o640, Uid: 1001, Gid: 1003},
		{Name: "data/other", Typeflag: tar.TypeLink, Linkname: "data/seed", Mode: 0o640, Uid: 1001, Gid: 1003},
		{Name: "data/up", Typeflag: tar.TypeSymlink, Linkname: "../../etc/passwd"},
		{Name: "link", Typeflag: tar.TypeSymlink, Linkname: "/var/behind"},
		{Name: "dangling", Typeflag: tar.TypeSymlink, Linkname: "/nowhere/at/all"},
		{Name: "kernel", Typeflag: tar.TypeSymlink, Linkname: "proc/sys"},
		{Name: "var/behind/", Typeflag: tar.TypeDir, Mode: 0o1777},
		{Name: "var/behind/file", Typeflag: tar.TypeReg, Mode: 0o644},
		{Name: "file", Typeflag: tar.TypeReg, Mode: 0o644},
	} {
		if err := w.WriteHeader(h); err != nil {
			panic(err)
		}
	}
}

func volumesOf(paths ...string) func(*v1.ImageConfig) {
	return func(c *v1.ImageConfig) {
		c.Volumes = map[string]struct{}{}
		for _, p := range paths {
			c.Volumes[p] = struct{}{}
		}
	}
}

const volumes = "localhost/volumes:1"

// TestVolumes: the VOLUMEs of an image are directories of the container with what the
// image has there, writable also where the root file system is not, in the pod's own
// user namespace too, and gone with the container.
func TestVolumes(t *testing.T) {
	for _, driver := range []string{"fuse-overlayfs", "native"} {
		t.Run(driver, func(t *testing.T) {
			n := node.Start(t, node.Options{Config: bridge + "[storage]\ndriver = \"" + driver + "\"\n"})
			variant(t, n, volumes, dataLayer, volumesOf("/data", "/missing/deep", "link", "/dangling", "/kernel", "/file", "/", "/proc", "/etc/hosts", "/data/../data/"))
			e := env{T: t, n: n, cri: n.CRI()}
			for _, handler := range []string{"crun", "runc"} {
				e.run(handler, func(e env) {
					e.handler = handler
					imageVolumes(e)
				})
			}
		})
	}
}

func imageVolumes(e env) {
	stat := func(c *container, path string) string { return c.exec("stat", "-c", "%a %u:%g", path) }
	readOnly := secure(func(s *security) { s.ReadonlyRootfs = true })
	check := func(c *container) {
		e.equal("owner and mode of a volume", stat(c, "/data/."), "750 1001:1002")
		e.equal("of its content", stat(c, "/data/seed"), "640 1001:1003")
		e.equal("hard links in it", c.exec("stat", "-c", "%h", "/data/other"), "2")
		e.equal("links in it", c.exec("readlink", "/data/up"), "../../etc/passwd")
		e.equal("mode of a volume behind a link", stat(c, "/link/."), "1777 0:0")
		e.equal("its content", c.exec("ls", "/link/"), "file")
		e.equal("a volume that the image lacks", stat(c, "/missing/deep"), "755 0:0")
		e.equal("a volume behind a link to nothing", stat(c, "/dangling/."), "755 0:0")
		c.sh("for d in /data /missing/deep /link /dangling; do echo x >$d/new && cat $d/new; done")
		c.fails("touch /new", "ead-only file system")
		c.sh("test -f /file && cat /proc/1/comm && grep -q localhost /etc/hosts")
	}
	p := e.pod("volumes", nil)
	c := p.start("c", idle(), image(volumes), readOnly)
	check(c)
	if other := p.start("other", idle(), image(volumes)).exec("ls", "/data/"); strings.Contains(other, "new") {
		e.Errorf("two containers share a volume: %s", other)
	}
	// What the pod mounts has precedence, at the path and above it.
	dir := hostDir(e, e.n.Dir, "volumes")
	c = p.start("mounted", idle(), image(volumes), mounts(
		&runtimeapi.Mount{ContainerPath: "/data/", HostPath: dir}, &runtimeapi.Mount{ContainerPath: "/missing", HostPath: dir, Readonly: true}))
	c.sh("echo mine >/data/file")
	e.equal("the pod's mount", c.exec("ls", "/data/", "/missing/"), "/data/:\nfile\n\n/missing/:\nfile")
	e.must(os.Remove(filepath.Join(dir, "file")))

	if e.rangeSize() >= 2*65536 {
		nested := e.pod("nested", userns(65536))
		check(nested.start("c", idle(), image(volumes), readOnly))
	}
	dirs, err := filepath.Glob(filepath.Join(e.n.DataDir, "storage/subpod/rootfs/*/volumes/0"))
	e.must(err)
	if len(dirs) == 0 {
		e.Error("no volume is where the test looks for it")
	}
	_, err = e.cri.RemoveContainer(e.Context(), &runtimeapi.RemoveContainerRequest{ContainerId: c.id})
	e.must(err)
	if left, _ := filepath.Glob(filepath.Join(e.n.DataDir, "storage/subpod/rootfs", c.id, "*")); len(left) > 0 {
		e.Errorf("left of a removed container: %v", left)
	}
}
