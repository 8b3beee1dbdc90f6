package storage

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

// benchDir returns a directory for a store. SUBPOD_BENCH_DIR names one on a
// real disk, writable for the namespace's root; without it, tmpfs is measured.
func benchDir(b *testing.B) string {
	parent := os.Getenv("SUBPOD_BENCH_DIR")
	if parent == "" {
		return b.TempDir()
	}
	dir, err := os.MkdirTemp(parent, "bench")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func median(d []time.Duration) float64 {
	slices.Sort(d)
	return float64(d[len(d)/2].Microseconds()) / 1000
}

// benchImage returns an image of layers times files files of size bytes.
func benchImage(b *testing.B, layers, files, size int) built {
	spec := imageSpec{}
	for l := range layers {
		now := layer{}
		for f := range files {
			seed := digest.FromString(fmt.Sprint(l, f)).Encoded()
			now[fmt.Sprintf("d%d-%d", l, f)] = entry{content: strings.Repeat(seed, size/len(seed)+1)[:size]}
		}
		spec.layers = append(spec.layers, now)
	}
	return build(b, spec)
}

// The whole life of a root file system, by driver: create + mount, then
// unmount + delete, with a file written in between.
func BenchmarkRootfs(b *testing.B) {
	for _, driver := range []string{DriverNative, DriverFuse} {
		for _, layers := range []int{1, 8} {
			b.Run(fmt.Sprintf("%s/layers=%d", driver, layers), func(b *testing.B) {
				ctx := context.Background()
				s := openStore(b, testOptions(b, benchDir(b), driver))
				image := loadInto(b, s, "example.com/app:v1", benchImage(b, layers, 20, 4096))
				var up, down []time.Duration
				for b.Loop() {
					began := time.Now()
					r, err := s.Rootfs.Create(ctx, RootfsSpec{ID: containerID(1), ImageID: image})
					if err != nil {
						b.Fatal(err)
					}
					up = append(up, time.Since(began))
					if err := os.WriteFile(filepath.Join(r.Path, "x"), []byte("x"), 0o644); err != nil {
						b.Fatal(err)
					}
					began = time.Now()
					if err := s.Rootfs.Delete(ctx, containerID(1)); err != nil {
						b.Fatal(err)
					}
					down = append(down, time.Since(began))
				}
				b.ReportMetric(median(up), "ms-create")
				b.ReportMetric(median(down), "ms-delete")
			})
		}
	}
}

// Pulls from a registry on loopback, each into an empty store.
func BenchmarkPull(b *testing.B) {
	for _, shape := range [][3]int{{1, 10, 4096}, {10, 10, 4096}, {4, 1100, 16 << 10}} {
		b.Run(fmt.Sprintf("layers=%d,files=%d", shape[0], shape[0]*shape[1]), func(b *testing.B) {
			r := startRegistry(b, false)
			r.push(b, "app", "v1", benchImage(b, shape[0], shape[1], shape[2]))
			o := testOptions(b, benchDir(b), DriverFuse)
			insecureConf(b, o, r.host)
			s := openStore(b, o)
			var took, again []time.Duration
			for b.Loop() {
				began := time.Now()
				img := pullRef(b, s, r.host+"/app:v1")
				took = append(took, time.Since(began))
				began = time.Now()
				pullRef(b, s, r.host+"/app:v1")
				again = append(again, time.Since(began))
				if err := s.Images.Remove(context.Background(), img.ID); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(median(took), "ms-pull")
			b.ReportMetric(median(again), "ms-again")
			b.ReportMetric(float64(shape[0])*1000/median(took), "layers/s")
		})
	}
}
