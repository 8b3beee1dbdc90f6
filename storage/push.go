package storage

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"go.podman.io/image/v5/docker"
	"go.podman.io/image/v5/docker/reference"
	"go.podman.io/image/v5/pkg/sysregistriesv2"
	"go.podman.io/image/v5/types"
)

// Push copies the image that ref names to a registry, as dest, or as ref itself where dest
// is "", with the credentials of auth.json. It returns the name that the image has there.
// A content process reads the store; what it has written is sent as it is.
// ErrImageNotFound, ErrBadReference, ErrUnauthorized, ErrRegistryUnavailable, ErrNoSpace.
func (im *Images) Push(ctx context.Context, ref, dest string) (string, error) {
	id, tagged, err := saved(im.store, ref)
	if err != nil {
		return "", err
	}
	var named reference.Named = tagged
	if dest != "" {
		if named, err = parseReference(dest); err != nil {
			return "", err
		}
	}
	if named == nil || tagged == nil && dest == "" {
		return "", fmt.Errorf("%w: %s has no name at a registry: name the destination", ErrBadReference, ref)
	}
	if reference.IsNameOnly(named) {
		named = reference.TagNameOnly(named)
	}
	to, err := docker.NewReference(named)
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrBadReference, err)
	}
	err = im.transfer(ctx, func(t *transfer) error {
		src, err := t.saveLayout(id)
		if err != nil {
			return err
		}
		defer src.layout.close()
		sys, err := im.registries.systemContext(t.tmp)
		if err != nil {
			return err
		}
		sys.DockerProxy = keepTLS()
		err = copyAccepted(ctx, sys, src, to)
		if registry, e := sysregistriesv2.FindRegistry(sys, named.Name()); errors.Is(err, http.ErrSchemeMismatch) && e == nil && registry == nil && onLoopback(reference.Domain(named)) {
			sys.DockerProxy = keepTLS()
			sys.DockerInsecureSkipTLSVerify = types.OptionalBoolTrue // plain HTTP
			err = copyAccepted(ctx, sys, src, to)
		}
		if err == nil {
			return nil
		}
		sent, e := storedCredentials(sys, named)
		if e != nil {
			return err // they have not been sent either
		}
		return withoutSecret(err, sent)
	})
	if err != nil {
		return "", fmt.Errorf("push %s: %w", named, err)
	}
	im.store.log.Info("image pushed", "ref", named.String(), "image", id)
	return named.String(), nil
}
