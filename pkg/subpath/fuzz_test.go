package subpath

import (
	"path/filepath"
	"strings"
	"testing"
)

// FuzzCheck: a path that Check accepts names, as text, something in the volume.
func FuzzCheck(f *testing.F) {
	for _, sub := range []string{"", ".", "a/b", "a//b/", "..", "a/../..", "/a", "a/..b", "a\x00/../..", "./../x"} {
		f.Add(sub)
	}
	f.Fuzz(func(t *testing.T, sub string) {
		inside := sub == "" || filepath.IsLocal(sub)
		if Check(sub) == nil && (!inside || strings.ContainsRune(sub, 0)) {
			t.Errorf("%q was accepted", sub)
		}
	})
}
