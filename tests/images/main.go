// Command images makes the images that the tests run, from Debian's packages and
// a busybox built from Debian's source (see fetch.sh), without root, Docker or a
// registry that someone else runs.
//
//	images fill                  all of them, into .cache/images
//	images archive -busybox FILE -o FILE    one busybox image, as an OCI archive
//	images node-e2e -sysroot DIR -agnhost FILE -source DIR -o DIR
//	                             those of Kubernetes' node e2e suite, for a docker-registry
//
// fill leaves a directory that a docker-registry serves (registry), and the
// busybox image in the three forms that "subpod load" takes (busybox.oci,
// busybox.oci.tar, busybox.docker.tar). It does nothing when they are there, made of
// the same busybox by the same program.
package main

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/subpod/subpod/tests/registry"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "images:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) == 0 {
		return errors.New("usage: images fill | images archive -busybox FILE -o FILE | images node-e2e -sysroot DIR -agnhost FILE -source DIR -o DIR")
	}
	flags := flag.NewFlagSet("images "+args[0], flag.ContinueOnError)
	cache := flags.String("cache", ".cache/images", "where fetch.sh has put its work, and where the images go")
	busybox := flags.String("busybox", "/bin/busybox", "archive: the static busybox to put in")
	out := flags.String("o", "busybox.oci.tar", "archive: the file to write; node-e2e: the directory")
	sysroot := flags.String("sysroot", "", "node-e2e: what tests/kubernetes/packages.sh has put there")
	agnhost := flags.String("agnhost", "", "node-e2e: the program agnhost")
	source := flags.String("source", "", "node-e2e: the directory of agnhost's source")
	if err := flags.Parse(args[1:]); err != nil {
		return err
	}
	switch args[0] {
	case "fill":
		return fill(*cache)
	case "archive":
		l, err := busyboxLayer(*busybox)
		if err != nil {
			return err
		}
		img, err := newImage(recipe{names: []string{"docker.io/library/busybox:latest"}, layers: []*layer{l}, config: shell()})
		if err != nil {
			return err
		}
		return writeOCIArchive(*out, img)
	case "node-e2e":
		return fillNodeE2E(*out, nodeE2ESources{cache: *cache, sysroot: *sysroot, agnhost: *agnhost, source: *source})
	}
	return fmt.Errorf("no command %q", args[0])
}

// fill makes everything in a new directory and puts it in place at the end, so
// that what stands there is always whole.
func fill(cache string) error {
	done := filepath.Join(cache, "made", "complete")
	sources, err := digestOf(filepath.Join(cache, "busybox"), "tests/images")
	if err != nil {
		return err
	}
	if made, err := os.ReadFile(done); err == nil && string(made) == sources {
		return nil
	}
	start := time.Now()
	recipes, err := recipes(cache)
	if err != nil {
		return err
	}
	work := filepath.Join(cache, "made.new")
	if err := os.RemoveAll(work); err != nil {
		return err
	}
	if err := os.MkdirAll(work, 0o755); err != nil {
		return err
	}
	if err := store(cache, filepath.Join(work, "registry"), recipes, func(r recipe, img *image) error {
		if r.export {
			return export(work, img)
		}
		return nil
	}); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(work, "complete"), []byte(sources), 0o644); err != nil {
		return err
	}
	if err := replace(filepath.Join(cache, "made"), work); err != nil {
		return err
	}
	fmt.Printf("images: %d made in %.1fs\n", len(recipes), time.Since(start).Seconds())
	return nil
}

// fillNodeE2E makes the images of the node e2e suite in a new directory, and puts it in place.
// It does nothing when they are there, made of the same sources.
func fillNodeE2E(dir string, s nodeE2ESources) error {
	sources, err := digestOf(filepath.Join(s.cache, "busybox"), "tests/images", s.agnhost, filepath.Join(s.sysroot, ".complete"))
	if err != nil {
		return err
	}
	if made, err := os.ReadFile(filepath.Join(dir, "complete")); err == nil && string(made) == sources {
		return nil
	}
	recipes, err := nodeE2E(s)
	if err != nil {
		return err
	}
	work := dir + ".new"
	if err := os.RemoveAll(work); err != nil {
		return err
	}
	if err := store(s.cache, work, recipes, func(recipe, *image) error { return nil }); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(work, "complete"), []byte(sources), 0o644); err != nil {
		return err
	}
	return replace(dir, work)
}

// store makes images and puts them where a docker-registry serves them from. each sees
// every one of them.
func store(cache, dir string, recipes []recipe, each func(recipe, *image) error) error {
	reg, err := registry.Start(registry.Options{Binary: filepath.Join(cache, "sysroot/usr/bin/docker-registry"), Dir: dir})
	if err != nil {
		return err
	}
	defer reg.Stop()
	for _, r := range recipes {
		img, err := newImage(r)
		if err != nil {
			return fmt.Errorf("%s: %w", r.names[0], err)
		}
		if err := push(reg.Addr, img); err != nil {
			return fmt.Errorf("%s: %w", r.names[0], err)
		}
		if err := each(r, img); err != nil {
			return err
		}
	}
	return reg.Stop()
}

// replace puts a whole directory in the place of another.
func replace(dir, by string) error {
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	return os.Rename(by, dir)
}

func export(dir string, img *image) error {
	return errors.Join(
		writeLayout(filepath.Join(dir, "busybox.oci"), img),
		writeOCIArchive(filepath.Join(dir, "busybox.oci.tar"), img),
		writeDockerArchive(filepath.Join(dir, "busybox.docker.tar"), img),
	)
}

// digestOf returns a digest of the regular files that sources are or have below them:
// their names and contents. Their times say nothing, since each checkout has new ones.
func digestOf(sources ...string) (string, error) {
	h := sha256.New()
	for _, source := range sources {
		err := filepath.WalkDir(source, func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			b, err := os.ReadFile(path)
			fmt.Fprintf(h, "%s %d\n%s", path, len(b), b)
			return err
		})
		if err != nil {
			return "", err
		}
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}
