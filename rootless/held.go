package rootless

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// The supervisor holds sockets of the server, so that what comes while there is none
// waits for the next one instead of being refused. The server gets a socket to the
// supervisor, and behind it those that are held.
const (
	// envHeld has the number of the first descriptor and the names of those behind it,
	// with a comma before each.
	envHeld = "SUBPOD_HELD"
	// envAnswers is set by a supervisor that does what Holder.Answers says.
	envAnswers = "SUBPOD_HELD_ANSWERS"
	// heldSocket is the server's descriptor of the socket to the supervisor.
	heldSocket = 3
	// maxHeld bounds the sockets that are held, maxHeldName their names, in bytes.
	maxHeld, maxHeldName = 1024, 200
	// holdTimeout is how long the server waits for the supervisor to take a socket.
	holdTimeout = time.Second
	// drainTimeout is how long the next server waits until all that the one before it has
	// sent is read.
	drainTimeout = time.Second
)

// Holder keeps sockets open across servers. A nil Holder, of a server under a supervisor
// that holds none, keeps nothing.
type Holder struct {
	mu      sync.Mutex
	fd      int
	answers bool
	before  map[string]*os.File
}

// Held returns the Holder of the server, which has what the servers before it have left
// there. Idempotent. The first call is made before the server starts a program: what is
// held is not for that.
var Held = sync.OnceValue(newHolder)

func newHolder() *Holder {
	text := os.Getenv(envHeld)
	answers := os.Getenv(envAnswers) != ""
	os.Unsetenv(envHeld)
	os.Unsetenv(envAnswers)
	first, names, _ := strings.Cut(text, ",")
	fd, err := strconv.Atoi(first)
	if err != nil || fd != heldSocket {
		return nil
	}
	unix.CloseOnExec(fd)
	tv := unix.NsecToTimeval(holdTimeout.Nanoseconds())
	_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &tv)
	h := &Holder{fd: fd, answers: answers, before: map[string]*os.File{}}
	for name := range strings.SplitSeq(names, ",") {
		if name == "" {
			continue
		}
		fd++
		unix.CloseOnExec(fd)
		h.before[name] = os.NewFile(uintptr(fd), name)
	}
	return h
}

// Take returns what an earlier server has left under a name; nil for nothing. The caller
// closes it.
func (h *Holder) Take(name string) *os.File {
	if h == nil {
		return nil
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	f := h.before[name]
	delete(h.before, name)
	return f
}

// Names returns the names, with a beginning in common, under which earlier servers have left
// something that was not taken.
func (h *Holder) Names(prefix string) []string {
	if h == nil {
		return nil
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	var out []string
	for name := range h.before {
		if strings.HasPrefix(name, prefix) {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

// Answers reports whether the supervisor continues the calls of seccomp listeners, those that
// it holds under a name that begins with seccompnotify.HeldListener, while there is no server.
func (h *Holder) Answers() bool { return h != nil && h.answers }

// Keep leaves a socket for later servers, in the place of one with the same name, which
// must have no comma.
func (h *Holder) Keep(name string, fd int) error {
	if h == nil {
		return nil
	}
	return h.send("+"+name, unix.UnixRights(fd))
}

// Drop forgets what was left under a name. Idempotent.
func (h *Holder) Drop(name string) error {
	if h == nil {
		return nil
	}
	return h.send("-"+name, nil)
}

func (h *Holder) send(text string, rights []byte) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := unix.Sendmsg(h.fd, []byte(text), rights, nil, unix.MSG_NOSIGNAL); err != nil {
		return fmt.Errorf("have the supervisor hold a socket: %w", err)
	}
	return nil
}

// DropRest forgets what earlier servers have left and this one has not taken.
func (h *Holder) DropRest() error {
	if h == nil {
		return nil
	}
	h.mu.Lock()
	rest := h.before
	h.before = map[string]*os.File{}
	h.mu.Unlock()
	var errs []error
	for name, f := range rest {
		errs = append(errs, f.Close(), h.Drop(name))
	}
	return errors.Join(errs...)
}

// held are the sockets that the supervisor holds.
type held struct {
	mu    sync.Mutex
	files map[string]*os.File
	log   *slog.Logger
	// drained is closed once all that the latest server has sent is read; nil before the
	// first one.
	drained chan struct{}
}

// inherit returns what the next server is to have as its descriptors from heldSocket on,
// what it has to know of them, and a function to call once it has been started: until
// then none of them is closed. The server before it has ended.
func (h *held) inherit() (files []*os.File, env string, started func()) {
	h.drain()
	h.mu.Lock()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		h.log.Warn("no sockets can be held for the next server", "error", err)
		return nil, envHeld + "=", h.mu.Unlock
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "held"), os.NewFile(uintptr(pair[1]), "server")
	names := slices.Sorted(maps.Keys(h.files))
	files = []*os.File{theirs}
	for _, name := range names {
		files = append(files, h.files[name])
	}
	env = envHeld + "=" + strings.Join(append([]string{strconv.Itoa(heldSocket)}, names...), ",")
	return files, env, func() {
		h.mu.Unlock()
		theirs.Close()
		drained := make(chan struct{})
		h.drained = drained
		go func() {
			defer close(drained)
			h.serve(ours)
		}()
	}
}

// drain waits until nothing of the server before is unread: a socket that only the unread
// message holds would be lost to the next one, and its address in use.
func (h *held) drain() {
	if h.drained == nil {
		return
	}
	select {
	case <-h.drained:
	case <-time.After(drainTimeout):
		h.log.Warn("what the server has ended with may be missing in the next one: its connection to the supervisor is still open")
	}
}

// serve takes what one server wants to be held, until that has ended.
func (h *held) serve(conn *os.File) {
	defer conn.Close()
	fd := int(conn.Fd())
	buf, rights := make([]byte, maxHeldName+1), make([]byte, unix.CmsgSpace(4))
	for {
		n, oobn, _, _, err := unix.Recvmsg(fd, buf, rights, unix.MSG_CMSG_CLOEXEC)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || n == 0 {
			return
		}
		f := received(rights[:oobn])
		name := string(buf[1:n])
		switch {
		case buf[0] == '+' && f != nil && name != "" && !strings.Contains(name, ","):
			h.put(name, f)
		case f != nil:
			f.Close()
		case buf[0] == '-':
			h.put(name, nil)
		}
	}
}

// put holds a file under a name; nil for none.
func (h *held) put(name string, f *os.File) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if old := h.files[name]; old != nil {
		old.Close()
		delete(h.files, name)
	}
	switch {
	case f == nil:
	case len(h.files) >= maxHeld:
		h.log.Warn("too many sockets to hold for the next server", "name", name)
		f.Close()
	case h.files == nil:
		h.files = map[string]*os.File{name: f}
	default:
		h.files[name] = f
	}
}

// received returns the file of a control message; nil without one.
func received(rights []byte) *os.File {
	messages, err := unix.ParseSocketControlMessage(rights)
	if err != nil {
		return nil
	}
	for _, m := range messages {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			continue
		}
		if len(fds) > 0 { // there is room for one
			return os.NewFile(uintptr(fds[0]), "held")
		}
	}
	return nil
}
