package stats

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/netns"
)

// network is what the interfaces of a network namespace have carried.
type network struct {
	at         time.Time
	interfaces []netInterface
	err        error
}

// netInterface holds the counters of one interface (/proc/net/dev).
type netInterface struct {
	name                                    string
	rxBytes, rxPackets, rxErrors, rxDropped uint64
	txBytes, txPackets, txErrors, txDropped uint64
}

// readNetworks reads the counters of all pods' network namespaces, in the order
// of pods. It enters each on one OS thread, which ends with it: a thread that
// stayed would keep the last namespace alive. netns.In keeps off the main thread,
// which cannot end. (A process that was started with
// Pdeathsig dies with the thread that started it, and Go may have used this one:
// nothing in the server may be started so.)
func readNetworks(pods []Pod) []network {
	out := make([]network, len(pods))
	needed := false
	for _, p := range pods {
		needed = needed || p.NetNS != ""
	}
	if !needed {
		return out
	}
	_ = netns.In("", func() error { // each has its own error
		for i, p := range pods {
			if p.NetNS != "" {
				out[i] = readNetwork(p.NetNS)
			}
		}
		return nil
	})
	return out
}

// readNetwork moves the calling thread into the namespace.
func readNetwork(path string) network {
	f, err := os.Open(path)
	if err != nil {
		return network{err: err}
	}
	defer f.Close()
	if err := unix.Setns(int(f.Fd()), unix.CLONE_NEWNET); err != nil {
		return network{err: fmt.Errorf("enter network namespace %s: %w", path, err)}
	}
	at := time.Now()
	text, err := os.ReadFile("/proc/thread-self/net/dev")
	if err != nil {
		return network{err: err}
	}
	return network{at: at, interfaces: parseNetDev(string(text))}
}

// loopback carries no traffic of the pod with anyone else: it stands in the list of
// interfaces, and in no metric.
const loopback = "lo"

// parseNetDev parses /proc/net/dev.
func parseNetDev(text string) []netInterface {
	var out []netInterface
	for line := range strings.Lines(text) {
		name, counters, ok := strings.Cut(line, ":")
		name = strings.TrimSpace(name)
		f := strings.Fields(counters)
		if !ok || len(f) < 16 {
			continue
		}
		var v [16]uint64
		for i := range v {
			v[i], _ = strconv.ParseUint(f[i], 10, 64)
		}
		out = append(out, netInterface{
			name:    name,
			rxBytes: v[0], rxPackets: v[1], rxErrors: v[2], rxDropped: v[3],
			txBytes: v[8], txPackets: v[9], txErrors: v[10], txDropped: v[11],
		})
	}
	return out
}

// usage converts the counters; nil when they are not known. The default
// interface stands apart from the others (proto: NetworkUsage.interfaces).
func (n network) usage(defaultName string) *runtimeapi.NetworkUsage {
	if n.at.IsZero() {
		return nil
	}
	if defaultName == "" {
		defaultName = "eth0"
	}
	u := &runtimeapi.NetworkUsage{Timestamp: n.at.UnixNano()}
	for _, i := range n.interfaces {
		one := &runtimeapi.NetworkInterfaceUsage{
			Name:    i.name,
			RxBytes: value(i.rxBytes), RxErrors: value(i.rxErrors),
			TxBytes: value(i.txBytes), TxErrors: value(i.txErrors),
		}
		if i.name == defaultName {
			u.DefaultInterface = one
		} else {
			u.Interfaces = append(u.Interfaces, one)
		}
	}
	return u
}
