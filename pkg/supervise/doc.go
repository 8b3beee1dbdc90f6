// Package supervise, the pod supervisor, keeps pods of subpod's own commands running: it starts the containers
// of a pod in their order, restarts them by their policies, and probes them, whatever has
// become of the command.
//
// What is wanted (workload.Spec) and how far it is (workload.Status) are in the pod's
// record. For each pod a goroutine looks at what there is, asks a pure function (decide)
// for the next step and takes it with the same methods that requests use; then it looks
// again. So it makes no difference whether a step was cut short by a crash of the server,
// the end of the node or another request: what is there says what is to be done next. It
// holds no lock while it does something. The user's word is in the record before a
// request is answered, and is asked for once more under the lock of what is started.
//
// Pods that a kubelet has made have no specification and are never looked at.
package supervise
