package egress

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/subpod/subpod/netns"
	"github.com/subpod/subpod/tests/nstest"
)

// The tests run in a user namespace below one that owns their network namespace, as a node runs below
// the host: they have no privileges over what stands for the host's network. By an interface, host0, an outside
// is reached, on which a helper serves.
const (
	hostAddress = "192.0.2.1"
	outside     = "192.0.2.77"
	onLo        = "198.51.100.9" // of the host's loopback interface
	// Ports of the helper's. Nothing listens on closedPort, bulkPort takes and gives bytes without end,
	// slowPort makes a peer that answers when it is told to.
	greetPort, otherPort, countPort, bulkPort, closedPort, slowPort = "1001", "1002", "1003", "1004", "1005", "1006"
)

// stage is where the test binary is in all of this.
const stage = "TEST_EGRESS_STAGE"

func TestMain(m *testing.M) {
	netns.Dispatch()
	switch os.Getenv(stage) {
	case "outside":
		exitWith(serveOutside())
	case "inside":
		if role := os.Getenv("TEST_EGRESS"); role != "" {
			runtime.LockOSThread()
			exitWith(roles[role](os.Args[1:]))
		}
		os.Exit(m.Run())
	}
	os.Exit(nstest.Main(m, nstest.Options{Net: true, PID: true, Setup: func() error {
		stop, err := makeOutside()
		if err != nil {
			return err
		}
		err = enterInside()
		stop()
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			os.Exit(exit.ExitCode())
		}
		if err == nil {
			os.Exit(0)
		}
		return err
	}}))
}

func exitWith(err error) {
	if err != nil {
		fmt.Println("error:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// enterInside runs the tests in the inner user namespace.
func enterInside() error {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), stage+"=inside")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	one := []syscall.SysProcIDMap{{Size: 1}}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS, UidMappings: one, GidMappings: one}
	return cmd.Run()
}

// makeOutside makes host0 and starts the helper at its other end.
func makeOutside() (stop func(), err error) {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), stage+"=outside")
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	runtime.LockOSThread()
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	link := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "host0", MTU: 65520}, PeerName: "out0", PeerNamespace: netlink.NsPid(cmd.Process.Pid)}
	if err := errors.Join(netlink.LinkAdd(link), configure("host0", hostAddress+"/24"), configure("lo", onLo+"/32")); err != nil {
		return nil, err
	}
	if _, err := io.WriteString(in, "go\n"); err != nil {
		return nil, err
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "ready\n" {
		return nil, fmt.Errorf("the outside: %q: %w", line, err)
	}
	return func() { in.Close(); _ = cmd.Wait() }, nil
}

func configure(name, address string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	if address != "" {
		addr, err := netlink.ParseAddr(address)
		if err != nil {
			return err
		}
		if err := netlink.AddrAdd(link, addr); err != nil {
			return err
		}
	}
	return netlink.LinkSetUp(link)
}

// serveOutside is the helper. It ends with its input.
func serveOutside() error {
	in := bufio.NewReader(os.Stdin)
	if _, err := in.ReadString('\n'); err != nil {
		return err
	}
	if err := errors.Join(configure("lo", ""), configure("out0", outside+"/24")); err != nil {
		return err
	}
	_, greeted, err := greet(outside + ":" + greetPort)
	_, _, err2 := greet(outside + ":" + otherPort)
	if err := errors.Join(err, err2); err != nil {
		return err
	}
	serve := func(port string, f func(net.Conn)) error {
		l, err := net.Listen("tcp", outside+":"+port)
		if err != nil {
			return err
		}
		go accept(l, f)
		return nil
	}
	err = serve(countPort, func(c net.Conn) { fmt.Fprint(c, greeted()) })
	if err := errors.Join(err, serve(bulkPort, bulk), serve(slowPort, slow)); err != nil {
		return err
	}
	fmt.Println("ready")
	_, _ = in.ReadString('\n')
	return nil
}

func accept(l net.Listener, f func(net.Conn)) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer conn.Close()
			f(conn)
		}()
	}
}

// bulk reads, or writes when the first byte asks for it, without end.
func bulk(c net.Conn) {
	buf := make([]byte, 256<<10)
	if _, err := io.ReadFull(c, buf[:1]); err != nil {
		return
	}
	for err := error(nil); err == nil; {
		if buf[0] == 'w' {
			_, err = c.Write(buf)
		} else if _, err = c.Read(buf[1:]); err == nil {
			continue
		}
	}
}

// slow makes a listener whose queue is full, so that connections to it wait, and writes its address. A byte has it
// greet its clients.
func slow(c net.Conn) {
	fd := tcp(0)
	f := os.NewFile(uintptr(fd), "slow")
	defer f.Close()
	at := sockaddr(outside + ":0")
	err := errors.Join(unix.Bind(fd, at), unix.Listen(fd, 1))
	address := name(unix.Getsockname(fd))
	for range 2 { // one more than listen(2) says
		conn, dialErr := net.Dial("tcp", address)
		if err = errors.Join(err, dialErr); err == nil {
			defer conn.Close()
		}
	}
	l, listenErr := net.FileListener(f)
	if err := errors.Join(err, listenErr); err != nil {
		fmt.Fprintln(c, err)
		return
	}
	defer l.Close()
	fmt.Fprintln(c, address)
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		return
	}
	go accept(l, hello)
	_, _ = io.Copy(io.Discard, c)
}

func hello(c net.Conn) {
	fmt.Fprintln(c, "hello", c.RemoteAddr())
	_, _ = io.Copy(io.Discard, c)
}

// greet serves clients: each gets a greeting. It counts them.
func greet(address string) (at string, clients func() int, err error) {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return "", nil, err
	}
	var mu sync.Mutex
	n := 0
	go accept(l, func(conn net.Conn) {
		mu.Lock()
		n++
		mu.Unlock()
		hello(conn)
	})
	return l.Addr().String(), func() int { mu.Lock(); defer mu.Unlock(); return n }, nil
}

// onLoopback serves on the loopback of what stands for the host.
func onLoopback(t *testing.T) (at string, clients func() int) {
	t.Helper()
	at, clients, err := greet("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return at, clients
}

// greeted is how many connections the outside has had on greetPort.
func greeted(t *testing.T) (n int) {
	t.Helper()
	conn, err := net.Dial("tcp", outside+":"+countPort)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	text, err := io.ReadAll(conn)
	if _, scanErr := fmt.Sscan(strings.TrimSpace(string(text)), &n); err != nil || scanErr != nil {
		t.Fatal(err, scanErr)
	}
	return n
}
