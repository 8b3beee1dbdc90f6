package storage

import (
	"fmt"
	"regexp"
	"strings"
	"sync"

	"go.podman.io/image/v5/docker/reference"
)

var (
	fullID = sync.OnceValue(func() *regexp.Regexp {
		return regexp.MustCompile(`^[0-9a-f]{64}$`)
	})
	partialID = sync.OnceValue(func() *regexp.Regexp {
		return regexp.MustCompile(`^[0-9a-f]{3,63}$`)
	})
	// credentials matches a name and a password in front of a registry, where they do not
	// belong: no error shows them. A name with a digest has no slash after its "@".
	credentials = sync.OnceValue(func() *regexp.Regexp {
		return regexp.MustCompile(`^(\w+://)?[^/@]*:.*@([^@]*/[^@]*)$`)
	})
)

// parseReference returns the full form of an image name: with its registry
// (docker.io when none is named, library/ for one-word names) and with either
// a digest or a tag (latest when none is given). A name with both a tag and a
// digest is known by its digest alone, as everywhere in CRI. ErrBadReference.
func parseReference(ref string) (reference.Named, error) {
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return nil, fmt.Errorf("%w: %.300q: %w", ErrBadReference, credentials().ReplaceAllString(ref, "${1}…@${2}"), err)
	}
	if digested, ok := named.(reference.Digested); ok {
		return reference.WithDigest(reference.TrimNamed(named), digested.Digest())
	}
	return reference.TagNameOnly(named), nil
}

// imageID returns the full image ID in ref, or "": 64 hex digits, with or
// without "sha256:".
func imageID(ref string) string {
	if id := strings.TrimPrefix(ref, "sha256:"); fullID().MatchString(id) {
		return id
	}
	return ""
}

// splitNames sorts an image's names into CRI's repo tags and repo digests.
func splitNames(names []string) (tags, digests []string) {
	for _, n := range names {
		named, err := reference.ParseNormalizedNamed(n)
		if err != nil {
			continue
		}
		if _, ok := named.(reference.Digested); ok {
			digests = append(digests, named.String())
		} else if _, ok := named.(reference.Tagged); ok {
			tags = append(tags, named.String())
		}
	}
	return tags, digests
}
