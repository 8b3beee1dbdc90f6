package storage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"path/filepath"
	"slices"

	imagecopy "go.podman.io/image/v5/copy"
	"go.podman.io/image/v5/docker/archive"
	"go.podman.io/image/v5/docker/reference"
	ociarchive "go.podman.io/image/v5/oci/archive"
	"go.podman.io/image/v5/oci/layout"
	"go.podman.io/image/v5/signature"
	imagestorage "go.podman.io/image/v5/storage"
	"go.podman.io/image/v5/types"
)

// Save writes images as an archive that Load reads: "docker-archive", or
// "oci-archive", which holds one image. ErrImageNotFound, ErrBadReference,
// ErrUnsupported (format), ErrNoSpace (the archive is made in the store first).
func (im *Images) Save(ctx context.Context, refs []string, format string, w io.Writer) error {
	switch {
	case len(refs) == 0:
		return fmt.Errorf("%w: no image to save", ErrBadReference)
	case format == "oci-archive" && len(refs) != 1:
		return fmt.Errorf("%w: an oci-archive holds one image", ErrUnsupported)
	case format != "docker-archive" && format != "oci-archive":
		return fmt.Errorf("%w: format %q is neither docker-archive nor oci-archive", ErrUnsupported, format)
	}
	err := im.transfer(ctx, func(t *transfer) error {
		// What it reads of the layers, beside their files, was written by a pull.
		if _, err := t.runContent(contentJob{Save: refs, Format: format}, contentRun{}); err != nil {
			return err
		}
		f, err := openVetted(archiveIn(t.tmp), math.MaxInt64)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = io.Copy(w, readerOf{ctx, f})
		return err
	})
	if err != nil {
		return fmt.Errorf("save: %w", err)
	}
	return nil
}

// readerOf is a reader that ends with its context.
type readerOf struct {
	ctx context.Context
	r   io.Reader
}

func (r readerOf) Read(p []byte) (int, error) {
	if err := context.Cause(r.ctx); err != nil {
		return 0, err
	}
	return r.r.Read(p)
}

// archiveIn is where an archive is made, in the directory of a transfer.
func archiveIn(tmp string) string { return filepath.Join(tmp, "archive") }

// save makes the archive of a job, or the layout.
func (t *worker) save(refs []string, format string) error {
	switch format {
	case formatLayout:
		return t.im.saveOCI(t.ctx, refs[0], filepath.Join(t.tmp, savedLayout), t.tmp, layout.NewReference)
	case "oci-archive":
		return t.im.saveOCI(t.ctx, refs[0], archiveIn(t.tmp), t.tmp, ociarchive.NewReference)
	}
	return t.im.saveDocker(t.ctx, refs, archiveIn(t.tmp), t.tmp)
}

func (im *Images) saveDocker(ctx context.Context, refs []string, path, tmp string) (err error) {
	sys, err := im.registries.systemContext(tmp)
	if err != nil {
		return err
	}
	out, err := archive.NewWriter(sys, path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	images, err := savedImages(im.store, refs)
	if err != nil {
		return err
	}
	for _, img := range images {
		var first reference.NamedTagged
		own := *sys
		if len(img.names) > 0 {
			first, own.DockerArchiveAdditionalTags = img.names[0], img.names[1:]
		}
		dest, err := out.NewReference(first)
		if err != nil {
			return err
		}
		if err := im.copyOut(ctx, &own, img.id, dest); err != nil {
			return err
		}
	}
	return nil
}

// savedImage is an image and the names that it has in an archive.
type savedImage struct {
	id    string
	names []reference.NamedTagged
}

// savedImages finds images, each once: an archive cannot have the same one twice, but with
// several names.
func savedImages(l *layerStore, refs []string) ([]savedImage, error) {
	var images []savedImage
	for _, ref := range refs {
		id, tagged, err := saved(l, ref)
		if err != nil {
			return nil, err
		}
		i := slices.IndexFunc(images, func(img savedImage) bool { return img.id == id })
		if i < 0 {
			i, images = len(images), append(images, savedImage{id: id})
		}
		has := func(n reference.NamedTagged) bool { return n.String() == tagged.String() }
		if tagged != nil && !slices.ContainsFunc(images[i].names, has) {
			images[i].names = append(images[i].names, tagged)
		}
	}
	return images, nil
}

func (im *Images) saveOCI(ctx context.Context, ref, path, tmp string, at func(path, name string) (types.ImageReference, error)) error {
	sys, err := im.registries.systemContext(tmp)
	if err != nil {
		return err
	}
	id, tagged, err := saved(im.store, ref)
	if err != nil {
		return err
	}
	name := ""
	if tagged != nil {
		name = tagged.String()
	}
	dest, err := at(path, name)
	if err != nil {
		return err
	}
	return im.copyOut(ctx, sys, id, dest)
}

// saved finds an image and the name that it has in the archive: the one that it
// was asked by, if that is one of its tags.
func saved(l *layerStore, ref string) (id string, tagged reference.NamedTagged, err error) {
	img, err := l.find(ref)
	if err != nil {
		return "", nil, err
	}
	if imageID(ref) == "" {
		if named, err := parseReference(ref); err == nil {
			for _, n := range img.Names {
				if n == named.String() {
					tagged, _ = named.(reference.NamedTagged)
				}
			}
		}
	}
	return img.ID, tagged, nil
}

// copyOut copies an image of the store. What it reads of the layers, beside their files, was
// written by a pull: it is for the content process.
func (im *Images) copyOut(ctx context.Context, sys *types.SystemContext, id string, dest types.ImageReference) error {
	if err := im.store.unchanged(id); err != nil {
		return err
	}
	src, err := imagestorage.Transport.NewStoreReference(im.store.cs, nil, id)
	if err != nil {
		return err
	}
	return copyAccepted(ctx, sys, src, dest)
}

// copyAccepted copies an image that has passed the policy on its way into the store.
func copyAccepted(ctx context.Context, sys *types.SystemContext, src, dest types.ImageReference) error {
	policy, err := signature.NewPolicyContext(&signature.Policy{Default: acceptAnything})
	if err != nil {
		return err
	}
	defer policy.Destroy()
	_, err = imagecopy.Image(ctx, policy, dest, src, &imagecopy.Options{
		SourceCtx: sys, DestinationCtx: sys, RemoveSignatures: true,
	})
	return err
}
