package storage

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"go.podman.io/image/v5/docker"
	"go.podman.io/image/v5/docker/reference"
	"go.podman.io/image/v5/image"
	"go.podman.io/image/v5/manifest"
	"go.podman.io/image/v5/signature"
	"go.podman.io/image/v5/types"
)

// maxManifests bounds how many manifests are fetched to find one for this machine, and
// maxNesting how deep indexes may lie in each other.
const (
	maxManifests = 16
	maxNesting   = 4
)

// plainSource presents the image of a source that is for this machine as if it were the
// only one there, in a form that the library takes: it does not look into an index in
// an index, for near platforms, at the content of a manifest whose type the registry
// does not say, at Docker manifests with zstd layers, or at OCI manifests with a
// configuration of Docker's. Signatures are those of the
// source as it came: see openSource.allowed.
type plainSource struct {
	types.ImageSource                // as it came
	top               []byte         // the manifest that the reference names
	instance          *digest.Digest // of the image's manifest, nil where it is top
	raw               []byte         // the image's manifest as it is presented
	mime              string
	limits            Limits
	platform          Platform
	changed           bool // the library would take the source for something else
	// unframed are the layers that are presented without their first frames, by the digests
	// that they have then.
	unframed map[digest.Digest]types.BlobInfo
}

// plain replaces the source of o by a plainSource, where the library needs one. A source
// with nothing for this machine is ErrUnsupported.
func (o *openSource) plain(ctx context.Context, sys *types.SystemContext, limits Limits, platform Platform) error {
	raw, mime, err := o.source.GetManifest(ctx, nil)
	if err != nil {
		return err
	}
	if err := limits.checkManifest(int64(len(raw))); err != nil {
		return err
	}
	p := &plainSource{ImageSource: o.source, top: raw, limits: limits, platform: platform, changed: o.unframe}
	fetches := maxManifests
	if err := p.choose(ctx, sys, raw, mime, 0, &fetches); err != nil {
		return err
	}
	if o.unframe {
		if err := p.unframe(ctx); err != nil {
			return err
		}
	}
	if p.changed {
		o.source = p
	}
	return nil
}

// choose finds the image for this machine behind a manifest or index.
func (p *plainSource) choose(ctx context.Context, sys *types.SystemContext, raw []byte, mime string, depth int, fetches *int) error {
	kind := mimeOf(raw, mime)
	if isSchema1(kind) && isSchema1(manifest.GuessMIMEType(raw)) {
		return fmt.Errorf("%w: it is of Docker schema 1, which registries have not served since 2024: push it again with a current tool", ErrUnsupported)
	}
	p.changed = p.changed || depth > 1 || kind != manifest.NormalizedMIMEType(mime)
	if !manifest.MIMETypeIsMultiImage(kind) {
		return p.present(raw, kind)
	}
	if depth >= maxNesting {
		return fmt.Errorf("%w: indexes lie in each other, more than %d deep", ErrUnsupported, maxNesting)
	}
	list, err := manifest.ListFromBlob(raw, kind)
	if err != nil {
		return fmt.Errorf("%w: its index: %w", ErrCorrupt, err)
	}
	found, none, err := candidates(raw, p.platform)
	if err != nil {
		return err
	}
	usual, _ := list.ChooseInstance(sys)
	slices.SortStableFunc(found, func(a, b v1.Descriptor) int { // what the library would take first
		return cmp.Compare(btoi(a.Digest != usual), btoi(b.Digest != usual))
	})
	changed := p.changed
	for _, d := range found {
		if d.Digest == usual && d.MediaType == v1.MediaTypeImageManifest && !changed && depth == 0 {
			return nil // the library takes it as it is, and checks the manifest
		}
		if *fetches--; *fetches < 0 {
			return fmt.Errorf("%w: none of %d manifests of its indexes is for %s", ErrUnsupported, maxManifests, p.platform)
		}
		at := d.Digest
		child, mime, err := p.ImageSource.GetManifest(ctx, &at)
		if err != nil {
			return err
		}
		if err := p.limits.checkManifest(int64(len(child))); err != nil {
			return err
		}
		if match, err := manifest.MatchesDigest(child, at); err != nil || !match {
			return fmt.Errorf("%w: the manifest %s of its index does not have this digest", ErrCorrupt, at)
		}
		if err := wrongSize("manifest", at, int64(len(child)), d.Size); err != nil {
			return err
		}
		p.instance, p.changed = &at, changed || at != usual
		if err = p.choose(ctx, sys, child, mime, depth+1, fetches); !errors.Is(err, errNotHere) {
			return err
		}
	}
	return fmt.Errorf("%w: its index has %w for %s: %s", ErrUnsupported, errNotHere, p.platform, none)
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// errNotHere says that an index has nothing for the platform.
var errNotHere = errors.New("no image")

// mimeOf returns the type of a manifest: what was said of it, or where that is nothing,
// or says nothing, what it looks like.
func mimeOf(raw []byte, said string) string {
	kind := manifest.NormalizedMIMEType(said)
	if isSchema1(kind) {
		if guess := manifest.GuessMIMEType(raw); guess != "" {
			return guess
		}
	}
	return kind
}

func isSchema1(mime string) bool {
	return mime == manifest.DockerV2Schema1MediaType || mime == manifest.DockerV2Schema1SignedMediaType
}

// present notes what is presented.
func (p *plainSource) present(raw []byte, mime string) error {
	p.raw, p.mime = raw, mime
	var converted []byte
	var err error
	switch mime {
	case manifest.DockerV2Schema2MediaType:
		converted, err = ociManifest(raw)
	case v1.MediaTypeImageManifest:
		converted, err = ociConfig(raw)
	}
	if converted != nil {
		p.raw, p.mime, p.changed = converted, v1.MediaTypeImageManifest, true
	}
	return err
}

// ociManifest converts a manifest of Docker's with layers of types that Docker's schema
// 2 does not have. It returns nil for others. ErrCorrupt, ErrUnsupported.
func ociManifest(raw []byte) ([]byte, error) {
	var m v1.Manifest
	if err := json.Unmarshal(raw, &m); err != nil {
		return nil, fmt.Errorf("%w: its manifest: %w", ErrCorrupt, err)
	}
	known := true
	for _, l := range m.Layers {
		known = known && manifest.SupportedSchema2MediaType(l.MediaType) == nil
	}
	if known {
		return nil, nil
	}
	for i, l := range m.Layers {
		kind := v1.MediaTypeImageLayer
		if !strings.Contains(l.MediaType, "tar") {
			return nil, fmt.Errorf("%w: its layer %d is of type %.100q", ErrUnsupported, i+1, l.MediaType)
		}
		switch {
		case strings.HasSuffix(l.MediaType, "zstd"):
			kind = v1.MediaTypeImageLayerZstd
		case strings.HasSuffix(l.MediaType, "gzip"):
			kind = v1.MediaTypeImageLayerGzip
		}
		m.Layers[i].MediaType = kind
	}
	m.MediaType, m.Config.MediaType = v1.MediaTypeImageManifest, v1.MediaTypeImageConfig
	return json.Marshal(m)
}

// ociConfig converts an OCI manifest whose configuration has Docker's type, which is the same
// format, and which the library refuses. It returns nil for others. ErrCorrupt.
func ociConfig(raw []byte) ([]byte, error) {
	var m v1.Manifest
	if err := json.Unmarshal(raw, &m); err != nil {
		return nil, fmt.Errorf("%w: its manifest: %w", ErrCorrupt, err)
	}
	if m.Config.MediaType != manifest.DockerV2Schema2ConfigMediaType {
		return nil, nil
	}
	m.Config.MediaType = v1.MediaTypeImageConfig
	return json.Marshal(m)
}

// Reference returns the reference of the source, without a digest that is not the one
// of what is presented.
func (p *plainSource) Reference() types.ImageReference {
	ref := p.ImageSource.Reference()
	named := ref.DockerReference()
	if named == nil {
		return ref
	}
	if _, digested := named.(reference.Canonical); !digested {
		return ref
	}
	if plain, err := docker.NewReference(reference.TagNameOnly(reference.TrimNamed(named))); err == nil {
		return plain
	}
	return ref
}

// GetManifest returns the manifest of the image, which is the only one.
func (p *plainSource) GetManifest(context.Context, *digest.Digest) ([]byte, string, error) {
	return p.raw, p.mime, nil
}

// GetSignatures returns none: those of the source are not of what is presented.
func (p *plainSource) GetSignatures(context.Context, *digest.Digest) ([][]byte, error) {
	return nil, nil
}

// LayerInfosForCopy returns what the source has for the image.
func (p *plainSource) LayerInfosForCopy(ctx context.Context, _ *digest.Digest) ([]types.BlobInfo, error) {
	return p.ImageSource.LayerInfosForCopy(ctx, p.instance)
}

// policyFor returns the policy by which src is copied. A plainSource is judged here, as
// it came, and then accepted.
func (r *registries) policyFor(ctx context.Context, src types.ImageReference) (*signature.PolicyContext, error) {
	policy, err := r.policy()
	if err != nil {
		return nil, err
	}
	o, _ := src.(*openSource)
	if o == nil {
		return policy, nil
	}
	if _, plain := o.source.(*plainSource); !plain {
		return policy, nil
	}
	defer policy.Destroy()
	if _, err := policy.IsRunningImageAllowed(ctx, o.unparsed(nil)); err != nil {
		return nil, err
	}
	return signature.NewPolicyContext(&signature.Policy{Default: signature.PolicyRequirements{signature.NewPRInsecureAcceptAnything()}})
}

// unparsed returns the image for a policy to judge: as it came.
func (o *openSource) unparsed(instance *digest.Digest) *image.UnparsedImage {
	if p, ok := o.source.(*plainSource); ok {
		return image.UnparsedInstance(p.ImageSource, p.instance)
	}
	return image.UnparsedInstance(o.source, instance)
}
