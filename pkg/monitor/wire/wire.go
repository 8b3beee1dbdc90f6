// Package wire has the messages of the container monitor: between it and the server,
// which asks it to watch containers, and between it and the node's first process, which
// keeps its descriptors. Each message is one packet of a SOCK_SEQPACKET socket: an object
// in JSON, and descriptors beside it.
package wire

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/subpod/subpod/pkg/proc"
)

// Version is that of all messages. Fields may be added in a version, and are ignored by
// who does not know them.
const Version = 1

// Socket is the name of the socket at which the monitor serves, in the node's directory.
const Socket = "monitor.sock"

// What a server asks for. Each request has a connection of its own; all may be repeated.
const (
	OpHello    = "hello"    // who serves: Reply.Build, Reply.PID
	OpRegister = "register" // watch a container that was created: Request.Container, its files
	OpStatus   = "status"   // Reply.Log, and Reply.Exit if it is known
	OpWait     = "wait"     // answered once the container has ended and its output is in the log
	OpFinish   = "finish"   // as OpWait, at once if init has ended: what still comes is not read
	OpReopen   = "reopen"   // go on in the log that comes with the request
	OpAttach   = "attach"   // after the answer the connection has the container's streams
	OpResize   = "resize"   // set the size of the terminal: Request.Rows, Request.Cols
	OpDrop     = "drop"     // forget a container
	OpList     = "list"     // Reply.Watched: the next ones after Request.ID, in order
	OpUpgrade  = "upgrade"  // make room for the program that is on disk now
)

// The files of a container. Their order is that of Container.Files.
const (
	FileStdin    = "stdin"  // where its stdin is written
	FileStdout   = "stdout" // where its output is read
	FileStderr   = "stderr"
	FileTerminal = "terminal" // the terminal's other end, in place of these three
	FileLog      = "log"      // open to append
	FileEvents   = "events"   // memory.events of its cgroup
)

// The type bytes that begin a packet of output to an attached client. A packet from the
// client is stdin; the end of its side of the connection is that of stdin.
const (
	PacketStdout = 2
	PacketStderr = 3
	PacketError  = 4 // the text says why the connection ends before the container
)

// Container is what the monitor knows of a container, and is kept for the next monitor.
type Container struct {
	V    int     `json:"v"`
	ID   string  `json:"id"`
	Init proc.ID `json:"init"`
	// Bundle is where the server keeps the container's files.
	Bundle    string   `json:"bundle,omitempty"`
	StdinOnce bool     `json:"stdinOnce,omitempty"`
	Files     []string `json:"files,omitempty"`
	// Index is the monitor's own.
	Index int `json:"index"`
	// OOM: a process of the container was killed for want of memory.
	OOM bool `json:"oom,omitempty"`
}

// Exit is how a container's init has ended.
type Exit struct {
	Status uint32    `json:"status"` // as wait(2) has it
	At     time.Time `json:"at"`
	OOM    bool      `json:"oom,omitempty"`
}

// Code returns the exit code: 128 + signal when a signal ended init.
func (x Exit) Code() int32 {
	ws := unix.WaitStatus(x.Status)
	if ws.Signaled() {
		return 128 + int32(ws.Signal())
	}
	return int32(ws.ExitStatus())
}

// Log identifies an open log file.
type Log struct {
	Dev uint64 `json:"dev"`
	Ino uint64 `json:"ino"`
}

// Watched names a container that is watched.
type Watched struct {
	ID     string `json:"id"`
	Bundle string `json:"bundle"`
}

// MaxWatched is how many there are in one answer: fewer are the last.
const MaxWatched = 12

// Request is what a server asks the monitor.
type Request struct {
	V         int        `json:"v"`
	Op        string     `json:"op"`
	ID        string     `json:"id,omitempty"`
	Container *Container `json:"container,omitempty"`
	Rows      uint16     `json:"rows,omitempty"`
	Cols      uint16     `json:"cols,omitempty"`
	// Stdin: the client of an attach has stdin.
	Stdin bool `json:"stdin,omitempty"`
	// Paced: the container waits for the client of an attach, as a program waits for who
	// reads its pipe.
	Paced bool `json:"paced,omitempty"`
}

// Reply is the monitor's answer.
type Reply struct {
	V     int    `json:"v"`
	Error string `json:"error,omitempty"`
	// Unknown: the monitor does not know the container.
	Unknown bool `json:"unknown,omitempty"`
	// Ended: the container has ended, and all is in its log.
	Ended   bool      `json:"ended,omitempty"`
	Build   string    `json:"build,omitempty"`
	PID     int       `json:"pid,omitempty"`
	Exit    *Exit     `json:"exit,omitempty"`
	Log     *Log      `json:"log,omitempty"`
	Watched []Watched `json:"watched,omitempty"`
}

// What the monitor and its keeper say to each other.
const (
	KeepHold  = "hold"  // monitor: keep this in place of what you have under this name
	KeepDrop  = "drop"  // monitor: keep it no more
	KeepOK    = "ok"    // keeper: done
	KeepGone  = "gone"  // keeper: not done, the process had ended before
	KeepHeld  = "held"  // keeper: what an earlier monitor had kept
	KeepReady = "ready" // keeper: that was all
	KeepExit  = "exit"  // keeper: the process has ended
)

// Keep is a message between the monitor and its keeper. The descriptors that are kept
// come with it.
type Keep struct {
	V  int    `json:"v"`
	Op string `json:"op"`
	ID string `json:"id,omitempty"`
	// Init is the process whose end is recorded; zero for none.
	Init  proc.ID         `json:"init"`
	State json.RawMessage `json:"state,omitempty"`
	Exit  *Exit           `json:"exit,omitempty"`
}

const (
	maxMessage = 64 << 10
	maxFiles   = 64
)

// Send sends a message with descriptors, which stay open here.
func Send(conn *net.UnixConn, message any, fds ...int) error {
	b, err := json.Marshal(message)
	if err != nil {
		return fmt.Errorf("encode a message: %w", err)
	}
	if len(b) > maxMessage || len(fds) > maxFiles {
		return fmt.Errorf("a message of %d bytes with %d descriptors is too long", len(b), len(fds))
	}
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	_, _, err = conn.WriteMsgUnix(b, oob, nil)
	return err
}

// Receive receives a message and its descriptors, which are the caller's; none on an
// error. io.EOF when the other side has closed the connection.
func Receive(conn *net.UnixConn, message any) (fds []int, err error) {
	b, oob := make([]byte, maxMessage), make([]byte, unix.CmsgSpace(4*maxFiles))
	n, oobn, flags, _, err := conn.ReadMsgUnix(b, oob)
	if err != nil {
		return nil, err
	}
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil {
		return nil, fmt.Errorf("read descriptors: %w", err)
	}
	for _, m := range messages {
		if more, err := unix.ParseUnixRights(&m); err == nil {
			fds = append(fds, more...)
		}
	}
	if flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
		CloseAll(fds)
		return nil, fmt.Errorf("a message came cut off: no more descriptors can be opened, or it is too long")
	}
	if err := json.Unmarshal(b[:n], message); err != nil {
		CloseAll(fds)
		return nil, fmt.Errorf("decode a message: %w", err)
	}
	return fds, nil
}

// CloseAll closes descriptors.
func CloseAll(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}

// Conn makes a connection of a descriptor, which it takes over.
func Conn(fd int) (*net.UnixConn, error) {
	f := os.NewFile(uintptr(fd), "socket")
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	conn, ok := c.(*net.UnixConn)
	if !ok {
		c.Close()
		return nil, fmt.Errorf("descriptor %d is no unix socket", fd)
	}
	return conn, nil
}
