package rootless

import (
	"fmt"
	"log/slog"
	"net"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The server's program in these tests is the test binary: it takes a socket from its
// Holder, or makes one and leaves it there.
func init() {
	dir := os.Getenv("TEST_HELD_DIR")
	if dir == "" {
		return
	}
	err := holdingServer(dir)
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

func holdingServer(dir string) error {
	h := Held()
	if h == nil {
		return fmt.Errorf("there is no Holder")
	}
	var conn net.PacketConn
	var err error
	if f := h.Take("socket"); f != nil {
		conn, err = net.FilePacketConn(f)
		f.Close()
	} else if conn, err = net.ListenPacket("udp", "127.0.0.1:0"); err == nil {
		raw, rawErr := conn.(*net.UDPConn).SyscallConn()
		if rawErr != nil {
			return rawErr
		}
		if ctlErr := raw.Control(func(fd uintptr) { err = h.Keep("socket", int(fd)) }); ctlErr != nil {
			return ctlErr
		}
	}
	if err != nil {
		return err
	}
	if err := os.WriteFile(dir+"/address", []byte(conn.LocalAddr().String()), 0o600); err != nil {
		return err
	}
	buf := make([]byte, 100)
	for {
		n, from, err := conn.ReadFrom(buf)
		if err != nil {
			return err
		}
		if string(buf[:n]) == "end" {
			return nil
		}
		if _, err := conn.WriteTo(fmt.Appendf(nil, "%d", os.Getpid()), from); err != nil {
			return err
		}
	}
}

// TestHeldSockets: what is sent to a socket while there is no server is answered by the next.
func TestHeldSockets(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	n := startSupervisor(t, true, "#!/bin/sh\nTEST_HELD_DIR=$DIR exec "+exe+"\n")
	address := ""
	n.until("a socket", func() bool {
		text, err := os.ReadFile(n.dir + "/address")
		address = string(text)
		return err == nil && strings.Contains(address, ":")
	})
	conn, err := net.Dial("udp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ask := func() string {
		t.Helper()
		buf := make([]byte, 100)
		if _, err := conn.Write([]byte("?")); err != nil {
			t.Fatal(err)
		}
		_ = conn.SetReadDeadline(time.Now().Add(time.Minute))
		size, err := conn.Read(buf)
		if err != nil {
			t.Fatalf("%v\n%s", err, n.log)
		}
		return string(buf[:size])
	}
	first := ask()
	for range 2 {
		if _, err := conn.Write([]byte("end")); err != nil {
			t.Fatal(err)
		}
		n.until("the end of the server", func() bool { return strings.Contains(n.log.String(), "the server has ended") })
		next := ask() // waits while there is no server
		if next == first {
			t.Errorf("the server %s has not ended", first)
		}
		first = next
	}
	n.stop()
}

// TestHeldUnread: what a server has sent right before its end is there for the next one.
func TestHeldUnread(t *testing.T) {
	h := held{log: slog.New(slog.DiscardHandler)}
	files, _, started := h.inherit()
	server, err := unix.FcntlInt(files[0].Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	started()
	holder := &Holder{fd: server}
	const sockets = 100
	for i := range sockets {
		if err := holder.Keep(strconv.Itoa(i), int(os.Stderr.Fd())); err != nil {
			t.Fatal(err)
		}
	}
	unix.Close(server)
	files, _, started = h.inherit()
	started()
	if len(files) != 1+sockets {
		t.Errorf("the next server has %d sockets of %d", len(files)-1, sockets)
	}
}

// TestHolderAlone: without a supervisor that holds sockets, nothing is held and nothing
// fails.
func TestHolderAlone(t *testing.T) {
	var h *Holder
	if f := h.Take("x"); f != nil || h.Keep("x", 0) != nil || h.Drop("x") != nil || h.DropRest() != nil {
		t.Error("a Holder of nothing does something")
	}
	t.Setenv(envHeld, "")
	if h := newHolder(); h != nil {
		t.Errorf("%v", h)
	}
}
