package pod

import (
	"bytes"
	"fmt"
	"os"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// DNS says what a pod without a dns_config of its own gets.
type DNS struct {
	// HostFile is the host's resolv.conf.
	HostFile string
	// UplinkFile names the servers to use instead of the host's: slirp4netns
	// forwards to the host's resolver, also where that listens on loopback only,
	// and follows its changes. "" where there are none.
	UplinkFile string
}

// resolvConf renders resolv.conf(5) for a pod.
func (d DNS) resolvConf(cfg *runtimeapi.DNSConfig) ([]byte, error) {
	if cfg != nil && (len(cfg.Servers) > 0 || len(cfg.Searches) > 0 || len(cfg.Options) > 0) {
		return renderResolvConf(cfg.Servers, cfg.Searches, cfg.Options)
	}
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

func renderResolvConf(servers, searches, options []string) ([]byte, error) {
	for _, s := range append(append(append([]string{}, servers...), searches...), options...) {
		if s == "" || strings.ContainsAny(s, " \t\r\n\x00") {
			return nil, fmt.Errorf("%w: dns_config has the entry %q, which is empty or holds white space", ErrInvalid, s)
		}
	}
	var out bytes.Buffer
	if len(searches) > 0 {
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
