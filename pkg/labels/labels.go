// Package labels names the labels and annotations that subpod's own commands
// put on pod sandboxes.
package labels

const (
	// MadeBy says which command has made a pod sandbox: Run or Play.
	MadeBy = "subpod.io/made-by"
	// RunID is an annotation of a pod sandbox that one run of a command has made:
	// random, so that no two runs ask for the same pod sandbox. The server then
	// answers all but the first one of a name with AlreadyExists, and never takes
	// them for retries of the same request.
	RunID = "subpod.io/run-id"
	// WhenDone is an annotation of a pod sandbox that says what becomes of it
	// once none of its containers runs any more: Stop or Remove.
	WhenDone = "subpod.io/when-done"
	// Network is an annotation of a pod sandbox; NoNetwork leaves it with
	// loopback alone.
	Network = "subpod.io/network"
	// User is an annotation of a container: whom it runs as, written like the USER of
	// an image, instead of that.
	User = "subpod.io/user"
	// SubPaths is an annotation of a container: a JSON object from the container
	// path of a mount to a path inside its host path. That path is mounted
	// instead, and symbolic links in it never lead out of the host path (see
	// pkg/subpath). Missing directories are created.
	SubPaths = "subpod.io/sub-paths"
)

// Values of the labels and annotations.
const (
	Run       = "run"
	Play      = "play"
	Stop      = "stop"
	Remove    = "remove"
	NoNetwork = "none"
)
