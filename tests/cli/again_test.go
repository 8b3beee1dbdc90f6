package cli

import (
	"fmt"
	"sync"
	"testing"

	"github.com/subpod/subpod/tests/node"
	"github.com/subpod/subpod/tests/registry"
)

// TestRunAgain: what "run --rm" has had is free to the next run as soon as the command has
// returned, although the daemon removes the pod in its own time. It has others to remove.
func TestRunAgain(t *testing.T) {
	n := node.Start(t, node.Options{Config: bridge, Registries: registry.Conf(node.Registry(t))})
	n.MustSubpod("pull", "-q", "busybox")
	n.MustSubpod("network", "create", "--subnet", "10.99.0.0/24", "again")
	var clients sync.WaitGroup
	for i := range 6 {
		needs := [][]string{{"--name", fmt.Sprint("again", i)}, {"-p", fmt.Sprint(18080+i, ":80")}, {"--network", fmt.Sprint("again:ip=10.99.0.", 7+i)}}[i%3]
		clients.Go(func() {
			for range 20 {
				if _, err := n.Subpod(append(append([]string{"run", "--rm"}, needs...), "busybox", "true")...); err != nil {
					t.Error(err)
				}
			}
		})
	}
	clients.Wait()
	settle(t, n)
}
