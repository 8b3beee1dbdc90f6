package attack

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestSharedPID: containers that share a PID namespace get nothing out of its first
// process, whatever they may trace, enter or signal.
func TestSharedPID(t *testing.T) {
	c := newCage(t)
	ptrace, admin := []string{"SYS_PTRACE"}, []string{"SYS_PTRACE", "SYS_ADMIN", "SYS_CHROOT"}
	for _, pod := range []struct {
		name string
		inmate
	}{
		{"own network", inmate{pid: podPID}},
		{"node's network", inmate{pid: podPID, net: onNode}},
		{"own users", inmate{pid: podPID, users: ownUsers()}},
	} {
		t.Run(pod.name, func(t *testing.T) {
			with := func(caps []string) string {
				i := pod.inmate
				i.caps = caps
				return c.in(t).run(i)
			}
			plain, tracer, entrant := with(nil), with(ptrace), with(admin)
			t.Run("look, as it comes", func(t *testing.T) { c.in(t).escape(plain, "look", "1", c.secret) })
			t.Run("look, SYS_PTRACE", func(t *testing.T) { c.in(t).escape(tracer, "look", "1", c.secret) })
			t.Run("trace, as it comes", func(t *testing.T) { c.in(t).trace(plain) })
			t.Run("trace, SYS_PTRACE", func(t *testing.T) { c.in(t).trace(tracer) })
			t.Run("enter, SYS_ADMIN", func(t *testing.T) { c.in(t).escape(entrant, "enter", "1", c.secret, c.port) })
			t.Run("signal", func(t *testing.T) { c.in(t).escape(plain, "signal", "1") })
			t.Run("namespaces", func(t *testing.T) { c.in(t).noNodeNamespaces(tracer) })
			t.Run("the same user", func(t *testing.T) {
				i := pod.inmate
				user, group := c.in(t).userOf(plain, "1")
				i.user, i.group = &user, &group
				c := c.in(t)
				id := c.run(i)
				c.escape(id, "look", "1", c.secret)
				c.trace(id)
			})
		})
	}
}

func (c *cage) trace(id string) {
	c.Helper()
	if runtime.GOARCH != "amd64" {
		c.Skip("the program that traces is written for amd64")
	}
	c.escape(id, "trace", "1", c.secret, c.port)
}

// userOf returns the user and the group of a process. Tracing takes both to be the same.
func (c *cage) userOf(id, pid string) (user, group int64) {
	c.Helper()
	for line := range strings.Lines(c.exec(id, "cat", "/proc/"+pid+"/status")) {
		f := strings.Fields(line)
		if len(f) < 2 || f[0] != "Uid:" && f[0] != "Gid:" {
			continue
		}
		n, err := strconv.ParseInt(f[1], 10, 64)
		if err != nil {
			c.Fatal(err)
		}
		if f[0] == "Uid:" {
			user = n
		} else {
			group = n
		}
	}
	if user == 0 {
		c.Fatal("the pause process has no user of its own")
	}
	return user, group
}

// noNodeNamespaces: no namespace of the pause process is one of the node's or of the
// host's.
func (c *cage) noNodeNamespaces(id string) {
	c.Helper()
	for _, kind := range []string{"mnt", "net", "ipc", "uts", "cgroup", "pid"} {
		theirs := strings.TrimSpace(c.exec(id, "readlink", "/proc/1/ns/"+kind))
		nodes := strings.TrimSpace(c.n.Enter("readlink", "/proc/1/ns/"+kind))
		hosts, err := os.Readlink("/proc/self/ns/" + kind)
		if err != nil || !strings.HasPrefix(theirs, kind+":[") || !strings.HasPrefix(nodes, kind+":[") {
			c.Fatalf("%s namespaces: %q, %q, %v", kind, theirs, nodes, err)
		}
		if theirs == nodes || theirs == hosts {
			c.Errorf("the pause process is in the %s namespace of the node or the host", kind)
		}
	}
}

// lookInto reads what /proc shows of another process: args are its PID and a secret.
func lookInto(args []string) error {
	return look("/proc/"+args[0], args[1])
}

func look(proc, secret string) error {
	for _, dir := range []string{"root", "cwd"} {
		link := filepath.Join(proc, dir)
		for _, path := range []string{secret, "../../../../../../../../.." + secret} {
			if b, err := os.ReadFile(link + "/" + path); err == nil {
				got("%s/%s: %s", dir, path, b)
			}
		}
		if entries, err := os.ReadDir(link); err == nil && len(entries) > 0 {
			got("%s shows %v", link, entries)
		} else if err == nil {
			if err := os.WriteFile(link+"/new", []byte("x"), 0o600); err == nil {
				got("%s is writable", link)
			}
		}
	}
	if names, err := os.ReadDir(proc + "/fd"); err == nil {
		for _, n := range names {
			to, _ := os.Readlink(proc + "/fd/" + n.Name())
			got("it has a file: %s", to)
		}
	}
	if b, err := os.ReadFile(proc + "/environ"); err == nil && len(b) > 0 {
		got("it has an environment: %.200q", b)
	}
	f, err := os.OpenFile(proc+"/exe", os.O_WRONLY, 0)
	if err == nil {
		if _, err := f.WriteAt([]byte("#!/attack\n"), 0); err == nil {
			got("its program was overwritten")
		}
	}
	return nil
}

// enterNamespaces joins the namespaces of another process: args are its PID, a secret,
// and a port of the host's loopback.
func enterNamespaces(args []string) error {
	runtime.LockOSThread()
	before, err := os.ReadDir("/")
	if err != nil || len(before) == 0 {
		return fmt.Errorf("own root: %w", err)
	}
	kinds := map[string]int{"mnt": unix.CLONE_NEWNS, "net": unix.CLONE_NEWNET, "ipc": unix.CLONE_NEWIPC, "uts": unix.CLONE_NEWUTS, "cgroup": unix.CLONE_NEWCGROUP}
	files := map[string]int{}
	for name := range kinds {
		fd, err := unix.Open("/proc/"+args[0]+"/ns/"+name, unix.O_RDONLY, 0)
		if err != nil {
			return fmt.Errorf("open %s namespace: %w", name, err)
		}
		files[name] = fd
	}
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return err
	}
	for _, name := range []string{"net", "ipc", "uts", "cgroup", "mnt"} {
		if err := unix.Setns(files[name], kinds[name]); err != nil {
			fmt.Println("setns", name, err)
		}
	}
	if conn, err := net.DialTimeout("tcp", "127.0.0.1:"+args[2], time.Second); err == nil {
		b := make([]byte, 100)
		n, _ := conn.Read(b)
		got("the host's loopback: %s", b[:n])
	}
	if b, err := os.ReadFile(args[1]); err == nil {
		got("the secret: %s", b)
	}
	after, _ := os.ReadDir("/")
	if len(after) != 0 && len(after) != len(before) {
		got("another root: %v", after)
	}
	return nil
}

// signalProcess tries to end or stop another process.
func signalProcess(args []string) error {
	pid, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	for _, sig := range []syscall.Signal{unix.SIGKILL, unix.SIGSTOP, unix.SIGSEGV, unix.SIGHUP} {
		_ = unix.Kill(pid, sig)
	}
	time.Sleep(200 * time.Millisecond)
	b, err := os.ReadFile("/proc/" + args[0] + "/status")
	if errors.Is(err, fs.ErrNotExist) {
		got("it has ended")
		return nil
	}
	if err == nil && (strings.Contains(string(b), "State:\tT") || strings.Contains(string(b), "State:\tZ")) {
		got("it is stopped")
	}
	return err
}

// TestHostPID: a container in the node's PID namespace sees the node's processes, and
// without CAP_SYS_PTRACE gets nothing out of any of them: all have more capabilities
// than it has, or another user.
func TestHostPID(t *testing.T) {
	c := newCage(t)
	c.run(inmate{pid: podPID}) // one more kind of process
	user := int64(1000)
	for name, i := range map[string]inmate{
		"root": {pid: onNode}, "a user": {pid: onNode, user: &user}, "own network": {pid: onNode, caps: []string{"NET_ADMIN"}},
	} {
		t.Run(name, func(t *testing.T) {
			c := c.in(t)
			c.escape(c.run(i), "all", c.secret)
		})
	}
}

// lookAtAll looks into all processes of other mount namespaces, and tries to trace them:
// args is a secret.
func lookAtAll(args []string) error {
	runtime.LockOSThread()
	own, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		return err
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return err
	}
	seen := 0
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		proc := "/proc/" + e.Name()
		if ns, err := os.Readlink(proc + "/ns/mnt"); err == nil && ns == own {
			continue
		}
		seen++
		text, _ := os.ReadFile(proc + "/comm")
		comm := strings.TrimSpace(string(text))
		if comm == "sh" || comm == "sleep" {
			continue // another container's, of the same user: as on any host
		}
		lookJoining(proc, args[0])
		if err := unix.PtraceAttach(pid); err == nil {
			got("%s can be traced", comm)
			_, _ = unix.Wait4(pid, nil, unix.WALL, nil)
			_ = unix.PtraceDetach(pid)
		}
		if _, err := os.OpenFile(proc+"/mem", os.O_RDWR, 0); err == nil {
			got("the memory of %s can be written to", comm)
		}
	}
	fmt.Println(seen, "processes")
	if seen < 5 {
		return errors.New("where are the node's processes?")
	}
	return nil
}
