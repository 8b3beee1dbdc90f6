package storage

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// writeLayout writes images as an OCI layout, each under its name.
func writeLayout(t testing.TB, dir string, images map[string]built) string {
	t.Helper()
	idx := v1.Index{MediaType: v1.MediaTypeImageIndex}
	idx.SchemaVersion = 2
	for name, img := range images {
		for d, blob := range img.blobs {
			writeFile(t, filepath.Join(dir, "blobs", "sha256", d.Encoded()), string(blob))
		}
		writeFile(t, filepath.Join(dir, "blobs", "sha256", img.digest().Encoded()), string(img.manifest))
		idx.Manifests = append(idx.Manifests, v1.Descriptor{MediaType: v1.MediaTypeImageManifest, Digest: img.digest(),
			Size: int64(len(img.manifest)), Annotations: map[string]string{v1.AnnotationRefName: name}})
	}
	slices.SortFunc(idx.Manifests, func(a, b v1.Descriptor) int {
		return strings.Compare(a.Annotations[v1.AnnotationRefName], b.Annotations[v1.AnnotationRefName])
	})
	writeFile(t, filepath.Join(dir, "oci-layout"), `{"imageLayoutVersion":"1.0.0"}`)
	writeFile(t, filepath.Join(dir, "index.json"), string(mustJSON(t, idx)))
	return dir
}

// loadInto puts one image into the store, without a registry.
func loadInto(t testing.TB, s *Store, name string, img built) string {
	t.Helper()
	dir := writeLayout(t, filepath.Join(t.TempDir(), digest.FromString(name).Encoded()[:8]), map[string]built{name: img})
	images, err := s.Images.Load(context.Background(), "oci:"+dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(images) != 1 || images[0].ID != img.id() {
		t.Fatalf("loaded %v, want %s", images, img.id())
	}
	return img.id()
}

func wantFile(t testing.TB, path, content string, mode os.FileMode, uid, gid uint32) {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		t.Errorf("%s: %v", path, err)
		return
	}
	if st.Uid != uid || st.Gid != gid || st.Mode&0o7777 != uint32(mode) {
		t.Errorf("%s: owner %d:%d mode %o, want %d:%d %o", path, st.Uid, st.Gid, st.Mode&0o7777, uid, gid, mode)
	}
	if st.Mode&unix.S_IFMT == unix.S_IFREG {
		if got, err := os.ReadFile(path); err != nil || string(got) != content {
			t.Errorf("%s: %q %v, want %q", path, got, err, content)
		}
	}
}

// wantSample checks the sample image's files below root; shift is added to IDs.
func wantSample(t testing.TB, root, mark string, shift uint32) {
	t.Helper()
	wantFile(t, filepath.Join(root, "etc/mark"), mark, 0o644, shift, shift)
	wantFile(t, filepath.Join(root, "data"), "", 0o750, 1002+shift, 1003+shift)
	wantFile(t, filepath.Join(root, "data/new"), "new", 0o644, 65533+shift, 65533+shift)
	wantFile(t, filepath.Join(root, "bin/sh"), "#!", 0o4755, shift, shift)
	for _, gone := range []string{"etc/gone", "etc/.wh.gone", "data/old", "data/owned", "data/.wh..wh..opq"} {
		if exists(filepath.Join(root, gone)) {
			t.Errorf("%s is there", gone)
		}
	}
	if to, err := os.Readlink(filepath.Join(root, "lib")); err != nil || to != "usr/lib" {
		t.Errorf("lib: %q %v", to, err)
	}
	a, errA := os.Stat(filepath.Join(root, "bin/sh"))
	b, errB := os.Stat(filepath.Join(root, "bin/zsh"))
	if errA != nil || errB != nil || !os.SameFile(a, b) {
		t.Errorf("bin/sh and bin/zsh are not the same file: %v %v", errA, errB)
	}
}

func TestRootfs(t *testing.T) {
	for _, driver := range []string{DriverFuse, DriverNative, DriverVFS} {
		t.Run(driver, func(t *testing.T) {
			ctx := context.Background()
			s := openStore(t, testOptions(t, t.TempDir(), driver))
			if info := s.Info(); info.Driver != driver || info.Reason == "" || info.BackingFS == "" {
				t.Errorf("info %+v", info)
			}
			image := loadInto(t, s, "example.com/app:v1", sample(t, "one"))
			id := containerID(1)
			r, err := s.Rootfs.Create(ctx, RootfsSpec{ID: id, ImageID: image})
			if err != nil {
				t.Fatal(err)
			}
			wantSample(t, r.Path, "one", 0)
			again, err := s.Rootfs.Create(ctx, RootfsSpec{ID: id, ImageID: "sha256:" + image})
			if err != nil || again != r {
				t.Errorf("created again: %v %v, want %v", again, err, r)
			}
			if n := len(mountsBelow(t, s.layers.opts.Root)); n != 1 {
				t.Errorf("%d mounts, want 1", n)
			}
			wantWritable(t, s, id, r)
			wantInUse(t, s, id, image)
			if err := s.Rootfs.Unmount(ctx, id); err != nil {
				t.Error(err)
			}
			if err := s.Rootfs.Unmount(ctx, id); err != nil {
				t.Errorf("unmounted again: %v", err)
			}
			if mounts := mountsBelow(t, s.layers.opts.Root); len(mounts) > 0 {
				t.Errorf("mounts after unmount: %v", mounts)
			}
			if r, err = s.Rootfs.Mount(ctx, id); err != nil {
				t.Fatal(err)
			}
			wantFile(t, filepath.Join(r.Path, "srv"), "written", 0o644, 0, 0)
			for range 2 {
				if err := s.Rootfs.Delete(ctx, id); err != nil {
					t.Error(err)
				}
			}
			if exists(s.layers.dirs.rootfs(id)) {
				t.Error("the root file system's directory is still there")
			}
			if err := s.Images.Remove(ctx, "example.com/app:v1"); err != nil {
				t.Error(err)
			}
			if _, err := s.Rootfs.Create(ctx, RootfsSpec{ID: id, ImageID: image}); !errors.Is(err, ErrImageNotFound) {
				t.Errorf("create without image: %v", err)
			}
			if ids, err := s.Rootfs.IDs(ctx); err != nil || len(ids) != 0 {
				t.Errorf("left after failure: %v %v", ids, err)
			}
			if _, err := s.Rootfs.Mount(ctx, id); !errors.Is(err, ErrRootfsNotFound) {
				t.Errorf("mount of none: %v", err)
			}
			for _, bad := range []string{"", "..", "../x", "a/b", strings.Repeat("x", 200)} {
				if _, err := s.Rootfs.Create(ctx, RootfsSpec{ID: bad, ImageID: image}); !errors.Is(err, ErrBadID) {
					t.Errorf("create %q: %v", bad, err)
				}
				if err := s.Rootfs.Delete(ctx, bad); err != nil {
					t.Errorf("delete %q: %v", bad, err)
				}
			}
		})
	}
}

// wantWritable writes to the root file system and looks for it in the usage.
func wantWritable(t *testing.T, s *Store, id string, r Mounted) {
	t.Helper()
	ctx := context.Background()
	before, err := s.Rootfs.Usage(ctx, id)
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(r.Path, "srv"), "written")
	writeFile(t, filepath.Join(r.Path, "big"), strings.Repeat("x", 1<<20))
	if err := os.Remove(filepath.Join(r.Path, "etc/mark")); err != nil {
		t.Error(err)
	}
	if exists(filepath.Join(r.Path, "etc/mark")) {
		t.Error("a deleted file is still there")
	}
	after, err := s.Rootfs.Usage(ctx, id)
	if err != nil || after.Bytes < before.Bytes+1<<20 || after.Inodes < before.Inodes+1 {
		t.Errorf("usage %+v, then %+v (%v)", before, after, err)
	}
	info, err := s.Images.FSInfo(ctx)
	if err != nil || info.Containers != after || info.UsedBytes == 0 || info.InodesUsed < 10 || info.Mountpoint != s.layers.opts.Root {
		t.Errorf("FSInfo %+v (%v), container usage %+v", info, err, after)
	}
	if _, err := s.Rootfs.Usage(ctx, containerID(0xee)); !errors.Is(err, ErrRootfsNotFound) {
		t.Errorf("usage of none: %v", err)
	}
}

func wantInUse(t *testing.T, s *Store, id, image string) {
	t.Helper()
	ctx := context.Background()
	if err := s.Images.Remove(ctx, image); !errors.Is(err, ErrImageInUse) || !strings.Contains(err.Error(), id) {
		t.Errorf("remove image in use: %v", err)
	}
	if used, err := s.Images.InUse(image); err != nil || !used {
		t.Errorf("InUse: %v %v", used, err)
	}
	if _, err := s.Rootfs.Create(ctx, RootfsSpec{ID: id, ImageID: strings.Repeat("0", 64)}); !errors.Is(err, ErrBadID) {
		t.Errorf("create with another image: %v", err)
	}
	if ids, err := s.Rootfs.IDs(ctx); err != nil || !slices.Equal(ids, []string{id}) {
		t.Errorf("RootfsIDs %v %v", ids, err)
	}
}

func TestImageMountAndReadOnly(t *testing.T) {
	for _, driver := range []string{DriverFuse, DriverNative, DriverVFS} {
		t.Run(driver, func(t *testing.T) {
			ctx := context.Background()
			s := openStore(t, testOptions(t, t.TempDir(), driver))
			image := loadInto(t, s, "example.com/app:v1", sample(t, "one"))
			path, err := s.Rootfs.MountImage(ctx, RootfsSpec{ID: "volume-1", ImageID: image})
			if err != nil {
				t.Fatal(err)
			}
			wantSample(t, path, "one", 0)
			if err := os.WriteFile(filepath.Join(path, "x"), nil, 0o644); !errors.Is(err, unix.EROFS) {
				t.Errorf("write to an image: %v, want EROFS", err)
			}
			if again, err := s.Rootfs.MountImage(ctx, RootfsSpec{ID: "volume-1", ImageID: image}); err != nil || again != path {
				t.Errorf("mounted again: %s %v", again, err)
			}
			if err := s.Images.Remove(ctx, image); !errors.Is(err, ErrImageInUse) {
				t.Errorf("remove mounted image: %v", err)
			}
			r, err := s.Rootfs.Create(ctx, RootfsSpec{ID: containerID(1), ImageID: image, ReadOnly: true})
			if err != nil {
				t.Fatal(err)
			}
			wantSample(t, r.Path, "one", 0)
			for range 2 {
				if err := s.Rootfs.UnmountImage(ctx, "volume-1"); err != nil {
					t.Error(err)
				}
			}
			if ids, err := s.Rootfs.ImageMountIDs(ctx); err != nil || len(ids) != 0 {
				t.Errorf("image mounts left: %v %v", ids, err)
			}
		})
	}
}

// A nested user namespace sees the image's files through shifted IDs.
func TestRootfsNestedUserNamespace(t *testing.T) {
	for _, driver := range []string{DriverFuse, DriverNative} {
		t.Run(driver, func(t *testing.T) {
			ctx := context.Background()
			o := testOptions(t, t.TempDir(), driver)
			s := openStore(t, o)
			small := build(t, imageSpec{layers: []layer{{"etc": {typeflag: '5'}, "etc/mark": {content: "m"}, "u": {content: "u", uid: 1002, gid: 1003}}}})
			image := loadInto(t, s, "example.com/app:v1", small)
			spec := RootfsSpec{ID: containerID(1), ImageID: image,
				UIDMap: []IDMap{{Container: 0, Host: 20000, Size: 10000}, {Container: 10000, Host: 40000, Size: 5}}, GIDMap: []IDMap{{Container: 0, Host: 20000, Size: 10000}, {Container: 10000, Host: 40000, Size: 5}}}
			if err := os.Chmod(o.Root, 0o700); err != nil {
				t.Fatal(err)
			}
			if _, err := s.Rootfs.Create(ctx, spec); !errors.Is(err, ErrNotUsable) || !strings.Contains(err.Error(), "MountDir") {
				t.Errorf("below a 0700 directory: %v, want ErrNotUsable that names MountDir", err)
			}
			s.layers.opts.MountDir = filepath.Join("/tmp", "mounts-"+driver)
			r, err := s.Rootfs.Create(ctx, spec)
			if err != nil {
				t.Fatal(err)
			}
			wantFile(t, filepath.Join(r.Path, "etc/mark"), "m", 0o644, 20000, 20000)
			wantFile(t, filepath.Join(r.Path, "u"), "u", 0o644, 21002, 21003)
			writeFile(t, filepath.Join(r.Path, "mine"), "x")
			if err := os.Chown(filepath.Join(r.Path, "mine"), 40002, 20007); err != nil {
				t.Error(err)
			}
			wantFile(t, filepath.Join(s.layers.dirs.rootfs(spec.ID), "upper/mine"), "x", 0o644, 10002, 7)
			if _, err := s.Rootfs.Mount(ctx, spec.ID); err != nil {
				t.Error(err)
			}
			if err := s.Rootfs.Delete(ctx, spec.ID); err != nil {
				t.Error(err)
			}
			wantNoLeaks(t, s.layers.opts.MountDir)
		})
	}
}

// 128 layers are more than a page of absolute names.
func TestRootfsManyLayers(t *testing.T) {
	spec := imageSpec{}
	const layers = 200 // of which 128 fit in one page of options of mount(2)
	for i := range layers {
		spec.layers = append(spec.layers, layer{fmt.Sprintf("f%d", i): {content: fmt.Sprint(i)}, "last": {content: fmt.Sprint(i)}})
	}
	img := build(t, spec)
	for _, driver := range []string{DriverFuse, DriverNative} {
		t.Run(driver, func(t *testing.T) {
			s := openStore(t, testOptions(t, t.TempDir(), driver))
			image := loadInto(t, s, "example.com/deep:v1", img)
			r, err := s.Rootfs.Create(context.Background(), RootfsSpec{ID: containerID(1), ImageID: image})
			if err != nil {
				t.Fatal(err)
			}
			wantFile(t, filepath.Join(r.Path, "f0"), "0", 0o644, 0, 0)
			wantFile(t, filepath.Join(r.Path, "last"), fmt.Sprint(layers-1), 0o644, 0, 0)
		})
	}
}

func TestAdditionalStore(t *testing.T) {
	for _, pair := range [][2]string{{DriverNative, DriverNative}, {DriverFuse, DriverFuse}, {DriverNative, DriverFuse}} {
		t.Run(pair[0]+" under "+pair[1], func(t *testing.T) {
			ctx := context.Background()
			lower := testOptions(t, filepath.Join(t.TempDir(), "podman"), pair[0])
			built := map[string]built{"localhost/built:v1": sample(t, "built")}
			image := built["localhost/built:v1"].id()
			// Another process: one process can't have a store open both ways.
			_, kill := startChild(t, childOrder{Options: lower, Load: "oci:" + writeLayout(t, t.TempDir(), built)})
			kill()
			o := testOptions(t, t.TempDir(), pair[1])
			o.AdditionalStores = []string{lower.Root, filepath.Join(t.TempDir(), "gone")}
			s := openStore(t, o)
			img, err := s.Images.Get(ctx, "localhost/built:v1")
			if err != nil || !img.ReadOnly || !img.Pinned || img.ID != image {
				t.Fatalf("image %+v %v", img, err)
			}
			r, err := s.Rootfs.Create(ctx, RootfsSpec{ID: containerID(1), ImageID: image})
			if err != nil {
				t.Fatal(err)
			}
			wantSample(t, r.Path, "built", 0)
			if err := s.Rootfs.Delete(ctx, containerID(1)); err != nil {
				t.Error(err)
			}
			if err := s.Images.Remove(ctx, image); !errors.Is(err, ErrReadOnlyImage) {
				t.Errorf("remove: %v", err)
			}
		})
	}
}

func TestDriverChoice(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, testOptions(t, dir, DriverAuto))
	if s.Info().Driver != DriverNative {
		t.Errorf("auto chose %+v, want native here", s.Info())
	}
	s.Close()
	// Layers with whiteout files can't be mounted natively.
	fuse := openStore(t, testOptions(t, filepath.Join(dir, "fuse"), ""))
	if fuse.Info().Driver != DriverFuse {
		t.Errorf("the default is %+v", fuse.Info())
	}
	loadInto(t, fuse, "example.com/app:v1", sample(t, "one"))
	fuse.Close()
	if _, err := Open(context.Background(), testOptions(t, filepath.Join(dir, "fuse"), DriverNative)); !errors.Is(err, ErrNotUsable) {
		t.Errorf("native over fuse-overlayfs layers: %v", err)
	}
	again := openStore(t, testOptions(t, filepath.Join(dir, "fuse"), DriverAuto))
	if again.Info().Driver != DriverFuse {
		t.Errorf("auto over fuse-overlayfs layers chose %+v", again.Info())
	}
	again.Close()
	for name, change := range map[string]func(*Options){
		"unknown driver":  func(o *Options) { o.Driver = "btrfs" },
		"missing program": func(o *Options) { o.MountProgram = "/nonexistent/fuse-overlayfs" },
		"broken program":  func(o *Options) { o.MountProgram = "/bin/true" },
		"colon in root":   func(o *Options) { o.Root += ":x" },
		"relative root":   func(o *Options) { o.Root = "x" },
	} {
		o := testOptions(t, t.TempDir(), DriverFuse)
		change(&o)
		if _, err := Open(context.Background(), o); !errors.Is(err, ErrNotUsable) {
			t.Errorf("%s: %v, want ErrNotUsable", name, err)
		} else {
			t.Logf("%s: %v", name, err)
		}
		if name != "relative root" {
			wantNoLeaks(t, o.Root)
		}
	}
}

// The root file system of a container is an overlay, on which the kernel mounts no
// other. Without fuse-overlayfs nothing is left there but full copies, and these
// are taken only where they are allowed.
func TestLastRung(t *testing.T) {
	base := t.TempDir()
	dirs := map[string]string{}
	for _, name := range []string{"lower", "upper", "work", "merged"} {
		dirs[name] = filepath.Join(base, name)
		if err := os.Mkdir(dirs[name], 0o755); err != nil {
			t.Fatal(err)
		}
	}
	data := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s,userxattr", dirs["lower"], dirs["upper"], dirs["work"])
	if err := unix.Mount("overlay", dirs["merged"], "overlay", 0, data); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(dirs["merged"], unix.MNT_DETACH) })

	o := testOptions(t, dirs["merged"], DriverAuto)
	o.MountProgram = "/nonexistent/fuse-overlayfs"
	_, err := Open(context.Background(), o)
	if !errors.Is(err, ErrNotUsable) || !strings.Contains(err.Error(), "allow_vfs") || !strings.Contains(err.Error(), "native overlay on") {
		t.Errorf("without permission: %v, want ErrNotUsable, why, and what would allow it", err)
	}
	o.AllowVFS = true
	s := openStore(t, o)
	info := s.Info()
	if info.Driver != DriverVFS || !strings.Contains(info.Reason, "native overlay on") || !strings.Contains(info.Reason, "fuse-overlayfs") {
		t.Errorf("with permission: %+v", info)
	}
	img := build(t, imageSpec{layers: []layer{{"f": {content: "copied"}}}})
	loadInto(t, s, "example.com/app:v1", img)
	r, err := s.Rootfs.Create(context.Background(), RootfsSpec{ID: containerID(1), ImageID: img.id()})
	if err != nil {
		t.Fatal(err)
	}
	wantFile(t, filepath.Join(r.Path, "f"), "copied", 0o644, 0, 0)
	if err := s.Rootfs.Delete(context.Background(), containerID(1)); err != nil {
		t.Error(err)
	}
}

func TestStoreIsHeld(t *testing.T) {
	o := testOptions(t, t.TempDir(), DriverNative)
	openStore(t, o)
	ctx, cancel := context.WithTimeout(context.Background(), 100*1e6)
	defer cancel()
	if _, err := Open(ctx, o); !errors.Is(err, ErrHeld) {
		t.Errorf("second Open: %v, want ErrHeld", err)
	}
}
