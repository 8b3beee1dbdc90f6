package rootless

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/subpod/subpod/pkg/proc"
	"golang.org/x/sys/unix"
)

// TestInNode looks at one node from inside and outside.
func TestInNode(t *testing.T) {
	d := startDaemon(t, testConfig(t))
	d.server(0)
	t.Run("enter", func(t *testing.T) { testEnter(t, d) })
	t.Run("enter signals", func(t *testing.T) { testEnterSignals(t, d) })
	t.Run("file system", func(t *testing.T) { testFileSystem(t, d) })
	t.Run("ports", func(t *testing.T) { testPorts(t, d) })
	t.Run("uplink", func(t *testing.T) { testUplink(t, d) })
	t.Run("nested", func(t *testing.T) {
		c := testConfig(t)
		c.View = ViewFull // the inner daemon's files lie among the test's
		outer := startDaemon(t, c)
		outer.server(0)
		testNestedInNode(t, outer)
	})
}

// in runs a command in the node and returns its output and exit code.
func in(t *testing.T, d *daemon, opts EnterOptions, argv ...string) (string, int) {
	t.Helper()
	var out, stderr bytes.Buffer
	opts.Stdout, opts.Stderr = &out, &stderr
	code, err := Enter(t.Context(), d.RunDir, argv, opts)
	if err != nil {
		t.Fatalf("%v in the node: %v", argv, err)
	}
	if code != 0 && stderr.Len() > 0 {
		t.Logf("%v: %s", argv, strings.TrimSpace(stderr.String()))
	}
	return strings.TrimSpace(out.String()), code
}

func testEnter(t *testing.T, d *daemon) {
	r := reportOf(t, d, EnterOptions{})
	if r.UID != 0 || !r.Node.Inside || r.NetNS != r.NodeNetNS {
		t.Errorf("in the node: %+v", r)
	}
	r = reportOf(t, d, EnterOptions{HostNetwork: true})
	if r.NetNS != ownNS(t, "net") {
		t.Error("HostNetwork does not stay in the host's network namespace")
	}
	for argv, want := range map[string]int{"exit 0": 0, "exit 7": 7, "kill -KILL $$": 128 + 9} {
		if _, code := in(t, d, EnterOptions{}, "sh", "-c", argv); code != want {
			t.Errorf("%s: exit code %d, want %d", argv, code, want)
		}
	}
	if _, code := in(t, d, EnterOptions{}, "no-such-command"); code != 127 {
		t.Errorf("an unknown command: exit code %d, want 127", code)
	}
	if out, _ := in(t, d, EnterOptions{Dir: "/usr/bin"}, "pwd"); out != "/usr/bin" {
		t.Errorf("working directory %s, want /usr/bin", out)
	}
	if out, _ := in(t, d, EnterOptions{Env: []string{"PATH=/usr/bin:/bin", "A=b"}}, "env"); strings.Contains(out, "_SUBPOD") || !strings.Contains(out, "A=b") {
		t.Errorf("environment %q", out)
	}
	// From inside it goes the other way: into the node network namespace only.
	out, code := in(t, d, EnterOptions{HostNetwork: true}, executable(t), "part-report", d.RunDir)
	if code != 0 || !strings.Contains(out, `"Inside":true`) {
		t.Errorf("report from inside: %s", out)
	}
}

func reportOf(t *testing.T, d *daemon, opts EnterOptions) report {
	t.Helper()
	out, code := in(t, d, opts, executable(t), "part-report", d.RunDir)
	var r report
	if err := json.Unmarshal([]byte(out), &r); code != 0 || err != nil {
		t.Fatalf("report: exit code %d, %v: %s", code, err, out)
	}
	return r
}

// The end of the context is SIGTERM to the command; the death of the caller is
// its death.
func testEnterSignals(t *testing.T, d *daemon) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	w := &lineWaiter{line: "ready", cancel: cancel}
	code, err := Enter(ctx, d.RunDir, []string{"sh", "-c", "trap 'exit 42' TERM; echo ready; while :; do sleep 0.02; done"},
		EnterOptions{Stdout: w})
	if err != nil || code != 42 {
		t.Errorf("exit code %d (%v) after the end of the context, want 42", code, err)
	}
	before := members(t, childNS(t, d.load(), "pid"))
	cmd := exec.Command("nsenter", append(d.load().enterArgs(false), "--", executable(t), "sleep", "1000")...)
	cmd.Env = append(os.Environ(), envRole+"="+roleEnter)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var started []proc.ID
	d.eventually("the command in the node", func() bool {
		started = nil
		for _, id := range members(t, childNS(t, d.load(), "pid")) {
			b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", id.PID))
			if !containsID(before, id) && string(b) == "sleep\n" {
				started = append(started, id)
			}
		}
		return len(started) == 1
	})
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	goneSoon(t, started)
}

func containsID(ids []proc.ID, id proc.ID) bool {
	for _, i := range ids {
		if i == id {
			return true
		}
	}
	return false
}

// lineWaiter calls cancel once line is written.
type lineWaiter struct {
	line   string
	cancel func()
}

func (w *lineWaiter) Write(p []byte) (int, error) {
	if strings.Contains(string(p), w.line) {
		w.cancel()
	}
	return len(p), nil
}

func testFileSystem(t *testing.T, d *daemon) {
	for _, dir := range append(DefaultCopyUp(), writable...) {
		if _, code := in(t, d, EnterOptions{}, "sh", "-c", "touch "+dir+"/written && rm "+dir+"/written"); code != 0 {
			t.Errorf("%s is not writable in the node", dir)
		}
	}
	host, err := os.ReadFile("/etc/passwd")
	if err != nil {
		t.Fatal(err)
	}
	if out, _ := in(t, d, EnterOptions{}, "cat", "/etc/passwd"); out != strings.TrimSpace(string(host)) {
		t.Error("the host's /etc/passwd is not seen in the node")
	}
	for _, b := range DefaultBinds(d.DataDir) {
		in(t, d, EnterOptions{}, "sh", "-c", "echo kept > "+b.Target+"/f")
		if got, err := os.ReadFile(filepath.Join(b.Source, "f")); string(got) != "kept\n" {
			t.Errorf("what is written to %s does not last: %q, %v", b.Target, got, err)
		}
	}
	// The same directories as outside, under the same names.
	dirs := []string{d.RunDir, d.DataDir}
	if d.load().View == ViewFull {
		dirs = append(dirs, os.Getenv("XDG_RUNTIME_DIR"), os.Getenv("HOME"))
	}
	for _, dir := range dirs {
		st, err := os.Stat(dir)
		if err != nil {
			t.Fatal(err)
		}
		want := fmt.Sprintf("%d %s", st.Sys().(*syscall.Stat_t).Ino, dir)
		if out, _ := in(t, d, EnterOptions{}, "sh", "-c", "echo $(stat -c %i "+dir+") $(realpath "+dir+")"); out != want {
			t.Errorf("%s in the node is %s, want %s", dir, out, want)
		}
	}
	out, _ := in(t, d, EnterOptions{}, "cat", "/proc/self/mountinfo")
	for line := range strings.Lines(out) {
		if f := strings.Fields(line); f[4] == "/" && !strings.HasPrefix(f[6], "shared:") {
			t.Errorf("/ is not shared in the node: %s", line)
		}
	}
	if b, _ := os.ReadFile("/proc/self/mountinfo"); strings.Contains(string(b), d.RunDir) || strings.Contains(string(b), hostView) {
		t.Errorf("mounts of the node are seen outside:\n%s", b)
	}
	cg := detectCgroup()
	if out, _ := in(t, d, EnterOptions{}, "stat", "-f", "-c", "%T", cgroupRoot); cg.legacy && out != "tmpfs" || cg.unified && out != "cgroup2fs" {
		t.Errorf("%s in the node is %s; host: %+v", cgroupRoot, out, cg)
	}
	if cg.legacy != d.load().CgroupHybrid {
		t.Errorf("CgroupHybrid is %v", d.load().CgroupHybrid)
	}
}

// startEcho runs the echo server in the node network namespace.
func startEcho(t *testing.T, d *daemon, addr string) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	ready, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		code, err := Enter(context.Background(), d.RunDir, []string{executable(t), "part-echo", addr},
			EnterOptions{Stdin: r, Stdout: &lineWaiter{"ready", cancel}, Stderr: d.log})
		if code != 0 || err != nil {
			t.Errorf("echo server: exit code %d, %v", code, err)
		}
	}()
	t.Cleanup(func() { w.Close(); <-ended; r.Close() })
	select {
	case <-ready.Done():
	case <-ended:
		t.Fatal("the echo server has ended")
	}
}

func testPorts(t *testing.T, d *daemon) {
	n, ctx := d.load(), t.Context()
	startEcho(t, d, "127.0.0.1:5000")
	hostPort := freePort(t)
	spec := PortSpec{
		Proto: "tcp", HostIP: netip.MustParseAddr("127.0.0.1"), HostPort: hostPort,
		TargetIP: netip.MustParseAddr("127.0.0.1"), TargetPort: 5000,
	}
	ids := map[int]PortSpec{}
	for _, proto := range []string{"tcp", "udp"} {
		spec.Proto = proto
		id, err := n.Expose(ctx, spec)
		if err != nil {
			t.Fatal(err)
		}
		ids[id] = spec
		answer, err := ask(proto, netip.AddrPortFrom(spec.HostIP, hostPort).String())
		if err != nil || !strings.HasPrefix(answer, proto+" hello from ") {
			t.Errorf("%s through the host port: %q, %v", proto, answer, err)
		}
		if _, err := n.Expose(ctx, spec); !errors.Is(err, ErrPortTaken) {
			t.Errorf("%s port exposed twice: %v, want ErrPortTaken", proto, err)
		}
	}
	if got, err := n.Exposed(ctx); err != nil || fmt.Sprint(got) != fmt.Sprint(ids) {
		t.Errorf("Exposed: %v, %v; want %v", got, err, ids)
	}
	for id, s := range ids {
		for range 2 { // idempotent
			if err := n.Unexpose(ctx, id); err != nil {
				t.Errorf("Unexpose: %v", err)
			}
		}
		if answer, err := ask(s.Proto, netip.AddrPortFrom(s.HostIP, hostPort).String()); err == nil {
			t.Errorf("%s port still answers %q", s.Proto, answer)
		}
	}
	testPortErrors(t, n, spec)
	// Without an address: both families.
	spec.Proto, spec.HostIP = "tcp", netip.Addr{}
	id, err := n.Expose(ctx, spec)
	if err != nil {
		t.Fatal(err)
	}
	for _, host := range []string{"127.0.0.1", "[::1]"} {
		if answer, err := ask("tcp", fmt.Sprintf("%s:%d", host, hostPort)); err != nil {
			t.Errorf("all addresses: %s answers %q, %v", host, answer, err)
		}
	}
	if err := n.Unexpose(ctx, id); err != nil {
		t.Error(err)
	}
}

func testPortErrors(t *testing.T, n *Node, spec PortSpec) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	spec.Proto = "tcp"
	spec.HostPort = uint16(l.Addr().(*net.TCPAddr).Port)
	if _, err := n.Expose(t.Context(), spec); !errors.Is(err, ErrPortTaken) {
		t.Errorf("a port that the host uses: %v, want ErrPortTaken", err)
	}
	start, ok := ThisHost().Sysctl("net/ipv4/ip_unprivileged_port_start")
	if !ok {
		t.Fatal("no sysctl net.ipv4.ip_unprivileged_port_start")
	}
	if start > 1 {
		spec.HostPort = uint16(start - 1)
		_, err := n.Expose(t.Context(), spec)
		want := fmt.Sprintf("sysctl -w net.ipv4.ip_unprivileged_port_start=%d", start-1)
		if !errors.Is(err, ErrPortPrivileged) || !strings.Contains(err.Error(), want) {
			t.Errorf("port %d: %v, want ErrPortPrivileged with %q", start-1, err, want)
		}
	}
	for _, bad := range []PortSpec{{}, {Proto: "sctp", HostPort: 1, TargetPort: 1}, {Proto: "tcp", HostPort: 5000, TargetPort: 5000}} {
		if _, err := n.Expose(t.Context(), bad); !errors.Is(err, ErrBadPort) {
			t.Errorf("%v: %v, want ErrBadPort", bad, err)
		}
	}
}

func freePort(t *testing.T) uint16 {
	t.Helper()
	// Not one that the kernel gives to whoever asks for any meanwhile.
	for range 1000 {
		port := 20000 + rand.IntN(10000)
		if l, err := net.Listen("tcp", fmt.Sprint(":", port)); err == nil {
			l.Close()
			return uint16(port)
		}
	}
	t.Fatal("no port between 20000 and 30000 is free")
	return 0
}

// hostAddress is an address of this machine that is not loopback: the node
// reaches the host by it through the uplink.
func hostAddress(t *testing.T) string {
	t.Helper()
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok && n.IP.To4() != nil && n.IP.IsGlobalUnicast() {
			return n.IP.String()
		}
	}
	t.Skip("this machine has no IPv4 address but loopback: nothing that the uplink could reach")
	return ""
}

// The uplink carries connections, keeps the host's loopback to itself, and comes
// back when slirp4netns dies.
func testUplink(t *testing.T, d *daemon) {
	l, err := net.Listen("tcp", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Write([]byte("host"))
			c.Close()
		}
	}()
	port := strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
	dial := func(host string) string {
		out, _ := in(t, d, EnterOptions{}, executable(t), "part-dial", "tcp", net.JoinHostPort(host, port))
		return out
	}
	host := hostAddress(t)
	carries := func() bool { return dial(host) == "host" }
	// Pasta of 2023 now and then resets what the host closes at once (docs/network.md).
	if d.Uplink == UplinkPasta {
		d.eventually("the uplink carries a connection", carries)
	} else if !carries() {
		t.Error("the uplink is up and does not carry a connection")
	}
	if got := dial(slirpGateway); got != "" {
		t.Errorf("the host's loopback answers %q through the gateway", got)
	}
	program := d.Uplink
	if program == "" || program == UplinkAuto {
		program = UplinkSlirp
	}
	old := helperOf(t, d, program)
	if err := old.Signal(unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	d.eventually("another "+program, func() bool { id := helperOf(t, d, program); return id != old && !id.IsZero() })
	d.eventually("a connection through the other "+program, carries)
}

// TestPasta: the same by pasta, which is taken when slirp4netns is missing.
func TestPasta(t *testing.T) {
	c := testConfig(t)
	c.SlirpBinary, c.UplinkFallback = "slirp4netns-is-missing", []string{UplinkNone, UplinkPasta}
	if got := c.resolveAuto(ThisHost()); got.Uplink != UplinkAuto && got.fallBack(ThisHost()).Uplink == UplinkSlirp {
		t.Errorf("uplink %s (%s) although its program is missing", got.Uplink, got.UplinkReason)
	}
	c.UplinkFallback = []string{UplinkPasta}
	d := startDaemon(t, c)
	d.server(0)
	n := d.load()
	if n.Uplink != UplinkPasta || !strings.Contains(n.UplinkReason, "not installed") {
		t.Errorf("uplink %s, because %s", n.Uplink, n.UplinkReason)
	}
	d.Uplink = UplinkPasta
	testUplink(t, d)
}

// helperOf finds the daemon's program of this name among its children.
func helperOf(t *testing.T, d *daemon, program string) proc.ID {
	t.Helper()
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", d.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range tasks {
		b, _ := os.ReadFile(f)
		for _, pid := range strings.Fields(string(b)) {
			n, _ := strconv.Atoi(pid)
			comm, _ := os.ReadFile("/proc/" + pid + "/comm")
			if id, err := proc.Identify(n); err == nil && (strings.HasPrefix(string(comm), program) || program == UplinkPasta && strings.HasPrefix(string(comm), "passt")) && id.Alive() {
				return id
			}
		}
	}
	return proc.ID{}
}
