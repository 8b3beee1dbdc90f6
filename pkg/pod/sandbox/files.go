package sandbox

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/netns"
	"github.com/subpod/subpod/pkg/api"
	"github.com/subpod/subpod/pkg/ocispec"
	"github.com/subpod/subpod/pkg/state"
)

// writeFiles writes the files that containers of the pod see in /etc.
func (b *Builder) writeFiles(dir string, plan Plan) error {
	resolv, err := plan.resolvConf, error(nil)
	if resolv == nil {
		resolv, err = b.DNS.resolvConf()
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

// writeHosts writes hosts(5): the loopback names, the pod's own addresses once they are
// known, and its aliases. A pod on the node's network has the node's file and its aliases.
func writeHosts(dir string, plan Plan, network *netns.Result) error {
	out := bytes.NewBufferString("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n")
	if state.OnNode(state.NamespaceOptions(plan.Config).GetNetwork()) {
		if b, err := os.ReadFile("/etc/hosts"); err == nil {
			out = bytes.NewBuffer(append(b, '\n'))
		}
	}
	if network != nil && plan.Config.Hostname != "" {
		for _, ip := range network.IPs {
			fmt.Fprintf(out, "%s\t%s\n", ip, plan.Config.Hostname)
		}
	}
	for _, a := range plan.hostAliases {
		fmt.Fprintf(out, "%s\t%s\n", a.IP, strings.Join(a.Hostnames, " "))
	}
	return writeFile(filepath.Join(dir, etcDir, "hosts"), out.Bytes())
}

// parseHostAliases returns the pod's lines of /etc/hosts (api.AnnotationHostAliases).
func parseHostAliases(cfg *runtimeapi.PodSandboxConfig) ([]api.HostAlias, error) {
	text := cfg.GetAnnotations()[api.AnnotationHostAliases]
	if text == "" {
		return nil, nil
	}
	var out []api.HostAlias
	if err := json.Unmarshal([]byte(text), &out); err != nil {
		return nil, invalid("annotation %s: %w", api.AnnotationHostAliases, err)
	}
	for _, a := range out {
		if _, err := netip.ParseAddr(a.IP); err != nil {
			return nil, invalid("host alias: %q is not an IP address", a.IP)
		}
		for _, name := range a.Hostnames {
			if name == "" || strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r == '#' || r == 0x7f }) {
				return nil, invalid("host alias of %s: %q is not a host name", a.IP, name)
			}
		}
	}
	return out, nil
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
