package storage

import (
	"bytes"
	"fmt"
	"io"
	"testing"
)

// BenchmarkLayerFilter: what the filter adds to the unpacking of a layer, of many small
// files and of a large one.
func BenchmarkLayerFilter(b *testing.B) {
	small := []any{"d/"}
	for i := range 5000 {
		small = append(small, fmt.Sprintf("d/f%d=%s", i, random(2000)))
	}
	for name, layer := range map[string][]byte{"small": tarEntries(b, small...), "large": tarEntries(b, "big="+random(64<<20))} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(layer)))
			for b.Loop() {
				if err := newLayerFilter(bytes.NewReader(layer), io.Discard, &lowers{}, func() error { return nil }).run(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
