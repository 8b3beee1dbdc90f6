package rootless

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// ErrNotAllowed says that the broker does not give the node a path of the host.
var ErrNotAllowed = errors.New("the node may not have this path of the host")

// OpenHost returns the mounts of a path of the host as a descriptor of a tree that
// move_mount(2) attaches. The node must have ViewMinimal; path is clean and absolute.
// ErrNotAllowed when neither Grant has named it nor Config.HostPaths lists it.
func (n *Node) OpenHost(path string) (*os.File, error) {
	tree, _, err := n.openHost(opOpen, path)
	return tree, err
}

// OpenHostAbove is OpenHost of the directory path, which is made where it is missing; where
// that cannot be, of the nearest one above it that is there and that the node may have. It
// returns which one that is.
func (n *Node) OpenHostAbove(path string) (tree *os.File, found string, err error) {
	return n.openHost(opAbove, path)
}

// OpenHostLog is OpenHost of a file, which is made where it is missing.
func (n *Node) OpenHostLog(path string) (*os.File, error) {
	tree, _, err := n.openHost(opLog, path)
	return tree, err
}

func (n *Node) openHost(op, path string) (*os.File, string, error) {
	found, fds, err := askBroker(n.RunDir, brokerRequest{Op: op, Path: path})
	if err != nil {
		return nil, "", err
	}
	if len(fds) != 1 {
		closeAll(fds)
		return nil, "", fmt.Errorf("the broker answers with %d descriptors instead of one", len(fds))
	}
	return os.NewFile(uintptr(fds[0]), found), found, nil
}

// Grant lets the node of runDir have paths of the host: a client outside of the node
// calls it for what its user has named, before it asks the server for a mount of them.
// A path that is not there is left to the server to complain about. Where the node
// shows the host's whole tree, or the caller is in the node, it does nothing.
func Grant(runDir string, paths ...string) error {
	n, err := Load(runDir)
	if err != nil {
		return err
	}
	if n.View != ViewMinimal || n.Inside {
		return nil
	}
	proof, err := os.Open("/proc/self/ns/user")
	if err != nil {
		return err
	}
	defer proof.Close()
	for _, path := range paths {
		path = filepath.Clean(path)
		real, err := filepath.EvalSymlinks(path)
		if errors.Is(err, fs.ErrNotExist) || err == nil && n.Shows(path) {
			continue
		}
		if err != nil {
			return err
		}
		_, fds, err := askBroker(runDir, brokerRequest{opGrant, path, real}, int(proof.Fd()))
		closeAll(fds)
		if err != nil {
			return fmt.Errorf("let the node have %s: %w", path, err)
		}
	}
	return nil
}

// Shows reports whether a clean absolute path is the host's in the node, too, without
// asking the broker.
func (n *Node) Shows(path string) bool {
	return n.View != ViewMinimal || slices.ContainsFunc(n.Shown, func(dir string) bool { return within(path, dir) })
}

// HasOwn reports whether a clean absolute path of a node with ViewMinimal is one that its
// own tree is meant to have, beside what it shows of the host's: "/", /run, /tmp and what
// a kubelet in the node makes there. What it has where the user's home and
// XDG_RUNTIME_DIR are is no stand-in for those. It is called in the node.
func (n *Node) HasOwn(path string) bool {
	home, session := os.Getenv("HOME"), os.Getenv("XDG_RUNTIME_DIR")
	isUsers := func(dir string) bool { return filepath.IsAbs(dir) && dir != "/" && within(path, dir) }
	holds := func(dir string) bool { return filepath.IsAbs(dir) && path != "/" && within(dir, path) }
	return !isUsers(filepath.Clean(home)) && !isUsers(resolved(home)) && !isUsers(filepath.Clean(session)) && !isUsers(resolved(session)) &&
		!holds(filepath.Clean(home)) && !holds(resolved(home))
}

// askBroker sends the broker one request and returns what its answer has found, and the descriptors.
func askBroker(runDir string, req brokerRequest, fds ...int) (found string, got []int, err error) {
	conn, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: filepath.Join(nodeDir(runDir), fileBroker), Net: "unixpacket"})
	if err != nil {
		return "", nil, fmt.Errorf("reach the broker of the node: %w", err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(brokerTimeout)); err != nil {
		return "", nil, err
	}
	if err := send(conn, req, fds...); err != nil {
		return "", nil, fmt.Errorf("ask the broker of the node: %w", err)
	}
	var answer brokerAnswer
	got, err = receive(conn, &answer)
	switch {
	case err != nil:
		err = fmt.Errorf("read the answer of the node's broker: %w", err)
	case answer.Denied != "":
		err = fmt.Errorf("%w: %s", ErrNotAllowed, answer.Denied)
	case answer.Failed != "":
		err = errors.New(answer.Failed)
	}
	if err != nil {
		closeAll(got)
		return "", nil, err
	}
	return answer.Found, got, nil
}
