package sandbox

import (
	"bytes"
	"cmp"
	"fmt"
	"net/netip"
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

// withServers renders resolv.conf(5) for a pod of subpod's commands, with what its
// dns_config says about anything but servers, else the host's. domain is that of the
// pods' names, "" for a pod that cannot look them up. It comes first: the others are
// asked outside, where they might have an answer.
func (d DNS) withServers(servers []netip.Addr, domain string, cfg *runtimeapi.DNSConfig) ([]byte, error) {
	searches, options := cfg.GetSearches(), cfg.GetOptions()
	host, err := os.ReadFile(d.HostFile)
	if err != nil && !os.IsNotExist(err) {
		return nil, fmt.Errorf("read the host's resolv.conf: %w", err)
	}
	for line := range strings.Lines(string(host)) {
		switch f := strings.Fields(line); {
		case len(f) < 2:
		case f[0] == "search" && len(cfg.GetSearches()) == 0, f[0] == "domain" && len(cfg.GetSearches()) == 0:
			searches = f[1:]
		case f[0] == "options" && len(cfg.GetOptions()) == 0:
			options = f[1:]
		}
	}
	var out bytes.Buffer
	if domain != "" {
		searches = append([]string{domain}, searches...)
	}
	if len(searches) > 0 && !slices.Contains(searches, ".") { // "." stands for none
		fmt.Fprintf(&out, "search %s\n", strings.Join(searches, " "))
	}
	for _, s := range servers {
		fmt.Fprintf(&out, "nameserver %s\n", s)
	}
	if len(options) > 0 {
		fmt.Fprintf(&out, "options %s\n", strings.Join(options, " "))
	}
	return out.Bytes(), nil
}

// Servers returns the servers that know the names outside; none without the file.
func (d DNS) Servers() []netip.Addr {
	text, err := os.ReadFile(cmp.Or(d.UplinkFile, d.HostFile))
	if err != nil {
		return nil
	}
	var out []netip.Addr
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "nameserver" {
			if a, err := netip.ParseAddr(f[1]); err == nil {
				out = append(out, a)
			}
		}
	}
	return out
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
