package storage

import (
	"context"
	"fmt"
	"io/fs"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"
	imagecopy "go.podman.io/image/v5/copy"
	"go.podman.io/image/v5/docker"
	"go.podman.io/image/v5/oci/layout"
	"go.podman.io/image/v5/pkg/compression"
	"go.podman.io/image/v5/signature"
	"go.podman.io/image/v5/types"
	"golang.org/x/sys/unix"
)

// pushChunked pushes an image with its layers as zstd:chunked.
func pushChunked(t testing.TB, host, name string, img built) {
	t.Helper()
	pushAs(t, host, name, img, compression.ZstdChunked)
}

// pushAs pushes an image with its layers compressed anew.
func pushAs(t testing.TB, host, name string, img built, format compression.Algorithm) {
	t.Helper()
	src, err := layout.NewReference(writeLayout(t, filepath.Join(t.TempDir(), digest.FromString(name).Encoded()[:8]), map[string]built{"x": img}), "x")
	if err != nil {
		t.Fatal(err)
	}
	dest, err := docker.ParseReference("//" + host + "/" + name)
	if err != nil {
		t.Fatal(err)
	}
	policy, err := signature.NewPolicyContext(&signature.Policy{Default: signature.PolicyRequirements{signature.NewPRInsecureAcceptAnything()}})
	if err != nil {
		t.Fatal(err)
	}
	defer policy.Destroy()
	_, err = imagecopy.Image(context.Background(), policy, dest, src, &imagecopy.Options{
		DestinationCtx: &types.SystemContext{CompressionFormat: &format,
			DockerInsecureSkipTLSVerify: types.OptionalBoolTrue, BlobInfoCacheDir: t.TempDir()},
		ForceCompressionFormat: true,
	})
	if err != nil {
		t.Fatal(err)
	}
}

// Of a zstd:chunked layer only the files that are new are downloaded.
func TestPartialPull(t *testing.T) {
	for _, driver := range []string{DriverFuse, DriverNative} {
		t.Run(driver, func(t *testing.T) {
			r := startRegistry(t, false)
			host, sent := servedBytes(t, r)

			files := layer{}
			for i := range 100 {
				files[fmt.Sprintf("f%02d", i)] = entry{content: random(20000 + i), uid: i}
			}
			one := build(t, imageSpec{layers: []layer{files}})
			files["f50"] = entry{content: random(30000)}
			files[".wh.gone"] = entry{}
			two := build(t, imageSpec{layers: []layer{files}})
			o := testOptions(t, t.TempDir(), driver)
			insecureConf(t, o, host)
			s := openStore(t, o) // first: it tells the libraries where home is
			pushChunked(t, r.host, "app:one", one)
			pushChunked(t, r.host, "app:two", two)
			pullRef(t, s, host+"/app:one")
			first := sent.Swap(0)
			var last Progress
			img, err := s.Images.Pull(context.Background(), PullRequest{Ref: host + "/app:two", Progress: func(p Progress) { last = p }})
			if err != nil {
				t.Fatal(err)
			}
			second := sent.Load()
			t.Logf("downloaded %d bytes, then %d", first, second)
			if second > first/4 {
				t.Errorf("the second pull downloaded %d bytes, the first %d: not a partial pull", second, first)
			}
			if last.Total == 0 || last.Total > second || last.Downloaded != last.Total {
				t.Errorf("progress ended at %+v, of %d bytes", last, second)
			}
			if img.ID != two.id() {
				t.Errorf("ID %s, want the config digest %s", img.ID, two.id())
			}
			root, err := s.Rootfs.Create(context.Background(), RootfsSpec{ID: containerID(1), ImageID: img.ID})
			if err != nil {
				t.Fatal(err)
			}
			wantFile(t, filepath.Join(root.Path, "f50"), random(30000), 0o644, 0, 0)
			wantFile(t, filepath.Join(root.Path, "f99"), random(20099), 0o644, 99, 0)
			if exists(filepath.Join(root.Path, ".wh.gone")) {
				t.Error("a whiteout is visible")
			}
			wantClean(t, s, 2)
		})
	}
}

// TestRenamedMeanwhile: openat2's EAGAIN is worth another try, that of a full process
// table is not.
func TestRenamedMeanwhile(t *testing.T) {
	for _, c := range []struct {
		err  error
		want bool
	}{
		{fmt.Errorf("writing blob: %w", &fs.PathError{Op: "openat2", Path: "etc/x", Err: unix.EAGAIN}), true},
		{&fs.PathError{Op: "openat2", Path: "etc/x", Err: unix.ENOSPC}, false},
		{&fs.PathError{Op: "fork/exec", Path: "/proc/self/exe", Err: unix.EAGAIN}, false},
	} {
		if got := renamedMeanwhile(c.err); got != c.want {
			t.Errorf("%v: %v, want %v", c.err, got, c.want)
		}
	}
}
