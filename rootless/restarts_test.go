package rootless

import (
	"os"
	"testing"
)

// TestRestarts: each program has its own count, which outlives what counts, and what
// cannot be read is 0.
func TestRestarts(t *testing.T) {
	n := &Node{RunDir: t.TempDir()}
	dir := nodeDir(n.RunDir)
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		countRestart(dir, "uplink")
	}
	countRestart(dir, "server")
	if err := os.WriteFile(restartFile(dir, "monitor"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := n.Restarts(); got["uplink"] != 3 || got["server"] != 1 || got["monitor"] != 0 || len(got) != 3 {
		t.Errorf("%v", got)
	}
}
