package rootless

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestMain lets the test binary play all parts: those of the node (Dispatch),
// the server in it, programs that tests run in namespaces, and the tests, which
// need an ordinary user with subordinate IDs.
func TestMain(m *testing.M) {
	Dispatch()
	if len(os.Args) > 1 && strings.HasPrefix(os.Args[1], "part-") {
		part, ok := parts[os.Args[1]]
		if !ok {
			fmt.Fprintln(os.Stderr, "no such part:", os.Args[1])
			os.Exit(64)
		}
		os.Exit(part(os.Args[2:]))
	}
	if os.Geteuid() == 0 && !ThisHost().InUserNS() {
		exe, err := os.Executable()
		if err == nil {
			const script = "../tests/user.sh"
			argv := []string{script, exe}
			for _, a := range os.Args[1:] {
				// A file of root's, by which go test would cache the result.
				if !strings.HasPrefix(a, "-test.testlogfile=") {
					argv = append(argv, a)
				}
			}
			err = syscall.Exec(script, argv, os.Environ())
		}
		fmt.Fprintln(os.Stderr, "become an ordinary user:", err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// parts are the programs that the test binary can be, by first argument.
var parts = map[string]func(args []string) int{
	"part-server":     serverPart,
	"part-echo":       echoPart,
	"part-dial":       dialPart,
	"part-preflight":  preflightPart,
	"part-report":     reportPart,
	"part-enter":      enterPart,
	"part-reaper":     reaperPart,
	"part-lock":       lockPart,
	"part-leaderless": leaderlessPart,
}

// report is what a process in the node finds there.
type report struct {
	PID, PPID, UID int
	Version        string
	Args           []string
	Node           *Node
	NetNS, MountNS uint64
	NodeNetNS      uint64 // of Node.NetNS
	Proc1          string // command line of PID 1
	Env            []string
}

func makeReport(runDir, version string) (report, error) {
	r := report{PID: os.Getpid(), PPID: os.Getppid(), UID: os.Getuid(), Version: version, Args: os.Args, Env: os.Environ()}
	var err error
	if r.Node, err = Load(runDir); err != nil {
		return r, err
	}
	if r.NetNS, err = nsInode("self", "net"); err != nil {
		return r, err
	}
	if r.MountNS, err = nsInode("self", "mnt"); err != nil {
		return r, err
	}
	if r.Node.NetNS != "" {
		var st syscall.Stat_t
		if err := syscall.Stat(r.Node.NetNS, &st); err != nil {
			return r, err
		}
		r.NodeNetNS = st.Ino
	}
	b, err := os.ReadFile("/proc/1/cmdline")
	r.Proc1 = strings.ReplaceAll(string(b), "\x00", " ")
	return r, err
}

// serverPart is the server: it reports, leaves a process behind as conmon does, is
// ready, and ends at SIGTERM. Arguments: RUNDIR DATADIR VERSION.
func serverPart(args []string) int {
	runDir, dataDir, version := args[0], args[1], args[2]
	if b, err := os.ReadFile(filepath.Join(dataDir, "exit-with")); err == nil {
		var code int
		fmt.Sscan(string(b), &code)
		appendLine(filepath.Join(dataDir, "starts"), time.Now().Format(time.RFC3339Nano))
		return code
	}
	term := make(chan os.Signal, 1)
	signal.Notify(term, unix.SIGTERM)
	leftover := filepath.Join(dataDir, "leftover")
	if _, err := os.Stat(leftover); err != nil {
		// In a session of its own, and orphaned when the server ends.
		cmd := exec.Command("sleep", "1000")
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		if err := cmd.Start(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		os.WriteFile(leftover, fmt.Appendln(nil, cmd.Process.Pid), 0o600)
	}
	r, err := makeReport(runDir, version)
	if err == nil {
		err = writeJSON(filepath.Join(dataDir, "server.json"), r)
	}
	if err == nil {
		err = r.Node.Ready()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "test server:", err)
		return 1
	}
	<-term
	appendLine(filepath.Join(dataDir, "stopped"), version)
	return 0
}

// reportPart prints the report of a command that Enter runs.
func reportPart(args []string) int {
	r, err := makeReport(args[0], "")
	if err == nil {
		err = json.NewEncoder(os.Stdout).Encode(r)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// echoPart answers on TCP and UDP with what it got and who sent it, until its
// standard input ends. Argument: address.
func echoPart(args []string) int {
	l, err := net.Listen("tcp", args[0])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	p, err := net.ListenPacket("udp", args[0])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			buf := make([]byte, 100)
			n, _ := c.Read(buf)
			fmt.Fprintf(c, "tcp %s from %s", buf[:n], c.RemoteAddr())
			c.Close()
		}
	}()
	go func() {
		for {
			buf := make([]byte, 100)
			n, from, err := p.ReadFrom(buf)
			if err != nil {
				return
			}
			p.WriteTo(fmt.Appendf(nil, "udp %s from %s", buf[:n], from), from)
		}
	}()
	fmt.Println("ready")
	os.Stdin.Read(make([]byte, 1))
	return 0
}

// dialPart sends "hello" and prints the answer. Arguments: NETWORK ADDRESS.
func dialPart(args []string) int {
	answer, err := ask(args[0], args[1])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Println(answer)
	return 0
}

func ask(network, addr string) (string, error) {
	c, err := net.DialTimeout(network, addr, 20*time.Second)
	if err != nil {
		return "", err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		return "", err
	}
	if _, err := c.Write([]byte("hello")); err != nil {
		return "", err
	}
	buf := make([]byte, 200)
	n, err := c.Read(buf)
	return string(buf[:n]), err
}

func appendLine(name, line string) {
	f, err := os.OpenFile(name, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return
	}
	defer f.Close()
	fmt.Fprintln(f, line)
}
