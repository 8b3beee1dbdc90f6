// Command subpod-node is the part of subpod that lives as long as the node:
// rootlesskit's parent and child, and the supervisor of the server. It is a
// program of its own because these three would else keep the whole of subpod in
// memory. "subpod daemon" starts it; it has no command line of its own. It is also the
// init process of containers that ask for one.
package main

import (
	"fmt"
	"os"

	"github.com/subpod/subpod/pkg/initproc"
	"github.com/subpod/subpod/rootless"
)

// initName is the name by which containers call their init process (pkg/ocispec).
const initName = "/run/.subpod-init"

func main() {
	if len(os.Args) > 2 && os.Args[0] == initName {
		os.Exit(initproc.Main(os.Args[2:]))
	}
	rootless.Dispatch()
	fmt.Fprintln(os.Stderr, "subpod-node is started by \"subpod daemon\" and does nothing by itself")
	os.Exit(64)
}
