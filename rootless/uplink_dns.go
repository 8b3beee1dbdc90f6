package rootless

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// dnsInterval is the pause between two looks at the host's DNS servers.
const dnsInterval = 2 * time.Second

// dns returns the uplink's servers that the host's stand behind, which are as hostDNS returns
// them: slirp4netns and pasta ask those of the question's own IP version only. Without any they
// are all named.
func (u tapUplink) dns(host string) []string {
	now := WayOut{DNS: host}
	v4, v6 := now.resolves(netip.Addr.Is4), now.resolves(netip.Addr.Is6)
	switch {
	case !u.ipv6 || v4 && !v6:
		return []string{slirpDNS}
	case v6 && !v4:
		return []string{tapDNS6}
	}
	return []string{slirpDNS, tapDNS6}
}

// followDNS keeps the node's resolv.conf, from which new pods have theirs, to what dns
// returns, until the returned function is called, which also calls stop. It writes nothing
// any more once that returns.
func (u tapUplink) followDNS(stateDir string, stop func() error) func() error {
	if !u.ipv6 {
		return stop
	}
	quit, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(dnsInterval)
		defer tick.Stop()
		failed := false
		for {
			select {
			case <-quit:
				return
			case <-tick.C:
			}
			host := hostDNS()
			if host == "" {
				continue // it is being replaced, or there is no network
			}
			err := writeServers(filepath.Join(stateDir, fileResolvConf), u.dns(host))
			if err != nil && !failed {
				u.log.Warn("new pods may ask a DNS server that does not answer", "error", err)
			}
			failed = err != nil
		}
	}()
	return func() error {
		close(quit)
		<-ended
		return stop()
	}
}

// writeServers has a resolv.conf(5) name the servers, unless it does. Without the file, which
// the node's first process makes, it does nothing.
func writeServers(file string, servers []string) error {
	have, err := os.ReadFile(file)
	if os.IsNotExist(err) {
		return nil
	}
	want := "nameserver " + strings.Join(servers, "\nnameserver ") + "\n"
	if err != nil || string(have) == want {
		return err
	}
	if err := os.WriteFile(file+".new", []byte(want), 0o644); err != nil {
		return err
	}
	return os.Rename(file+".new", file)
}
