// Command subpod-node-gvisor is subpod-node with one uplink more, gvisor-tap-vsock.
// "subpod daemon" starts it where that is the uplink; it has no command line of its own.
package main

import (
	"fmt"
	"os"

	"github.com/subpod/subpod/rootless"
	"github.com/subpod/subpod/rootless/gvisor"
)

func main() {
	rootless.Dispatch(gvisor.Uplink())
	fmt.Fprintln(os.Stderr, "subpod-node-gvisor is started by \"subpod daemon\" and does nothing by itself")
	os.Exit(64)
}
