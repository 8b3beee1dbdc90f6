package proc

import (
	"os"
	"testing"
)

func TestNamespacePIDs(t *testing.T) {
	if pids, err := NamespacePIDs(os.Getpid()); err != nil || pids[0] != os.Getpid() {
		t.Errorf("ours: %v, %v; want %d first", pids, err, os.Getpid())
	}
	if pids, err := NamespacePIDs(1 << 30); err == nil {
		t.Errorf("of no process: %v", pids)
	}
}
