package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/containernetworking/cni/libcni"

	"github.com/subpod/subpod/netns"
)

// attachment is the record of a pod, written before the first plugin is called.
// DEL uses what ADD had been given, whatever the configuration has become.
type attachment struct {
	Pod     netns.Pod       `json:"pod"`
	Network json.RawMessage `json:"network"` // libcni.NetworkConfigList.Bytes
	// Ranges are the subnets that SetPodCIDR asked for at that time.
	Ranges []netip.Prefix `json:"ranges,omitempty"`
	// Result is nil until ADD has succeeded.
	Result *netns.Result `json:"result,omitempty"`
}

// interfaceName is the name of every pod's interface, as everywhere.
const interfaceName = "eth0"

func (a *attachment) list() (*libcni.NetworkConfigList, error) {
	return libcni.NetworkConfFromBytes(a.Network)
}

// annotationsCapability is the capability of plugins that take a pod's annotations; other
// runtimes have it under the same name.
const annotationsCapability = "io.kubernetes.cri.pod-annotations"

// runtimeConf returns the arguments of plugins beside their configuration. The names are
// conventions: https://www.cni.dev/docs/conventions.
func (a *attachment) runtimeConf() *libcni.RuntimeConf {
	rt := &libcni.RuntimeConf{
		ContainerID: a.Pod.ID,
		NetNS:       a.Pod.NetNS,
		IfName:      interfaceName,
		Args: [][2]string{
			{"IgnoreUnknown", "1"},
			{"K8S_POD_NAMESPACE", a.Pod.Namespace},
			{"K8S_POD_NAME", a.Pod.Name},
			{"K8S_POD_INFRA_CONTAINER_ID", a.Pod.ID},
			{"K8S_POD_UID", a.Pod.UID},
		},
		CapabilityArgs: map[string]any{},
	}
	if _, err := os.Stat(rt.NetNS); err != nil {
		rt.NetNS = "" // spec: DEL must work for a namespace that is gone
	}
	type portMapping struct {
		HostPort      uint16 `json:"hostPort"`
		ContainerPort uint16 `json:"containerPort"`
		Protocol      string `json:"protocol"`
		HostIP        string `json:"hostIP,omitempty"`
	}
	var ports []portMapping
	for _, m := range a.Pod.Ports {
		pm := portMapping{m.HostPort, m.ContainerPort, m.Proto, ""}
		if m.HostIP.IsValid() {
			pm.HostIP = m.HostIP.Unmap().String()
		}
		ports = append(ports, pm)
	}
	if len(ports) > 0 {
		rt.CapabilityArgs["portMappings"] = ports
	}
	if bw := bandwidth(a.Pod); bw != nil {
		rt.CapabilityArgs["bandwidth"] = bw
	}
	if len(a.Pod.Annotations) > 0 {
		rt.CapabilityArgs[annotationsCapability] = a.Pod.Annotations
	}
	if len(a.Ranges) > 0 {
		var ranges [][]map[string]string
		for _, r := range a.Ranges {
			ranges = append(ranges, []map[string]string{{"subnet": r.String()}})
		}
		rt.CapabilityArgs["ipRanges"] = ranges
	}
	return rt
}

// bandwidth returns the capability's value, in bits per second and bits.
func bandwidth(pod netns.Pod) map[string]uint64 {
	out := map[string]uint64{}
	for name, rate := range map[string]uint64{"ingress": pod.IngressRate, "egress": pod.EgressRate} {
		if rate > 0 {
			out[name+"Rate"] = rate
			// 100 ms worth of it, and at least some packets; the plugin takes 32 bits.
			out[name+"Burst"] = min(max(rate/10, 1<<21), 1<<31)
		}
	}
	if len(out) == 0 {
		return nil
	}
	return out
}

// records is the directory of attachments.
type records string

func (r records) path(podID string) string { return filepath.Join(string(r), podID+".json") }

func (r records) write(a *attachment) error {
	if err := writeJSON(r.path(a.Pod.ID), a); err != nil {
		return fmt.Errorf("keep the record of the pod's network: %w", err)
	}
	return nil
}

// read returns nil for a pod without a record.
func (r records) read(podID string) (*attachment, error) {
	var a attachment
	data, err := os.ReadFile(r.path(podID))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err == nil {
		err = json.Unmarshal(data, &a)
	}
	if err != nil {
		return nil, fmt.Errorf("read the record of the pod's network: %w", err)
	}
	return &a, nil
}

func (r records) remove(podID string) error {
	err := os.Remove(r.path(podID))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the record of the pod's network: %w", err)
	}
	return nil
}

// pods returns the IDs of the pods with a record.
func (r records) pods() ([]string, error) {
	entries, err := os.ReadDir(string(r))
	if err != nil {
		return nil, fmt.Errorf("list the records of the CNI network: %w", err)
	}
	var ids []string
	for _, e := range entries {
		if id, ok := strings.CutSuffix(e.Name(), ".json"); ok {
			ids = append(ids, id)
		}
	}
	return ids, nil
}

// rangesFile holds the subnets of the last SetPodCIDR.
const rangesFile = "podcidr.json"

func readRanges(path string) (ranges []netip.Prefix, err error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err == nil {
		err = json.Unmarshal(data, &ranges)
	}
	return ranges, err
}

// writeRanges stores the subnets; none removes the file.
func writeRanges(path string, ranges []netip.Prefix) error {
	if len(ranges) > 0 {
		return writeJSON(path, ranges)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// writeJSON replaces the file in one step. It need not be on the disk: a power cut
// ends what it describes, too.
func writeJSON(path string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if err := os.WriteFile(path+".new", data, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// Pods returns the IDs of the pods that have, or may have, something of this
// network.
func (n *Network) Pods() ([]string, error) { return n.records.pods() }

// Has reports whether the pod has, or may have, something of this network.
func (n *Network) Has(podID string) (bool, error) {
	a, err := n.records.read(podID)
	return a != nil, err
}
