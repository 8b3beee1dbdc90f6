package rootless

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// The broker is the parent's end of a node with ViewMinimal: it clones what the node
// is allowed to have of the host's tree and hands it over as a descriptor. It runs in
// the outer user namespace, outside of the node's PID namespace, where no process of
// the node can signal, trace or read it.
//
// Whoever reaches the socket may ask: the server, and an escape that is root in the
// node. So what is allowed does not depend on who asks:
//
//   - what Config.HostPaths lists. Links in the path are followed first, what they
//     lead to must be in the list, and is then opened without following any;
//   - what a client outside of the node has named for a container of its own (opGrant).
//     Its path comes without links. The client proves that it is outside by a
//     descriptor of the user namespace around the outer one, which no process of the
//     node can open: it lies above the node's.
const fileBroker = "broker.sock"

const (
	// brokerTimeout bounds how long the peer of a request may take over each message.
	brokerTimeout = 10 * time.Second
	// maxRequests is how many requests are served at the same time: the host's file
	// system may hang.
	maxRequests = 16
	// maxBrokerMessage is the size of a request or an answer in bytes: a path, and JSON.
	maxBrokerMessage = 16 << 10
	// maxGrants is how many paths clients can name while the node lives.
	maxGrants = 4096
)

// Operations of the broker.
const (
	opOpen   = "open"   // Path → its mounts, as a descriptor
	opGrant  = "grant"  // Path, which opOpen gives from now on
	opAbove  = "above"  // the same of a directory that is made; else of the nearest one above Path that is there
	opLog    = "log"    // opOpen of a file that is made where it is missing
	opNotify = "notify" // Path is a state for the service manager
)

// brokerRequest: Real is, of opGrant, what Path leads to once its links are followed.
type brokerRequest struct{ Op, Path, Real string }

// brokerAnswer: Denied is that the list does not allow it, Failed any other reason. Found
// is the directory that opAbove gives.
type brokerAnswer struct{ Denied, Failed, Found string }

// deniedError is ErrNotAllowed; its text goes to the one who has asked.
type deniedError string

func (e deniedError) Error() string        { return string(e) }
func (e deniedError) Is(target error) bool { return target == ErrNotAllowed }

type broker struct {
	host uint64   // inode number of the user namespace of clients that may grant
	list hostList // what may be had without a grant
	log  *slog.Logger

	built func() // unmounts what the node has a copy of; called once

	mu      sync.Mutex
	granted map[string]string // path → the same with its links followed
}

// startBroker serves the node's requests until stop is called.
func startBroker(c Config, outer outerNS) (stop func(), err error) {
	b := &broker{host: outer.host, log: c.Log, list: newHostList(c, c.Log), granted: map[string]string{},
		// A request comes from a node that has its copy.
		built: sync.OnceFunc(func() { _ = unix.Unmount(viewDir(c.RunDir), unix.MNT_DETACH) })}
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: filepath.Join(nodeDir(c.RunDir), fileBroker), Net: "unixpacket"})
	if err != nil {
		return nil, fmt.Errorf("listen for the node's requests: %w", err)
	}
	go b.accept(l)
	return func() { l.Close() }, nil
}

func (b *broker) accept(l *net.UnixListener) {
	slots := make(chan struct{}, maxRequests)
	for {
		conn, err := l.AcceptUnix()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			b.log.Warn("a request of the node's is lost", "error", err)
			time.Sleep(minPause)
			continue
		}
		slots <- struct{}{}
		go func() {
			defer func() { <-slots }()
			defer conn.Close()
			b.serve(conn)
		}()
	}
}

// serve answers one request.
func (b *broker) serve(conn *net.UnixConn) {
	_ = conn.SetDeadline(time.Now().Add(brokerTimeout))
	var req brokerRequest
	sent, err := receive(conn, &req)
	defer closeAll(sent)
	if err != nil {
		return
	}
	tree, err := b.do(req, sent)
	var answer brokerAnswer
	switch {
	case errors.Is(err, ErrNotAllowed):
		answer.Denied = err.Error()
	case err != nil:
		answer.Failed = err.Error()
	}
	if err != nil {
		b.log.Info("a request of the node's is refused", "request", req.Op, "path", req.Path, "error", err)
	}
	_ = conn.SetDeadline(time.Now().Add(brokerTimeout))
	if tree == nil {
		_ = send(conn, answer)
		return
	}
	defer tree.Close()
	b.log.Info("the node is given a path of the host", "path", tree.Name())
	answer.Found = tree.Name()
	_ = send(conn, answer, int(tree.Fd()))
}

func (b *broker) do(req brokerRequest, sent []int) (*os.File, error) {
	b.built()
	if req.Op == opNotify {
		return nil, notifyFor(req.Path)
	}
	switch {
	case !isClean(req.Path) || req.Op == opGrant && !isClean(req.Real):
		return nil, fmt.Errorf("%q (%q) is not a clean absolute path", req.Path, req.Real)
	case req.Op == opOpen:
		return b.open(req.Path)
	case req.Op == opAbove:
		return b.openAbove(req.Path)
	case req.Op == opLog:
		return b.openLog(req.Path)
	case req.Op == opGrant:
		return nil, b.grant(req.Path, req.Real, sent)
	}
	return nil, fmt.Errorf("unknown request %q", req.Op)
}

func isClean(path string) bool { return filepath.IsAbs(path) && filepath.Clean(path) == path }

// grant remembers a path that a client outside of the node has named.
func (b *broker) grant(path, real string, sent []int) error {
	var st unix.Stat_t
	if len(sent) != 1 || unix.Fstat(sent[0], &st) != nil || !isNamespace(sent[0]) || st.Ino != b.host {
		return deniedError("only a client outside of the node may name " + path)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, again := b.granted[path]; !again && len(b.granted) >= maxGrants {
		return fmt.Errorf("clients have named %d paths of the host already: restart the daemon, or list directories in node.host_paths", maxGrants)
	}
	b.granted[path] = real
	return nil
}

// isNamespace reports whether a descriptor is of nsfs, whose inode numbers are unique.
func isNamespace(fd int) bool {
	var st unix.Statfs_t
	return unix.Fstatfs(fd, &st) == nil && st.Type == unix.NSFS_MAGIC
}

// open clones what a path leads to, with all that is mounted below it.
func (b *broker) open(path string) (*os.File, error) {
	real, ok := b.grantFor(path)
	if !ok {
		var err error
		if real, err = filepath.EvalSymlinks(path); err != nil || !b.list.allows(real) {
			return nil, b.refusal(path, err)
		}
	}
	// What was looked at is what is opened: whoever exchanges a part of it for a link
	// makes this fail.
	fd, err := unix.Openat2(unix.AT_FDCWD, real, &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	tree, err := unix.OpenTree(fd, "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH|unix.AT_RECURSIVE)
	if err != nil {
		return nil, fmt.Errorf("clone the mount of %s: %w", path, err)
	}
	return os.NewFile(uintptr(tree), path), nil
}

func (b *broker) grantFor(path string) (real string, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	real, ok = b.granted[path]
	return real, ok
}

// send writes one message with descriptors.
func send(conn *net.UnixConn, message any, fds ...int) error {
	b, err := json.Marshal(message)
	if err != nil {
		return err
	}
	if len(b) > maxBrokerMessage {
		return fmt.Errorf("a message of %d bytes is too long", len(b))
	}
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	_, _, err = conn.WriteMsgUnix(b, rights, nil)
	return err
}

// receive reads one message, and the descriptors that came with it.
func receive(conn *net.UnixConn, message any) (fds []int, err error) {
	b := make([]byte, maxBrokerMessage)
	oob := make([]byte, unix.CmsgSpace(4))
	n, oobn, flags, _, err := conn.ReadMsgUnix(b, oob)
	if err != nil {
		return nil, err
	}
	controls, _ := unix.ParseSocketControlMessage(oob[:oobn])
	for _, c := range controls {
		more, _ := unix.ParseUnixRights(&c)
		fds = append(fds, more...)
	}
	if flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
		err = errors.New("the message is too long")
	} else {
		err = json.Unmarshal(b[:n], message)
	}
	return fds, err
}

func closeAll(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}
