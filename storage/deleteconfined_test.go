package storage

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/subpod/subpod/pkg/landlock"
)

// What a content process writes between the look at a layer and its removal does not
// lead the removal out of the store, nor to what is the server's in it.
func TestRemovalStaysInStore(t *testing.T) {
	if landlock.Version() < 2 {
		t.Skip("the kernel's Landlock cannot rule files: " + landlock.Rules{}.Missing())
	}
	dir := t.TempDir()
	s := openStore(t, testOptions(t, dir, DriverFuse))
	img := sample(t, "race")
	for name, victim := range map[string]string{"outside": filepath.Join(dir, "victim"), "the server's": filepath.Join(s.layers.dirs.own, "victim")} {
		t.Run(name, func(t *testing.T) {
			writeFile(t, filepath.Join(victim, "secret"), "secret")
			loadInto(t, s, "example.com/race:v1", img)
			layers, err := s.layers.chain(img.id())
			if err != nil {
				t.Fatal(err)
			}
			out, err := filepath.Rel(filepath.Join(s.layers.dirs.overlay(), "l"), victim)
			if err != nil {
				t.Fatal(err)
			}
			layer := s.layers.layerDir(layers[0])
			hostile := func() error {
				return os.WriteFile(filepath.Join(layer, "link"), []byte(out), 0o600)
			}
			afterVet = func() {
				if err := hostile(); err != nil {
					t.Error(err)
				}
			}
			t.Cleanup(func() { afterVet = func() {} })
			if err := s.Images.Remove(context.Background(), img.id()); err != nil {
				t.Error(err)
			}
			if exists(layer) {
				t.Error("the layer is still there")
			}
			wantFile(t, filepath.Join(victim, "secret"), "secret", 0o644, 0, 0)
			_ = os.RemoveAll(victim)
		})
	}
}

// TestRemovalPassesFIFO: what a content process puts in the place of a layer's file after
// the look at it does not keep the removal, which has the store locked.
func TestRemovalPassesFIFO(t *testing.T) {
	s := openStore(t, testOptions(t, t.TempDir(), DriverFuse))
	img := sample(t, "fifo")
	loadInto(t, s, "example.com/fifo:v1", img)
	layers, err := s.layers.chain(img.id())
	if err != nil {
		t.Fatal(err)
	}
	layer := s.layers.layerDir(layers[0])
	afterVet = func() {
		name := filepath.Join(layer, "link")
		if err := errors.Join(os.Remove(name), unix.Mkfifo(name, 0o600)); err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(func() { afterVet = func() {} })
	if err := within(t, "the removal", func() error { return s.Images.Remove(context.Background(), img.id()) }); err != nil {
		t.Error(err)
	}
	if exists(layer) {
		t.Error("the layer is still there")
	}
}
