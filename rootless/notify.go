package rootless

import (
	"fmt"
	"net"
	"os"
)

// Notify tells the service manager the state of the service, as in
// sd_notify(3): "READY=1", "RELOADING=1", "STATUS=…". It does nothing when no
// manager asked for it ($NOTIFY_SOCKET). The server sends from inside the
// node's PID namespace, so its unit needs NotifyAccess=all.
func Notify(state string) error {
	name := os.Getenv("NOTIFY_SOCKET")
	if name == "" {
		return nil
	}
	// The kernel's name of an abstract socket starts with a zero; net does that
	// for a leading "@".
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		return fmt.Errorf("notify the service manager: %w", err)
	}
	defer c.Close()
	if _, err := c.Write([]byte(state)); err != nil {
		return fmt.Errorf("notify the service manager: %w", err)
	}
	return nil
}
