package netns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
)

// DialIn connects to addr ("host:port") from inside the network namespace at
// nsPath. The host must be an IP address, or "localhost": then 127.0.0.1 is
// tried first, and ::1 after it. The connection stays in that namespace.
func DialIn(ctx context.Context, nsPath, network, addr string) (net.Conn, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, fmt.Errorf("dial in %s: %w", nsPath, err)
	}
	hosts := []string{host}
	if host == "localhost" {
		hosts = []string{"127.0.0.1", "::1"}
	} else if _, err := netip.ParseAddr(host); err != nil {
		return nil, fmt.Errorf("dial in %s: host must be an IP address or localhost: %w", nsPath, err)
	}
	var conn net.Conn
	err = In(nsPath, func() error {
		var errs []error
		for _, h := range hosts {
			// With an address, the dialer makes the socket on this very thread.
			c, err := (&net.Dialer{}).DialContext(ctx, network, net.JoinHostPort(h, port))
			if err == nil {
				conn = c
				return nil
			}
			errs = append(errs, err)
		}
		return errors.Join(errs...)
	})
	if err != nil {
		return nil, fmt.Errorf("dial in %s: %w", nsPath, err)
	}
	return conn, nil
}
