package storage

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// TestPlatforms: the image of the platform that is asked for is pulled, of an index of
// every form, and the name stands for it then; without a platform it is this machine's.
func TestPlatforms(t *testing.T) {
	r := startMemoryRegistry(t)
	o := testOptions(t, t.TempDir(), DriverNative)
	insecureConf(t, o, r.host)
	s := openStore(t, o)
	oci := v1.MediaTypeImageManifest
	entries := func(tag string) (all []v1.Descriptor) {
		for _, p := range []v1.Platform{{Architecture: "riscv64"}, {Architecture: "amd64"}, {Architecture: "arm64", Variant: "v8"}, {Architecture: "arm", Variant: "v6"}, {Architecture: "arm", Variant: "v7"}, {Architecture: "s390x"}} {
			img, kind := build(t, imageSpec{arch: p.Architecture, tars: [][]byte{tarEntries(t, "mark="+p.Architecture+p.Variant, "tag="+tag)}}), oci
			if tag == "docker" {
				img, kind = dockerStyle(t, img, "application/vnd.docker.image.rootfs.diff.tar.gzip"), dockerManifest
			}
			all = append(all, on(r.put(img, kind, ""), p.Architecture, p.Variant))
		}
		return all
	}
	r.index(t, v1.MediaTypeImageIndex, "oci", entries("oci")...)
	r.index(t, v1.MediaTypeImageIndex, "nested", r.index(t, v1.MediaTypeImageIndex, "", entries("nested")...))
	r.index(t, dockerList, "docker", entries("docker")...)
	r.put(build(t, imageSpec{arch: "s390x", tars: [][]byte{tarEntries(t, "mark=alone")}}), oci, "alone")
	here := Platform{}.String()
	n := byte(0)
	pull := func(ref, platform string) Image {
		t.Helper()
		p, err := ParsePlatform(platform)
		if err != nil {
			t.Fatal(err)
		}
		img, err := s.Images.Pull(context.Background(), PullRequest{Ref: ref, Platform: p})
		if err != nil {
			t.Fatalf("%s for %s: %v", ref, platform, err)
		}
		return img
	}
	mark := func(img Image) string {
		n++
		root, err := s.Rootfs.Create(context.Background(), RootfsSpec{ID: containerID(n), ImageID: img.ID})
		if err != nil {
			t.Fatal(err)
		}
		return mustRead(t, filepath.Join(root.Path, "mark"))
	}
	for _, tag := range []string{"oci", "nested", "docker"} {
		ref := r.host + "/x:" + tag
		first := pull(ref, "")
		if got := mark(first); got != strings.ReplaceAll(strings.TrimPrefix(here, "linux/"), "arm64", "arm64v8") {
			t.Errorf("%s for this machine: the image %s", tag, got)
		}
		for platform, want := range map[string]string{"linux/s390x": "s390x", "linux/arm/v6": "armv6", "linux/arm": "armv7", "linux/riscv64": "riscv64"} {
			img := pull(ref, platform)
			if got := mark(img); got != want || img.RunsHere() {
				t.Errorf("%s for %s: the image %s, of %s; it runs here: %v", tag, platform, got, img.Architecture, img.RunsHere())
			}
			if named, err := s.Images.Get(context.Background(), ref); err != nil || named.ID != img.ID {
				t.Errorf("%s after the pull for %s: %v, %s, want %s", ref, platform, err, named.ID, img.ID)
			}
			if again := pull(ref, platform); again.ID != img.ID {
				t.Errorf("%s for %s again: %s, want %s", tag, platform, again.ID, img.ID)
			}
		}
		if old, err := s.Images.Get(context.Background(), first.ID); err != nil || len(old.RepoTags) != 0 {
			t.Errorf("%s: the image that had the name before: %v, %v", tag, err, old.RepoTags)
		}
		if back := pull(ref, ""); back.ID != first.ID || !back.RunsHere() {
			t.Errorf("%s for this machine again: %s, want %s", tag, back.ID, first.ID)
		}
	}
	if img := pull(r.host+"/x:alone", "linux/s390x"); mark(img) != "alone" {
		t.Error("a single image for the platform is another one")
	}
	for ref, platform := range map[string]string{"oci": "linux/mips64le", "nested": "linux/ppc64le", "docker": "windows/amd64", "alone": "linux/arm64"} {
		p, _ := ParsePlatform(platform)
		if _, err := s.Images.Pull(context.Background(), PullRequest{Ref: r.host + "/x:" + ref, Platform: p}); !errors.Is(err, ErrUnsupported) || !strings.Contains(err.Error(), platform) {
			t.Errorf("%s for %s: %v", ref, platform, err)
		}
	}
	for _, bad := range []string{"linux", "linux/", "/amd64", "linux/arm/v7/x", "linux//v7x/y"} {
		if _, err := ParsePlatform(bad); !errors.Is(err, ErrBadReference) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}
