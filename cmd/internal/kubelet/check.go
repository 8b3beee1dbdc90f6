package kubelet

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/subpod/subpod/cmd/internal/doctor"
)

// Host is what the checks read, of the node and of this machine's user.
type Host struct {
	Node
	User     string
	Hostname string
	Unified  bool // the node's /sys/fs/cgroup is cgroup v2
	Durable  bool // /etc/kubernetes is on the data directory
	NodeIP   string
	// HasNodeIP says that the address is on an interface of the node.
	HasNodeIP bool
	// Programs are the ones found in the node, with their version where one was asked for.
	Programs map[string]string
	CPUs     int
	MemoryMB int
}

// Wanted are the programs that Host.Programs is to be asked for.
var Wanted = []string{"kubelet", "kubeadm", "kubectl", "mount", "losetup", "cp", "ip", "getsubids"}

// Check returns what a kubelet and kubeadm would refuse in this node, and what will not work.
func Check(h Host) []doctor.Result {
	var out []doctor.Result
	for _, check := range []func(Host) doctor.Result{
		programs, version, hostname, cgroups, controllers, durable, userNamespaces, subidTool, ports, subnet, address, size,
	} {
		if r := check(h); r.What != "" {
			out = append(out, r)
		}
	}
	return out
}

func result(check string, level doctor.Level, fix, format string, args ...any) doctor.Result {
	return doctor.Result{Check: check, Level: level, What: fmt.Sprintf(format, args...), Fix: fix}
}

func programs(h Host) doctor.Result {
	const check = "programs"
	var missing []string
	for _, name := range Wanted {
		if _, ok := h.Programs[name]; !ok && name != "getsubids" && name != "kubectl" {
			missing = append(missing, name)
		}
	}
	switch {
	case slices.Contains(missing, "kubelet"):
		return result(check, doctor.Error, "https://kubernetes.io/docs/setup/production-environment/tools/kubeadm/install-kubeadm/, and put it into PATH",
			"kubelet is not found in the node")
	case len(missing) == 1 && missing[0] == "kubeadm":
		return result(check, doctor.Info, "", "kubeadm is not found in the node: a kubelet can be configured by hand")
	case len(missing) > 0:
		return result(check, doctor.Error, "install the packages util-linux, coreutils, iproute2, kubeadm",
			"not found in the node: %s", strings.Join(missing, ", "))
	}
	return result(check, doctor.OK, "", "kubelet, kubeadm and what they run are found in the node")
}

// inUserNamespace is the first version whose KubeletInUserNamespace is on by default.
const inUserNamespace = 37

func version(h Host) doctor.Result {
	const check = "kubelet version"
	text := h.Programs["kubelet"]
	if text == "" {
		return doctor.Result{}
	}
	if minor, ok := minorVersion(text); !ok || minor < inUserNamespace {
		return result(check, doctor.Error, "use a kubelet of 1.37 or newer, or set featureGates.KubeletInUserNamespace: true in its configuration (1.22 and newer)",
			"%s does not run in a user namespace by itself", text)
	}
	return result(check, doctor.OK, "", "%s runs in a user namespace", text)
}

// minorVersion reads "Kubernetes v1.37.2".
func minorVersion(text string) (int, bool) {
	_, v, ok := strings.Cut(text, "v1.")
	v, _, _ = strings.Cut(v, ".")
	n, err := strconv.Atoi(v)
	return n, ok && err == nil
}

func hostname(h Host) doctor.Result {
	if h.Hostname == strings.ToLower(h.Hostname) && !strings.Contains(h.Hostname, "_") {
		return doctor.Result{}
	}
	return result("host name", doctor.Error, "subpod kubernetes config --write --node-name "+strings.ReplaceAll(strings.ToLower(h.Hostname), "_", "-"),
		"%s is no name that a node can have", h.Hostname)
}

func cgroups(h Host) doctor.Result {
	if h.Unified {
		return result("cgroup version", doctor.OK, "", "the node has cgroup v2")
	}
	return result("cgroup version", doctor.Info, "start the kubelet by: subpod kubernetes kubelet\nwithout cgroup v1: add systemd.unified_cgroup_hierarchy=1 to the kernel's command line",
		"this host has cgroup v1, too, with which a kubelet does not start: \"subpod kubernetes kubelet\" shows it cgroup v2; \"subpod nsenter -- kubelet\" does not")
}

func controllers(h Host) doctor.Result {
	const check = "cgroup controllers"
	missing := h.Missing()
	if len(missing) == 0 {
		return result(check, doctor.OK, "", "%s are delegated", strings.Join(limitsNeed, ", "))
	}
	return result(check, doctor.Warning, "docs/cgroups.md, \"What must be delegated\"; then: subpod kubernetes config --write\nor let the API server refuse to resize: kubectl apply -f "+Dir+"/resize.yaml",
		"not delegated: %s. Pods have no such limits and no eviction by them, and resizing a running pod makes a kubelet of 1.37 panic until the pod is deleted", strings.Join(missing, ", "))
}

func durable(h Host) doctor.Result {
	const check = "/etc/kubernetes"
	if h.Durable {
		return result(check, doctor.OK, "", "outlives the node")
	}
	return result(check, doctor.Error, "restart the daemon: systemctl --user restart subpod",
		"is lost with the node, which an older version of subpod has made")
}

// userNamespaces says what of hostUsers: false the node can have.
func userNamespaces(h Host) doctor.Result {
	const check = "hostUsers: false"
	n := h.UserNamespaces()
	fix := func(pods int) string {
		need := (pods + 1) * IDsPerPod
		return fmt.Sprintf("%d IDs are needed for %d pods: sudo usermod --add-subuids FIRST-LAST --add-subgids FIRST-LAST %s, where nobody has any of them; then restart the daemon", need, pods, h.User)
	}
	switch {
	case n == 0:
		return result(check, doctor.Warning, fix(DefaultMaxPods),
			"the node has %d IDs, and one such pod needs %d, the node's own among them: none can run", h.IDs, 2*IDsPerPod)
	case n < DefaultMaxPods:
		return result(check, doctor.Info, fix(DefaultMaxPods),
			"the node's %d IDs are enough for %d pods: \"subpod kubernetes config --user-namespaces\" lowers maxPods to that", h.IDs, n)
	}
	return result(check, doctor.OK, "", "the node's IDs are enough for %d pods", n)
}

func subidTool(h Host) doctor.Result {
	if _, ok := h.Programs["getsubids"]; ok || h.UserNamespaces() == 0 {
		return doctor.Result{}
	}
	return result("getsubids", doctor.Warning, "install the package uidmap (Debian), shadow-utils-subid (Fedora)",
		"not found in the node: the kubelet gives pods with hostUsers: false IDs that the node does not have")
}

// ports says what of the cluster the host's network can reach.
func ports(h Host) doctor.Result {
	if slices.Contains(h.Expose, "tcp:10250") {
		return result("kubelet port", doctor.OK, "", "10250 is open on the host's addresses (network.expose)")
	}
	return result("kubelet port", doctor.Info, "network.expose = [\"tcp:10250\"] in subpod.toml; of a control plane \"tcp:6443\" as well",
		"10250 is not open on the host's addresses: kubectl logs and exec need it where the API server is not in this node, unless the nodes run \"subpod kubernetes tunnel\"")
}

// subnet says whether pods can be made before the node's subnet is known.
func subnet(h Host) doctor.Result {
	const check = "pod CIDR"
	if h.WaitsForCIDR {
		return result(check, doctor.OK, "", "pods wait for the node's subnet")
	}
	return result(check, doctor.Warning, "network.wait_for_pod_cidr = true in subpod.toml, then restart the daemon; not for a kubelet without a cluster, which has no pod CIDR",
		"the first pods of a new node have addresses outside of the subnet that the cluster gives it")
}

func address(h Host) doctor.Result {
	switch {
	case h.NodeIP == "":
		return result("node address", doctor.Info, "subpod kubernetes config --write --node-ip ADDRESS",
			"the node calls itself 10.0.2.100, as each node of subpod does: right for a cluster of one node")
	case !h.HasNodeIP:
		return result("node address", doctor.Error, "subpod kubernetes config --write --node-ip "+h.NodeIP,
			"no interface of the node has %s (--node-ip)", h.NodeIP)
	}
	return result("node address", doctor.OK, "", "%s is on an interface of the node", h.NodeIP)
}

// size is what kubeadm init wants.
func size(h Host) doctor.Result {
	if h.CPUs >= 2 && h.MemoryMB >= 1700 {
		return doctor.Result{}
	}
	return result("machine", doctor.Warning, "join a cluster instead",
		"%d processors and %d MB: kubeadm init wants 2 and 1700", h.CPUs, h.MemoryMB)
}
