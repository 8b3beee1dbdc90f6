package api

import "fmt"

// Labels and annotations that subpod's commands put on pod sandboxes and containers.
const (
	// LabelMadeBy is a label of a pod sandbox that names the command that has made it:
	// MadeByRun or MadeByPlay.
	LabelMadeBy = "subpod.io/made-by"
	// LabelWorkload is a label of a pod sandbox of play: the kind and name of the workload
	// that it is a replica of, as "Deployment/web".
	LabelWorkload = "subpod.io/workload"
	// AnnotationRunID is an annotation of a pod sandbox that one run of a command has
	// made: random, so that no two runs ask for the same pod sandbox. The server then
	// returns AlreadyExists to all but the first one of a name, and never takes them
	// for retries of the same request.
	AnnotationRunID = "subpod.io/run-id"
	// AnnotationWhenDone is an annotation of a pod sandbox that tells the server what to
	// do with it once none of its containers runs any more: WhenDoneStop or
	// WhenDoneRemove.
	AnnotationWhenDone = "subpod.io/when-done"
	// AnnotationOwnIDs is an annotation of a pod sandbox with a user namespace of its own,
	// which comes without mappings: how many of the node's IDs it gets. The server chooses a
	// range, of users and of groups, that no other pod sandbox has.
	AnnotationOwnIDs = "subpod.io/own-ids"
	// AnnotationNetwork is an annotation of a pod sandbox; NetworkNone leaves it with
	// the loopback interface only.
	AnnotationNetwork = "subpod.io/network"
	// AnnotationNetworks is an annotation of a pod sandbox: PodNetworks as JSON.
	AnnotationNetworks = "subpod.io/networks"
	// AnnotationEgress is an annotation of a pod sandbox, which any client may set: with
	// EgressSwitched its TCP connections to the outside are the host's, at the host's speed;
	// EgressUplink has them take the uplink, where the node's default is another.
	AnnotationEgress = "subpod.io/egress"
	// AnnotationCgroup is an annotation of a pod sandbox or a container, which any client may
	// set: with CgroupWritable the container's cgroup is writable in /sys/fs/cgroup, so that it
	// can divide what it has among cgroups of its own. AnnotationCgroupCRIO with "true" is the
	// same, as CRI-O names it.
	AnnotationCgroup     = "subpod.io/cgroup"
	AnnotationCgroupCRIO = "io.kubernetes.cri-o.cgroup2-mount-hierarchy-rw"
	// AnnotationUser is an annotation of a container: the user to run it as, in the form
	// of an image's USER, which it replaces.
	AnnotationUser = "subpod.io/user"
	// AnnotationSubPaths is an annotation of a container: a JSON object from the container
	// path of a mount to a path inside its host path. That path is mounted
	// instead, and symbolic links in it never lead out of the host path (see
	// pkg/subpath). Missing directories are created.
	AnnotationSubPaths = "subpod.io/sub-paths"
	// AnnotationMemoryVolumes is an annotation of a pod sandbox: a JSON object from the
	// name of a volume, a DNS label, to its size in bytes, or 0 for half of the machine's
	// memory. Each is a tmpfs of its own, which containers of the pod mount from
	// pods/ID/volumes/NAME in the run directory, and goes with the pod sandbox.
	AnnotationMemoryVolumes = "subpod.io/memory-volumes"
)

// MemoryVolumes is the directory of the memory volumes of the pod sandbox ID, below
// pods/ID in the run directory.
const MemoryVolumes = "volumes"

// Values of the labels and annotations.
const (
	MadeByRun      = "run"
	MadeByPlay     = "play"
	WhenDoneStop   = "stop"
	WhenDoneRemove = "remove"
	NetworkNone    = "none"
	EgressSwitched = "switched"
	EgressUplink   = "uplink"
	CgroupWritable = "writable"
)

// WritableCgroup reports whether annotations, the container's before the pod sandbox's, ask
// for a cgroup that the container can write. An error names the value that has no meaning.
func WritableCgroup(annotations ...map[string]string) (bool, error) {
	for _, a := range annotations {
		switch value, ok := a[AnnotationCgroup]; {
		case value == CgroupWritable:
			return true, nil
		case ok:
			return false, fmt.Errorf("annotation %s: %.40q is not %s", AnnotationCgroup, value, CgroupWritable)
		case a[AnnotationCgroupCRIO] == "true":
			return true, nil
		}
	}
	return false, nil
}
