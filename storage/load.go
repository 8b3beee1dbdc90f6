package storage

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/ulikunitz/xz" // ours: see internal/xz
	"go.podman.io/image/v5/docker/reference"
	"go.podman.io/image/v5/image"
	"go.podman.io/image/v5/manifest"
	"go.podman.io/image/v5/oci/layout"
	"go.podman.io/image/v5/pkg/compression"
	"go.podman.io/image/v5/types"
)

// annotationContainerdName is how containerd and BuildKit write an image's full
// name into an OCI layout.
const annotationContainerdName = "io.containerd.image.name"

// Load copies images into the store from a file or directory:
// "oci:DIR[:REF]", "oci-archive:FILE[:REF]", "docker-archive:FILE[:REF]", or a
// bare path, whose kind is found by its content. Without REF all images are
// loaded. An OCI image is named by its annotations, if these hold a full name;
// otherwise it is known by its ID only. The policy applies as for Pull.
// ErrBadReference, ErrImageNotFound (no such file or REF), ErrCorrupt,
// ErrUnsupported, ErrSignature, ErrNoSpace.
func (im *Images) Load(ctx context.Context, source string) ([]Image, error) {
	return im.load(ctx, source, source)
}

// load is Load of a source that errors call shown.
func (im *Images) load(ctx context.Context, source, shown string) ([]Image, error) {
	var images []Image
	err := im.transfer(ctx, func(t *transfer) error {
		kind, path, ref, err := splitSource(source)
		if err != nil {
			return err
		}
		if path, err = filepath.Abs(path); err != nil {
			return fmt.Errorf("%w: %w", ErrBadReference, err)
		}
		policy, err := im.registries.policy()
		if err != nil {
			return err
		}
		policy.Destroy() // it was only to be read
		ids, err := t.runContent(contentJob{Load: joinSource(kind, path, ref)}, contentRun{readable: []string{path}})
		if err != nil {
			return err
		}
		for _, id := range ids {
			img, err := im.Get(t.ctx, id)
			if err != nil {
				return err
			}
			images = append(images, img)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("load %s: %w", shown, err)
	}
	return images, nil
}

// joinSource is the reverse of splitSource.
func joinSource(kind, path, ref string) string {
	if kind != "" {
		path = kind + ":" + path
	}
	if ref != "" {
		path += ":" + ref
	}
	return path
}

// load loads from a source of Load and returns the IDs of the images.
func (t *worker) load(source string) ([]string, error) {
	kind, path, ref, err := splitSource(source)
	if err != nil {
		return nil, err
	}
	if kind == "" {
		if kind, err = detect(path); err != nil {
			return nil, err
		}
	}
	var images []string
	switch kind {
	case "oci":
		images, err = t.loadLayout(path, ref)
	case "oci-archive":
		images, err = t.loadOCIArchive(path, ref)
	case "docker-archive":
		images, err = t.loadDockerArchive(path, ref)
	}
	if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
		err = fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	return images, err
}

// splitSource takes a source of Load apart. A bare path has no kind.
func splitSource(source string) (kind, path, ref string, err error) {
	for _, k := range []string{"oci", "oci-archive", "docker-archive"} {
		if rest, ok := strings.CutPrefix(source, k+":"); ok {
			path, ref, _ = strings.Cut(rest, ":")
			kind = k
			break
		}
	}
	if kind == "" {
		path = source
	}
	st, err := os.Stat(path)
	if err != nil {
		return "", "", "", fmt.Errorf("%w: %w", ErrImageNotFound, err)
	}
	if !st.IsDir() && !st.Mode().IsRegular() {
		return "", "", "", fmt.Errorf("%w: %s is neither a file nor a directory", ErrUnsupported, path)
	}
	return kind, path, ref, nil
}

// detect returns what kind of image a path holds.
func detect(path string) (string, error) {
	if st, err := os.Stat(path); err == nil && st.IsDir() {
		if _, err := os.Stat(filepath.Join(path, v1.ImageLayoutFile)); err != nil {
			return "", fmt.Errorf("%w: the directory %s is no OCI layout", ErrUnsupported, path)
		}
		return "oci", nil
	}
	f, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrImageNotFound, err)
	}
	defer f.Close()
	stream, _, err := compression.AutoDecompress(f)
	if errors.Is(err, xz.ErrDictionary) {
		return "", fmt.Errorf("%w: %s: %w", ErrUnsupported, path, err)
	}
	if err != nil {
		return "", fmt.Errorf("%w: %s: %w", ErrCorrupt, path, err)
	}
	defer stream.Close()
	kind := ""
	for tr := tar.NewReader(stream); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if errors.Is(err, xz.ErrDictionary) {
			return "", fmt.Errorf("%w: %s: %w", ErrUnsupported, path, err)
		}
		if err != nil {
			return "", fmt.Errorf("%w: %s is no image archive: %w", ErrCorrupt, path, err)
		}
		switch name := cleanName(h.Name); {
		case name == "manifest.json":
			// docker save writes both forms into one file; only this one has all tags.
			return "docker-archive", nil
		case name == v1.ImageLayoutFile:
			kind = "oci-archive"
		case kind == "" && (name == "repositories" || filepath.Base(name) == "layer.tar"):
			kind = "docker-archive" // from before Docker 1.10
		}
	}
	if kind == "" {
		return "", fmt.Errorf("%w: %s is neither a Docker nor an OCI archive", ErrUnsupported, path)
	}
	return kind, nil
}

func (t *worker) loadOCIArchive(path, ref string) ([]string, error) {
	dir := filepath.Join(t.tmp, "layout")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	if err := t.unpackLayout(path, dir); err != nil {
		return nil, err
	}
	return t.loadLayout(dir, ref)
}

func (t *worker) loadLayout(dir, ref string) ([]string, error) {
	l, err := t.openLayout(dir)
	if err != nil {
		return nil, err
	}
	defer l.close()
	list, err := l.images()
	if err != nil {
		return nil, err
	}
	var images []string
	for i, entry := range list {
		notes := entry.Annotations
		if ref != "" && ref != notes[v1.AnnotationRefName] && ref != notes[annotationContainerdName] {
			continue
		}
		// By index: two entries may have the same annotation.
		src, err := layout.NewIndexReference(dir, i)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
		}
		img, err := t.loadOne(&layoutReference{src, l, entry}, layoutNames(notes))
		if err != nil {
			return nil, err
		}
		images = append(images, img)
	}
	if len(images) == 0 {
		return nil, noneLoaded(ref)
	}
	return images, nil
}

// layoutNames finds a full name in the annotations of an OCI index. A lone tag
// ("latest") names nothing.
func layoutNames(notes map[string]string) []reference.Named {
	for _, name := range []string{notes[annotationContainerdName], notes[v1.AnnotationRefName]} {
		if !strings.ContainsAny(name, "/:") {
			continue
		}
		if named, err := parseReference(name); err == nil {
			return []reference.Named{named}
		}
	}
	return nil
}

func (t *worker) loadDockerArchive(path, ref string) ([]string, error) {
	reader, err := openSavedArchive(path, t.tmp)
	if err != nil {
		return nil, err
	}
	defer reader.Close()
	list, err := reader.List()
	if err != nil {
		return nil, err
	}
	want := ""
	if ref != "" {
		named, err := parseReference(ref)
		if err != nil {
			return nil, err
		}
		want = named.String()
	}
	var images []string
	given := 0
	for _, refs := range list {
		if given += len(refs); given > int(t.meter.limits.Names) {
			return nil, tooLarge("names", "the archive gives its images more names", t.meter.limits.Names)
		}
		var names []reference.Named
		for _, r := range refs {
			if named := r.DockerReference(); named != nil && (want == "" || named.String() == want) {
				names = append(names, named)
			}
		}
		if want != "" && len(names) == 0 {
			continue
		}
		img, err := t.loadOne(refs[0], names)
		if err != nil {
			return nil, err
		}
		images = append(images, img)
	}
	if len(images) == 0 {
		return nil, noneLoaded(ref)
	}
	return images, nil
}

// noneLoaded is the error of an archive or layout without the image ref, or, where that is
// "", without any.
func noneLoaded(ref string) error {
	if ref == "" {
		return fmt.Errorf("%w: it has no images", ErrCorrupt)
	}
	return fmt.Errorf("%w: it has no image %q", ErrImageNotFound, ref)
}

// loadOne copies one image into the store and gives it names.
func (t *worker) loadOne(ref types.ImageReference, names []reference.Named) (id string, err error) {
	err = again(t, func() error {
		id, err = loadOnce(t, ref, names)
		return err
	})
	return id, err
}

func loadOnce(t *worker, ref types.ImageReference, names []reference.Named) (string, error) {
	sys, err := t.systemContext()
	if err != nil {
		return "", err
	}
	source, err := ref.NewImageSource(t.ctx, sys)
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	src := &openSource{ImageReference: ref, source: source}
	defer src.closeUnlessUsed()
	if err := src.plain(t.ctx, sys, t.meter.limits, t.platform); err != nil {
		return "", err
	}
	id, err := t.localID(sys, src.source)
	if err != nil {
		return "", err
	}
	if err := t.copy(sys, src, nil, id, nil, nil); err != nil {
		return "", err
	}
	for _, n := range names {
		if err := t.im.store.cs.AddNames(id, []string{n.String()}); err != nil {
			return "", fmt.Errorf("name image %s: %w", id, err)
		}
	}
	return id, nil
}

// localID returns the ID that the image behind src will have, after the same
// checks as for a pull.
func (t *worker) localID(sys *types.SystemContext, src types.ImageSource) (string, error) {
	ctx := t.ctx
	raw, mime, err := src.GetManifest(ctx, nil)
	if err != nil {
		return "", err
	}
	if err := t.meter.limits.checkManifest(int64(len(raw))); err != nil {
		return "", err
	}
	var instance *digest.Digest
	if manifest.MIMETypeIsMultiImage(mime) {
		list, err := manifest.ListFromBlob(raw, mime)
		if err != nil {
			return "", fmt.Errorf("%w: %w", ErrCorrupt, err)
		}
		d, err := list.ChooseInstance(sys)
		if err != nil {
			return "", fmt.Errorf("%w: %w", ErrUnsupported, err)
		}
		entry, err := list.Instance(d)
		if err != nil {
			return "", fmt.Errorf("%w: %w", ErrCorrupt, err)
		}
		instance = &d
		if err := t.checkInstance(src, instance, entry.Size); err != nil {
			return "", err
		}
	} else {
		if err := t.checkStated(raw, mime); err != nil {
			return "", err
		}
		if err := t.checkPlatform(sys, src); err != nil {
			return "", err
		}
	}
	img, err := image.FromUnparsedImage(ctx, sys, image.UnparsedInstance(src, instance))
	if err != nil {
		return "", err
	}
	config, err := img.ConfigBlob(ctx)
	if err != nil {
		return "", err
	}
	if err := t.meter.limits.checkConfig(config); err != nil {
		return "", err
	}
	if !json.Valid(bytes.TrimSpace(config)) {
		return "", fmt.Errorf("%w: the image's configuration is no JSON", ErrCorrupt)
	}
	return digest.FromBytes(config).Encoded(), nil
}
