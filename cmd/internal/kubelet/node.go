// Package kubelet fits a kubelet, and kubeadm, to subpod's node: the configurations that
// they need there, what they would refuse, systemd units, and what is set up around a
// kubelet's process.
package kubelet

import "slices"

// IDsPerPod is how many IDs a kubelet gives each pod with a user namespace of its own
// (hostUsers: false), from a multiple of it on, never the first (KEP-127).
const IDsPerPod = 65536

// DefaultMaxPods is a kubelet's own default.
const DefaultMaxPods = 110

// Places in the node. /etc/kubernetes is on the data directory.
const (
	Dir        = "/etc/kubernetes/subpod" // what Files are written to
	PatchesDir = Dir + "/patches"
	FlagsFile  = "/var/lib/kubelet/kubeadm-flags.env" // kubeadm's
	ConfigFile = "/var/lib/kubelet/config.yaml"       // kubeadm's
	KubeConfig = "/etc/kubernetes/kubelet.conf"       // kubeadm's
	Bootstrap  = "/etc/kubernetes/bootstrap-kubelet.conf"
	TunnelKey  = Dir + "/tunnel.key"
	PodsDir    = "/var/lib/kubelet/pods" // the pods' volumes
)

// Node is what a kubelet's configuration depends on.
type Node struct {
	Socket       string // of the CRI
	ResolvConf   string // what resolves names from the node's network
	Controllers  []string
	IDs          uint32 // IDs of the node, from 0 on
	Expose       []string
	WaitsForCIDR bool // network.wait_for_pod_cidr
}

// limitsNeed are the cgroup controllers without which a kubelet cannot divide the node
// between quality of service classes.
var limitsNeed = []string{"cpu", "memory", "pids"}

// Missing lists the controllers that a kubelet needs for cgroupsPerQOS and are not
// delegated.
func (n Node) Missing() []string {
	var missing []string
	for _, c := range limitsNeed {
		if !slices.Contains(n.Controllers, c) {
			missing = append(missing, c)
		}
	}
	return missing
}

// UserNamespaces is how many pods can have a user namespace of their own.
func (n Node) UserNamespaces() int { return UserNamespaces(n.IDs) }

// UserNamespaces is how many pods can have a user namespace of their own in a node with
// so many IDs, from 0 on. The first range is the node's own.
func UserNamespaces(ids uint32) int { return max(0, int(ids/IDsPerPod)-1) }
