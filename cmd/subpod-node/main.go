// Command subpod-node is the part of subpod that lives as long as the node:
// rootlesskit's parent and child, and the supervisor of the server. It is a
// program of its own because these three would else keep the whole of subpod in
// memory. "subpod daemon" starts it; it has no command line of its own.
package main

import (
	"fmt"
	"os"

	"github.com/subpod/subpod/rootless"
)

func main() {
	rootless.Dispatch()
	fmt.Fprintln(os.Stderr, "subpod-node is started by \"subpod daemon\" and does nothing by itself")
	os.Exit(64)
}
