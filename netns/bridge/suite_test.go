package bridge

import (
	"path/filepath"
	"testing"

	"github.com/subpod/subpod/netns"
	"github.com/subpod/subpod/tests/nettest"
)

func TestConformance(t *testing.T) {
	nettest.Suite(t, func(t testing.TB, o nettest.Options) netns.Network {
		b, err := New(Options{Thread: o.World.Thread, StateDir: filepath.Join(o.World.Dir, "state"), RunDir: filepath.Join(o.World.Dir, "run"), Subnets: o.Subnets, Ports: o.Ports})
		nettest.Must(t, err)
		t.Cleanup(func() { b.Close() })
		return b
	})
}
