package sandbox

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// DNS is where the resolv.conf of pods without a dns_config of their own comes from.
type DNS struct {
	// HostFile is the host's resolv.conf.
	HostFile string
	// UplinkFile names the servers to use instead of the host's: slirp4netns
	// forwards to the host's resolver, also where that listens on loopback only,
	// and follows its changes. "" where there are none.
	UplinkFile string
}

// resolvConf renders resolv.conf(5) for a pod without a dns_config.
func (d DNS) resolvConf() ([]byte, error) {
	host, err := os.ReadFile(d.HostFile)
	if err != nil && !os.IsNotExist(err) {
		return nil, fmt.Errorf("read the host's resolv.conf: %w", err)
	}
	if d.UplinkFile == "" {
		return host, nil
	}
	uplink, err := os.ReadFile(d.UplinkFile)
	if err != nil {
		return nil, fmt.Errorf("read the uplink's resolv.conf: %w", err)
	}
	var out bytes.Buffer
	out.Write(uplink)
	for line := range strings.Lines(string(host)) {
		switch f := strings.Fields(line); {
		case len(f) > 0 && (f[0] == "search" || f[0] == "domain" || f[0] == "options"):
			fmt.Fprintf(&out, "%s\n", strings.Join(f, " "))
		}
	}
	return out.Bytes(), nil
}

// parseDNS renders resolv.conf(5) from a dns_config; nil where that says nothing.
func parseDNS(cfg *runtimeapi.DNSConfig) ([]byte, error) {
	for _, s := range slices.Concat(cfg.GetServers(), cfg.GetSearches(), cfg.GetOptions()) {
		if s == "" || strings.ContainsAny(s, " \t\r\n\x00") {
			return nil, invalid("dns_config has the entry %q, which is empty or holds white space", s)
		}
	}
	var out bytes.Buffer
	if len(cfg.GetSearches()) > 0 {
		fmt.Fprintf(&out, "search %s\n", strings.Join(cfg.GetSearches(), " "))
	}
	for _, s := range cfg.GetServers() {
		fmt.Fprintf(&out, "nameserver %s\n", s)
	}
	if len(cfg.GetOptions()) > 0 {
		fmt.Fprintf(&out, "options %s\n", strings.Join(cfg.GetOptions(), " "))
	}
	return out.Bytes(), nil
}
