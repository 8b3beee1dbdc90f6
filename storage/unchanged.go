package storage

import (
	"github.com/opencontainers/go-digest"
	"go.podman.io/image/v5/docker/reference"
	"go.podman.io/image/v5/manifest"
	"go.podman.io/image/v5/signature"

	"github.com/subpod/subpod/storage/internal/fetch"
)

// unchanged returns the image of this name if the registry has, by this name, the
// manifest that the image was pulled by. Only the manifest's digest is looked at, so no
// content process is needed. The registry is asked in any case: whether the caller may
// have the image is for it to say. What a policy has to verify is not unchanged.
func (t *transfer) unchanged(named reference.Named, platform Platform, policy *signature.Policy, proxy *fetch.Proxy) (Image, bool) {
	if !acceptsAnything(policy) {
		return Image{}, false
	}
	if _, err := t.im.store.cs.Image(named.String()); err != nil {
		return Image{}, false // the usual case: not here yet
	}
	var name string
	algorithm := digest.Canonical
	switch n := named.(type) {
	case reference.Digested:
		name, algorithm = n.Digest().String(), n.Digest().Algorithm()
	case reference.Tagged:
		name = n.Tag()
	default:
		return Image{}, false
	}
	raw, err := proxy.Ask(t.ctx, name, manifest.DefaultRequestedManifestMIMETypes)
	if err != nil || !algorithm.Available() {
		return Image{}, false
	}
	byDigest, err := reference.WithDigest(reference.TrimNamed(named), algorithm.FromBytes(raw))
	if err != nil {
		return Image{}, false
	}
	return upToDate(t.im.store, platform, named, byDigest)
}
