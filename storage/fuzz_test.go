package storage

import (
	"errors"
	"strings"
	"testing"

	"go.podman.io/image/v5/docker/reference"
)

// FuzzReference: an image reference is refused with ErrBadReference, or its full
// form names a registry and either a tag or a digest, and stands for itself.
func FuzzReference(f *testing.F) {
	for _, s := range []string{
		"busybox", "docker.io/library/busybox:latest", "localhost:5000/a/b:c", "a@sha256:" + strings.Repeat("0", 64),
		"a:b@sha256:" + strings.Repeat("f", 64), "sha256:" + strings.Repeat("a", 64), strings.Repeat("a", 64), "abc", "[::1]:5000/x", "", "../x", "A", "a//b", "a:\x00",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		named, err := parseReference(s)
		if err != nil {
			if !errors.Is(err, ErrBadReference) {
				t.Errorf("%q: %v", s, err)
			}
			return
		}
		_, tagged := named.(reference.Tagged)
		_, digested := named.(reference.Digested)
		if tagged == digested || reference.Domain(named) == "" {
			t.Errorf("%q is %q", s, named)
		}
		again, err := parseReference(named.String())
		if err != nil || again.String() != named.String() {
			t.Errorf("%q is %q, and that is %v, %v", s, named, again, err)
		}
		tags, digests := splitNames([]string{named.String()})
		if len(tags)+len(digests) != 1 {
			t.Errorf("%q: tags %q, digests %q", s, tags, digests)
		}
	})
}

// FuzzImageID: only 64 hexadecimal digits are an ID.
func FuzzImageID(f *testing.F) {
	f.Add("sha256:" + strings.Repeat("a", 64))
	f.Add(strings.Repeat("0", 63))
	f.Fuzz(func(t *testing.T, s string) {
		if id := imageID(s); id != "" && (len(id) != 64 || strings.Trim(id, "0123456789abcdef") != "") {
			t.Errorf("%q has the ID %q", s, id)
		}
	})
}
