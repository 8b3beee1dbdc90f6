package sandbox

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/subpod/subpod/netns"
	"github.com/subpod/subpod/pkg/ocispec"
	"github.com/subpod/subpod/pkg/state"
)

// writeFiles writes the files that containers of the pod see in /etc.
func (b *Builder) writeFiles(dir string, plan Plan) error {
	resolv, err := plan.resolvConf, error(nil)
	switch dns := plan.Config.DnsConfig; {
	case resolv == nil:
		resolv, err = b.DNS.resolvConf()
	case len(plan.names.names) > 0 && len(dns.GetServers()) == 0:
		resolv, err = b.DNS.withServers(b.DNS.Servers(), "", dns)
	}
	if err != nil {
		return err
	}
	hostname := plan.Config.Hostname
	if hostname == "" {
		if hostname, err = os.Hostname(); err != nil {
			return fmt.Errorf("read the node's hostname: %w", err)
		}
	}
	etc := filepath.Join(dir, etcDir)
	return errors.Join(
		writeFile(filepath.Join(etc, "resolv.conf"), resolv),
		writeFile(filepath.Join(etc, "hostname"), []byte(hostname+"\n")),
		writeHosts(dir, plan, nil),
	)
}

// writeHosts writes hosts(5): the loopback names, and the pod's own addresses
// once they are known. A pod on the node's network gets the node's file.
func writeHosts(dir string, plan Plan, network *netns.Result) error {
	cfg := plan.Config
	path := filepath.Join(dir, etcDir, "hosts")
	if state.OnNode(state.NamespaceOptions(cfg).GetNetwork()) {
		if b, err := os.ReadFile("/etc/hosts"); err == nil {
			return writeFile(path, plan.names.appendHosts(b, nil))
		}
	}
	var out bytes.Buffer
	out.WriteString("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n")
	if network != nil && cfg.Hostname != "" {
		for _, ip := range allIPs(network) {
			fmt.Fprintf(&out, "%s\t%s\n", ip, cfg.Hostname)
		}
	}
	return writeFile(path, plan.names.appendHosts(out.Bytes(), network))
}

func writeFile(path string, content []byte) error {
	if err := os.WriteFile(path, content, 0o644); err != nil {
		return fmt.Errorf("write the pod's file: %w", err)
	}
	return nil
}

// Files returns the files of a pod sandbox that its containers bind.
func (b *Builder) Files(p state.Pod) ocispec.Files {
	dir := filepath.Join(b.podDir(p.ID), etcDir)
	if _, err := os.Lstat(dir); err != nil {
		dir = b.podDir(p.ID) // of a pod sandbox that a server before this layout has made
	}
	return ocispec.Files{
		ResolvConf: filepath.Join(dir, "resolv.conf"),
		Hosts:      filepath.Join(dir, "hosts"),
		Hostname:   filepath.Join(dir, "hostname"),
		Shm:        p.Allocated.Shm,
	}
}
