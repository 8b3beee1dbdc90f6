package doctor

import (
	"os"
	"path/filepath"
	"testing"
)

// TestProbeEnds: what the probe of the overlays has started, such as a fuse-overlayfs that
// has gone into the background, ends with it, however it ends.
func TestProbeEnds(t *testing.T) {
	server := filepath.Join(t.TempDir(), "server")
	// In the background, with the probe's output: whoever reads that sees it live.
	if err := os.WriteFile(server, []byte("#!/bin/sh\nsleep 1000 &\necho '{}'\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := tryOverlay(server, t.TempDir(), ""); err != nil {
		t.Error(err)
	}
}
