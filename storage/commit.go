package storage

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"
	imagespec "github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/subpod/subpod/pkg/openat2"
	"github.com/subpod/subpod/pkg/tree"
)

// Change is a path that a container has added ("A"), changed ("C") or deleted ("D") in its
// root file system.
type Change struct {
	Kind, Path string
}

// Changes returns what the root file system id has changed of its image, by path. The
// container may change it meanwhile: nothing is looked at through a link.
// ErrRootfsNotFound, ErrUnsupported for the driver vfs, which has full copies.
func (r *Rootfs) Changes(ctx context.Context, id string) ([]Change, error) {
	upper, rec, err := upperOf(r, id)
	if err != nil {
		return nil, err
	}
	layers, err := r.store.chain(rec.ImageID)
	if err != nil {
		return nil, err
	}
	var lower []*os.File
	defer func() {
		for _, l := range lower {
			l.Close()
		}
	}()
	for _, layer := range layers {
		f, err := r.store.openLayer(layer)
		if err != nil {
			return nil, err
		}
		lower = append(lower, f)
	}
	root, err := os.OpenRoot(upper)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	var out []Change
	err = tree.Walk(root, ".", func(name string, d fs.DirEntry) error {
		if err := context.Cause(ctx); err != nil || name == "." {
			return err
		}
		kind := "A"
		switch {
		case isOpaqueMark(d):
			return nil
		case isWhiteout(d):
			kind = "D"
			name = filepath.Join(filepath.Dir(name), strings.TrimPrefix(filepath.Base(name), whiteoutPrefix))
		case slices.ContainsFunc(lower, func(l *os.File) bool { return hasPath(l, name) }):
			kind = "C"
		}
		out = append(out, Change{kind, "/" + name})
		return nil
	})
	slices.SortFunc(out, func(a, b Change) int { return strings.Compare(a.Path, b.Path) })
	return out, err
}

// hasPath reports whether a layer has something at a path, none of whose directories is a link.
func hasPath(layer *os.File, name string) bool {
	fd, err := openat2.NoLinks(int(layer.Fd()), name, unix.O_PATH|unix.O_NOFOLLOW)
	if err != nil {
		return false
	}
	unix.Close(fd)
	return true
}

// upperOf returns the writable layer of a root file system.
func upperOf(r *Rootfs, id string) (string, record, error) {
	dir := r.store.dirs.rootfs(id)
	if !validID().MatchString(id) {
		return "", record{}, fmt.Errorf("%w: %q", ErrBadID, id)
	}
	rec, err := readRecord(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "", rec, fmt.Errorf("%w: %s", ErrRootfsNotFound, id)
	case err != nil:
		return "", rec, err
	case r.store.driver.name == DriverVFS:
		return "", rec, fmt.Errorf("%w: the driver vfs keeps full copies, not changes", ErrUnsupported)
	}
	return filepath.Join(dir, "upper"), rec, nil
}

// isWhiteout reports whether an entry of a writable layer stands for one that is deleted:
// a device 0:0, or a name as in the layers of images.
func isWhiteout(d fs.DirEntry) bool {
	if d.Type()&fs.ModeCharDevice == 0 {
		return strings.HasPrefix(d.Name(), whiteoutPrefix) && !isOpaqueMark(d)
	}
	info, err := d.Info()
	return err == nil && deviceOf(info) == 0
}

// opaqueDevice is a second mark of fuse-overlayfs in opaque directories, beside opaqueMarker.
// Neither name is one that a container can give.
const opaqueDevice = ".wh..opq"

func isOpaqueMark(d fs.DirEntry) bool { return d.Name() == opaqueMarker || d.Name() == opaqueDevice }

// CommitSpec says what an image is made of, beside a container's root file system.
type CommitSpec struct {
	// Rootfs is the ID of the container; Name that of the image.
	Rootfs, Name string
	// Config is that of the image.
	Config          v1.ImageConfig
	Author, Message string
}

// Commit makes an image of a container's root file system: its own image with one more
// layer, of what the container has changed. Nothing is left behind on failure.
// ErrRootfsNotFound, ErrBadReference, ErrUnsupported, ErrNoSpace.
func Commit(ctx context.Context, im *Images, r *Rootfs, spec CommitSpec) (Image, error) {
	named, err := parseReference(spec.Name)
	if err != nil {
		return Image{}, err
	}
	upper, rec, err := upperOf(r, spec.Rootfs)
	if err != nil {
		return Image{}, err
	}
	if len(rec.UIDMap) > 0 {
		return Image{}, fmt.Errorf("%w: the container has a user namespace of its own, whose IDs the image cannot have", ErrUnsupported)
	}
	var images []Image
	err = im.transfer(ctx, func(t *transfer) error {
		base, err := t.saveLayout(rec.ImageID)
		if err != nil {
			return err
		}
		defer base.layout.close()
		if err := addLayer(ctx, base, t.tmp, upper, named.String(), spec); err != nil {
			return err
		}
		images, err = im.Load(ctx, "oci:"+base.layout.path+":"+named.String())
		return err
	})
	if err != nil {
		return Image{}, fmt.Errorf("commit: %w", err)
	}
	return images[0], nil
}

// addLayer adds a layer to the image of a layout, which is made below tmp, and names it.
// A content process wrote the layout: no link in it leads out of tmp.
func addLayer(ctx context.Context, base *layoutReference, tmp, upper, name string, spec CommitSpec) error {
	var manifest v1.Manifest
	var config v1.Image
	raw, err := base.layout.manifest(base.entry.Digest, base.entry.Size)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(raw, &manifest); err != nil {
		return fmt.Errorf("%w: its manifest: %w", ErrCorrupt, err)
	}
	if raw, err = base.layout.config(manifest.Config); err != nil {
		return err
	}
	if err := json.Unmarshal(raw, &config); err != nil {
		return fmt.Errorf("%w: its configuration: %w", ErrCorrupt, err)
	}
	root, err := os.OpenRoot(tmp)
	if err != nil {
		return err
	}
	defer root.Close()
	if err := root.MkdirAll(filepath.Dir(blobPath(digest.FromString(""))), 0o700); err != nil {
		return err
	}
	layer, err := writeLayer(ctx, root, upper, base.layout.limits)
	if err != nil {
		return err
	}
	now := time.Now().UTC()
	config.Created, config.Author, config.Config = &now, spec.Author, spec.Config
	config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, layer.Digest)
	config.History = append(config.History, v1.History{Created: &now, CreatedBy: "subpod commit", Author: spec.Author, Comment: spec.Message})
	manifest.MediaType, manifest.Versioned = v1.MediaTypeImageManifest, imagespec.Versioned{SchemaVersion: 2}
	manifest.Layers = append(manifest.Layers, layer)
	if manifest.Config, err = writeBlob(root, v1.MediaTypeImageConfig, config); err != nil {
		return err
	}
	made, err := writeBlob(root, v1.MediaTypeImageManifest, manifest)
	if err != nil {
		return err
	}
	made.Annotations = map[string]string{v1.AnnotationRefName: name}
	text, err := json.Marshal(v1.Index{Versioned: manifest.Versioned, Manifests: []v1.Descriptor{made}})
	if err != nil {
		return err
	}
	return root.WriteFile(filepath.Join(savedLayout, v1.ImageIndexFile), text, 0o600)
}

// blobPath is where a blob of the layout is, below the directory of the transfer.
func blobPath(d digest.Digest) string {
	return filepath.Join(savedLayout, v1.ImageBlobsDir, d.Algorithm().String(), d.Encoded())
}

func writeBlob(root *os.Root, mediaType string, v any) (v1.Descriptor, error) {
	text, err := json.Marshal(v)
	if err != nil {
		return v1.Descriptor{}, err
	}
	d := v1.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(text), Size: int64(len(text))}
	return d, root.WriteFile(blobPath(d.Digest), text, 0o600)
}

// writeLayer writes a writable layer as a blob of the layout.
func writeLayer(ctx context.Context, root *os.Root, upper string, limits Limits) (v1.Descriptor, error) {
	const name = "layer"
	f, err := root.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return v1.Descriptor{}, err
	}
	sum := digest.SHA256.Digester()
	err = packLayer(ctx, upper, io.MultiWriter(f, sum.Hash()), limits)
	size, seekErr := f.Seek(0, io.SeekCurrent)
	if err = errors.Join(err, seekErr, f.Close()); err != nil {
		return v1.Descriptor{}, err
	}
	d := v1.Descriptor{MediaType: v1.MediaTypeImageLayer, Digest: sum.Digest(), Size: size}
	return d, root.Rename(name, blobPath(d.Digest))
}

// layerPacker writes a writable layer as a tar stream.
type layerPacker struct {
	ctx    context.Context
	root   *os.Root
	upper  string
	out    *tar.Writer
	links  map[[2]uint64]string
	limits Limits
	bytes  int64 // of files, as a container chooses them: most may be holes
}

// packLayer writes a writable layer as a tar stream in which what is deleted has the names
// that layers of images have for it. ErrTooLarge.
func packLayer(ctx context.Context, upper string, w io.Writer, limits Limits) error {
	root, err := os.OpenRoot(upper)
	if err != nil {
		return err
	}
	defer root.Close()
	p := &layerPacker{ctx: ctx, root: root, upper: upper, out: tar.NewWriter(w), links: map[[2]uint64]string{}, limits: limits}
	err = tree.Walk(root, ".", func(name string, d fs.DirEntry) error {
		if err := context.Cause(ctx); err != nil || name == "." {
			return err
		}
		if d.Type()&fs.ModeSocket != 0 || isOpaqueMark(d) {
			return nil // a mark is written with its directory
		}
		return p.pack(name, d)
	})
	if err != nil {
		return err
	}
	return p.out.Close()
}

func (p *layerPacker) pack(name string, d fs.DirEntry) error {
	if isWhiteout(d) {
		base := filepath.Base(name)
		if !strings.HasPrefix(base, whiteoutPrefix) {
			base = whiteoutPrefix + base
		}
		return p.out.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: filepath.Join(filepath.Dir(name), base), Mode: 0o600})
	}
	info, err := d.Info()
	if err != nil {
		return err
	}
	link := ""
	if info.Mode()&fs.ModeSymlink != 0 {
		if link, err = p.root.Readlink(name); err != nil {
			return err
		}
	}
	h, err := tar.FileInfoHeader(info, link)
	if err != nil {
		return err
	}
	h.Name, h.Uname, h.Gname = name, "", ""
	if !info.IsDir() && !info.Mode().IsRegular() {
		return p.out.WriteHeader(h)
	}
	if key, many := linkKey(info); many && !info.IsDir() {
		if first := p.links[key]; first != "" {
			h.Typeflag, h.Linkname, h.Size = tar.TypeLink, first, 0
			return p.out.WriteHeader(h)
		}
		p.links[key] = name
	}
	f, err := p.root.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	// A container may have put a FIFO in its place, which nobody ends.
	if now, err := f.Stat(); err != nil || now.Mode().Type() != info.Mode().Type() {
		return errors.Join(fmt.Errorf("%s is not what it was any more", name), err)
	}
	h.PAXRecords = map[string]string{}
	if err := readXattrs(f, h.PAXRecords); err != nil {
		return fmt.Errorf("read the attributes of %s: %w", name, err)
	}
	if info.IsDir() {
		return p.directory(h)
	}
	if p.bytes += h.Size; p.bytes > p.limits.Size {
		return tooLarge("size", "what the container has changed has more bytes", p.limits.Size)
	}
	if err := p.out.WriteHeader(h); err != nil {
		return err
	}
	_, err = io.CopyN(p.out, readerOf{p.ctx, f}, h.Size)
	return err
}

func (p *layerPacker) directory(h *tar.Header) error {
	name := h.Name
	h.Name += "/"
	if err := p.out.WriteHeader(h); err != nil || !isOpaqueDir(filepath.Join(p.upper, name)) {
		return err
	}
	return p.out.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: filepath.Join(name, opaqueMarker), Mode: 0o600})
}

// isOpaqueDir reports whether a directory hides those of the layers below it.
func isOpaqueDir(dir string) bool {
	if exists(filepath.Join(dir, opaqueMarker)) {
		return true
	}
	for _, name := range []string{"user.overlay.opaque", "trusted.overlay.opaque", "user.fuseoverlayfs.opaque"} {
		var b [1]byte
		if n, err := unix.Lgetxattr(dir, name, b[:]); err == nil && n == 1 && b[0] == 'y' {
			return true
		}
	}
	return false
}

func deviceOf(info fs.FileInfo) uint64 {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return st.Rdev
	}
	return 1
}

// linkKey identifies a file that has several names.
func linkKey(info fs.FileInfo) (key [2]uint64, many bool) {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || st.Nlink < 2 {
		return key, false
	}
	return [2]uint64{st.Dev, st.Ino}, true
}
