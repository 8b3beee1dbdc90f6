package netns

import (
	"os"
	"testing"

	"github.com/subpod/subpod/tests/nstest"
)

func TestMain(m *testing.M) {
	Dispatch()
	os.Exit(nstest.Main(m, nstest.Options{Net: true, PID: true, IPC: true, UTS: true, IDs: 65536}))
}
