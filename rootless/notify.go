package rootless

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"
)

// Ready reports that the server serves: to the supervisor, which from now on starts
// another one however often servers fail, and to the service manager (see Notify).
// Idempotent. The server calls it, inside the node.
func (n *Node) Ready() error {
	err := os.WriteFile(filepath.Join(nodeDir(n.RunDir), fileReady), nil, 0o600)
	if err != nil {
		err = fmt.Errorf("report to the supervisor that the server is ready: %w", err)
	}
	if n.View != ViewMinimal || os.Getenv("NOTIFY_SOCKET") == "" {
		return errors.Join(err, Notify("READY=1"))
	}
	// The socket is not in the node: the parent passes it on.
	_, fds, notifyErr := askBroker(n.RunDir, brokerRequest{Op: opNotify, Path: "READY=1"})
	closeAll(fds)
	return errors.Join(err, notifyErr)
}

// notifyFor passes on what a process of the node may tell the service manager: only
// that it is ready, since other messages change what the service is.
func notifyFor(state string) error {
	if state != "READY=1" {
		return deniedError(fmt.Sprintf("the state %q", state))
	}
	return Notify(state)
}

// wasReady reports whether a server has become ready in the node of runDir since
// a time.
func wasReady(runDir string, since time.Time) bool {
	// The kernel's clock for files is coarse.
	at := readyTime(runDir)
	return !at.IsZero() && at.After(since.Add(-20*time.Millisecond))
}

// readyTime returns when a server has last become ready in the node of runDir; zero
// when none has.
func readyTime(runDir string) time.Time {
	fi, err := os.Stat(filepath.Join(nodeDir(runDir), fileReady))
	if err != nil {
		return time.Time{}
	}
	return fi.ModTime()
}

// Notify sends the service manager the state of the service, as in
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
