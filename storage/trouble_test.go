package storage

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// random returns n bytes that don't compress.
func random(n int) string {
	var b strings.Builder
	for i := 0; b.Len() < n; i++ {
		b.WriteString(string(digest.FromString(fmt.Sprint(i)).Encoded()))
	}
	return b.String()[:n]
}

func TestNoSpace(t *testing.T) {
	small := build(t, imageSpec{layers: []layer{{"f": {content: "small"}}}})
	for name, img := range map[string]built{
		// The blob itself does not fit.
		"download": build(t, imageSpec{layers: []layer{{"f": {content: "first layer"}}, {"big": {content: random(40 << 20)}}}}),
		// The blob is tiny; the helper that unpacks it runs out of space.
		"unpack": build(t, imageSpec{layers: []layer{{"f": {content: "first layer"}}, {"big": {content: strings.Repeat("x", 40<<20)}}}}),
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=12m"); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
			f := startFake(t, img, nil)
			o := testOptions(t, dir, DriverFuse)
			insecureConf(t, o, f.host)
			s := openStore(t, o)
			_, err := s.Images.Pull(context.Background(), PullRequest{Ref: f.host + "/app:v1"})
			if !errors.Is(err, ErrNoSpace) {
				t.Errorf("got %v, want ErrNoSpace", err)
			}
			wantClean(t, s, 0)
			loadInto(t, s, "example.com/small:v1", small)
			wantClean(t, s, 1)
			r, err := s.Rootfs.Create(context.Background(), RootfsSpec{ID: containerID(1), ImageID: small.id()})
			if err != nil {
				t.Fatal(err)
			}
			err = os.WriteFile(filepath.Join(r.Path, "fill"), make([]byte, 30<<20), 0o644)
			if !errors.Is(err, unix.ENOSPC) {
				t.Errorf("fill the disk: %v", err)
			}
			if err := s.Rootfs.Delete(context.Background(), containerID(1)); err != nil {
				t.Errorf("delete on a full disk: %v", err)
			}
		})
	}
}

func TestCorruptAndForeign(t *testing.T) {
	good := layer{"f": {content: "first layer"}}.tar(t)
	half := layer{"big": {content: random(1 << 20)}}.tar(t)
	lying := build(t, imageSpec{tars: [][]byte{good}})
	lying.config = []byte(strings.Replace(string(lying.config), digest.FromBytes(good).Encoded(), digest.FromString("other").Encoded(), 1))
	relink(t, &lying)
	chart := build(t, imageSpec{tars: [][]byte{good}})
	chart.manifest = []byte(strings.Replace(string(chart.manifest), v1.MediaTypeImageConfig, "application/vnd.cncf.helm.config.v1+json", 1))
	escape := build(t, imageSpec{layers: []layer{
		{"out": {typeflag: tar.TypeSymlink, link: "/tmp"}, "up": {typeflag: tar.TypeSymlink, link: "../../../../../../../../tmp"}},
		{"out/escaped": {content: "x"}, "up/escaped": {content: "x"}}}})
	for name, c := range map[string]struct {
		img  built
		want error
	}{
		"no tar":         {build(t, imageSpec{tars: [][]byte{good, []byte(strings.Repeat("no tar at all ", 1000))}}), ErrCorrupt},
		"tar cut short":  {build(t, imageSpec{tars: [][]byte{good, half[:len(half)/2]}}), ErrCorrupt},
		"wrong diff ID":  {lying, ErrCorrupt},
		"path upwards":   {build(t, imageSpec{layers: []layer{{"../../../evil": {content: "x"}}}}), nil},
		"owner too high": {build(t, imageSpec{layers: []layer{{"f": {content: "x", uid: 70000}}}}), ErrIDRange},
		"helm chart":     {chart, ErrUnsupported},
		"symlinks out":   {escape, nil},
	} {
		t.Run(name, func(t *testing.T) {
			f := startFake(t, c.img, nil)
			s := fakeStore(t, f)
			_, err := s.Images.Pull(context.Background(), PullRequest{Ref: f.host + "/app:v1"})
			t.Log(err)
			if !errors.Is(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
			if exists("/tmp/escaped") || exists(filepath.Join(s.layers.opts.Root, "evil")) {
				t.Error("a file of the layer is outside of the store")
			}
			if c.want != nil {
				wantClean(t, s, 0)
			}
			if name == "owner too high" && (!strings.Contains(err.Error(), "70000") || !strings.Contains(err.Error(), "65536")) {
				t.Errorf("the error names neither the ID nor the range: %v", err)
			}
		})
	}
}

// relink makes the manifest fit a changed config.
func relink(t *testing.T, img *built) {
	t.Helper()
	for d, blob := range img.blobs {
		if !strings.HasPrefix(string(blob), "{") {
			continue
		}
		delete(img.blobs, d)
		now := digest.FromBytes(img.config)
		img.blobs[now] = img.config
		img.manifest = []byte(strings.Replace(string(img.manifest), d.String(), now.String(), 1))
		return
	}
	t.Fatal("no config among the blobs")
}

func TestIgnoreChownErrors(t *testing.T) {
	img := build(t, imageSpec{layers: []layer{{"f": {content: "x", uid: 70000, gid: 70000}}}})
	f := startFake(t, img, nil)
	o := testOptions(t, t.TempDir(), DriverFuse)
	insecureConf(t, o, f.host)
	o.IgnoreChownErrors = true
	s := openStore(t, o)
	got := pullRef(t, s, f.host+"/app:v1")
	r, err := s.Rootfs.Create(context.Background(), RootfsSpec{ID: containerID(1), ImageID: got.ID})
	if err != nil {
		t.Fatal(err)
	}
	wantFile(t, filepath.Join(r.Path, "f"), "x", 0o644, 0, 0)
}

func TestSchema1(t *testing.T) {
	const doc = `{"schemaVersion":1,"name":"app","tag":"v1","architecture":"amd64","fsLayers":[{"blobSum":"sha256:a3ed95caeb02ffe68cdd9fd84406680ae93d633cb16422d00e8a7c22955b46d4"}],"history":[{"v1Compatibility":"{}"}]`
	for mime, text := range map[string]string{
		"application/vnd.docker.distribution.manifest.v1+json":      doc + "}",
		"application/vnd.docker.distribution.manifest.v1+prettyjws": doc + `,"signatures":[]}`, // and none that fits
		"application/octet-stream":                                  doc + `,"signatures":[{"protected":"x"}]}`,
	} {
		f := startFake(t, sample(t, "x"), func(w http.ResponseWriter, r *http.Request) bool {
			if !strings.Contains(r.URL.Path, "/manifests/") {
				return false
			}
			w.Header().Set("Content-Type", mime)
			fmt.Fprint(w, text)
			return true
		})
		s := fakeStore(t, f)
		_, err := s.Images.Pull(context.Background(), PullRequest{Ref: f.host + "/app:v1"})
		if !errors.Is(err, ErrUnsupported) || !strings.Contains(err.Error(), "schema 1") {
			t.Errorf("%s: %v, want ErrUnsupported that says why", mime, err)
		}
	}
}

// The server is killed in the middle of a pull: the next one cleans up.
func TestKilledWhilePulling(t *testing.T) {
	img := sample(t, "killed")
	second := make(chan struct{}, 8)
	f := startFake(t, img, func(w http.ResponseWriter, r *http.Request) bool {
		if strings.HasSuffix(r.URL.Path, img.layers[1].String()) {
			second <- struct{}{}
			<-r.Context().Done()
			return true
		}
		return false
	})
	o := testOptions(t, t.TempDir(), DriverFuse)
	insecureConf(t, o, f.host)
	_, kill := startChild(t, childOrder{Options: o, Pull: f.host + "/app:v1"})
	select {
	case <-second:
	case <-time.After(patience):
		t.Fatal("the second layer was not asked for")
	}
	layers := filepath.Join(o.Root, "overlay-layers", "layers.json")
	for deadline := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		if data, _ := os.ReadFile(layers); strings.Contains(string(data), `"diff-size"`) {
			break // the first layer is complete
		}
		if time.Now().After(deadline) {
			t.Fatal("the first layer was not unpacked")
		}
	}
	kill()
	// A layer whose unpacking was cut short, too.
	stray := filepath.Join(o.Root, "overlay", strings.Repeat("a", 64), "diff")
	if err := os.MkdirAll(stray, 0o755); err != nil {
		t.Fatal(err)
	}
	s := openStore(t, o)
	wantClean(t, s, 0)
	f.setHook(nil)
	pullRef(t, s, f.host+"/app:v1")
	wantClean(t, s, 2)
}

// The machine goes down before the kernel has written a new image to the disk:
// the image goes, an older one stays.
func TestPowerFailure(t *testing.T) {
	ctx := context.Background()
	o := testOptions(t, t.TempDir(), DriverFuse)
	s := openStore(t, o)
	old := loadInto(t, s, "example.com/old:v1", sample(t, "old"))
	s.Images.work.Wait()
	if marks, err := os.ReadDir(s.layers.dirs.unsynced()); err != nil || len(marks) != 0 {
		t.Errorf("marks after the sync: %v %v", marks, err)
	}
	since := time.Now()
	fresh := loadInto(t, s, "example.com/fresh:v1", sample(t, "fresh"))
	s.Close()
	mark := filepath.Join(s.layers.dirs.unsynced(), "pull-1")

	// Killed, same boot: everything is there.
	writeFile(t, mark, fmt.Sprintf("%s %d\n", bootID(), since.UnixNano()))
	s = openStore(t, o)
	for _, id := range []string{old, fresh} {
		if _, err := s.Images.Get(ctx, id); err != nil {
			t.Errorf("after a kill: %v", err)
		}
	}
	s.Close()

	writeFile(t, mark, fmt.Sprintf("another-boot %d\n", since.UnixNano()))
	s = openStore(t, o)
	if _, err := s.Images.Get(ctx, old); err != nil {
		t.Errorf("old image: %v", err)
	}
	if _, err := s.Images.Get(ctx, fresh); !errors.Is(err, ErrImageNotFound) {
		t.Errorf("fresh image: %v, want ErrImageNotFound", err)
	}
	wantClean(t, s, 2)
	loadInto(t, s, "example.com/fresh:v1", sample(t, "fresh"))
}

// While one pull unpacks or hangs, the store answers and containers start.
func TestNotBlockedByPull(t *testing.T) {
	ctx := context.Background()
	img := build(t, imageSpec{layers: []layer{{"f": {content: "one"}}, {"g": {content: "two"}}}})
	reached, release := make(chan struct{}, 8), make(chan struct{})
	f := startFake(t, img, func(w http.ResponseWriter, r *http.Request) bool {
		if strings.HasSuffix(r.URL.Path, img.layers[1].String()) {
			reached <- struct{}{}
			<-release
		}
		return false
	})
	o := testOptions(t, t.TempDir(), DriverNative)
	insecureConf(t, o, f.host)
	s := openStore(t, o)
	id := loadInto(t, s, "example.com/app:v1", sample(t, "app"))
	done := make(chan error, 1)
	go func() {
		_, err := s.Images.Pull(ctx, PullRequest{Ref: f.host + "/app:v1"})
		done <- err
	}()
	select {
	case <-reached:
	case <-time.After(patience):
		t.Fatal("the second layer was not asked for")
	}
	// As if a big layer were being unpacked: the library's layer lock is taken.
	locked := lockLayers(t, o.Root)
	// It stays taken until these are done: what waits for it never ends.
	err := within(t, "work beside somebody else's pull", func() error {
		_, created := s.Rootfs.Create(ctx, RootfsSpec{ID: containerID(1), ImageID: id})
		_, listed := s.Images.List(ctx)
		_, measured := s.Images.FSInfo(ctx)
		return errors.Join(created, listed, measured, s.Rootfs.Delete(ctx, containerID(1)))
	})
	if err != nil {
		t.Error(err)
	}
	locked()
	close(release)
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// lockLayers takes containers/storage's layer lock in another process.
func lockLayers(t *testing.T, root string) func() {
	t.Helper()
	_, kill := startChild(t, childOrder{Options: Options{Root: root}, LockLayers: true})
	return kill
}
