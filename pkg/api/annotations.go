package api

// Labels and annotations that subpod's commands put on pod sandboxes and containers.
const (
	// LabelMadeBy is a label of a pod sandbox that names the command that has made it:
	// MadeByRun or MadeByPlay.
	LabelMadeBy = "subpod.io/made-by"
	// AnnotationRunID is an annotation of a pod sandbox that one run of a command has
	// made: random, so that no two runs ask for the same pod sandbox. The server then
	// returns AlreadyExists to all but the first one of a name, and never takes them
	// for retries of the same request.
	AnnotationRunID = "subpod.io/run-id"
	// AnnotationWhenDone is an annotation of a pod sandbox that tells the server what to
	// do with it once none of its containers runs any more: WhenDoneStop or
	// WhenDoneRemove.
	AnnotationWhenDone = "subpod.io/when-done"
	// AnnotationNetwork is an annotation of a pod sandbox; NetworkNone leaves it with
	// the loopback interface only.
	AnnotationNetwork = "subpod.io/network"
	// AnnotationUser is an annotation of a container: the user to run it as, in the form
	// of an image's USER, which it replaces.
	AnnotationUser = "subpod.io/user"
	// AnnotationSubPaths is an annotation of a container: a JSON object from the container
	// path of a mount to a path inside its host path. That path is mounted
	// instead, and symbolic links in it never lead out of the host path (see
	// pkg/subpath). Missing directories are created.
	AnnotationSubPaths = "subpod.io/sub-paths"
)

// Values of the labels and annotations.
const (
	MadeByRun      = "run"
	MadeByPlay     = "play"
	WhenDoneStop   = "stop"
	WhenDoneRemove = "remove"
	NetworkNone    = "none"
)
