package storage

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/subpod/subpod/pkg/landlock"
)

// confinedMode has a confined process try what it must not be able to do, and print
// what it could. Arguments are in the environment.
const confinedMode = "confined"

func runConfined() int {
	dir := os.Getenv("SUBPOD_TEST_CONFINED")
	can := func(what string, err error) {
		if err == nil {
			fmt.Fprintln(os.Stderr, "could", what)
		}
	}
	must := func(what string, err error) {
		if err != nil {
			fmt.Fprintln(os.Stderr, "could not", what, err)
		}
	}
	_, err := os.ReadFile(filepath.Join(dir, "secret"))
	can("read a file", err)
	_, err = os.ReadDir(dir)
	can("list a directory", err)
	can("write a file", os.WriteFile(filepath.Join(dir, "new"), nil, 0o600))
	can("truncate a file", os.Truncate(filepath.Join(dir, "secret"), 0))
	can("remove a file", os.Remove(filepath.Join(dir, "secret")))
	can("read a file through a link", readThrough(filepath.Join(dir, "in", "link"), filepath.Join(dir, "secret")))
	can("link a file", os.Link(filepath.Join(dir, "secret"), filepath.Join(dir, "in", "hard")))
	_, err = os.ReadFile(fmt.Sprintf("/proc/%s/environ", os.Getenv("SUBPOD_TEST_PARENT")))
	can("read the server's environment", err)
	_, err = os.ReadFile(fmt.Sprintf("/proc/%s/root%s/secret", os.Getenv("SUBPOD_TEST_PARENT"), dir))
	can("read through the server's root", err)
	can("mount", unix.Mount("none", dir, "tmpfs", 0, ""))
	can("unshare", unix.Unshare(unix.CLONE_NEWNS))
	can("make a user namespace", exec.Command("unshare", "-U", "true").Run())
	for _, family := range []int{unix.AF_NETLINK, unix.AF_PACKET, unix.AF_VSOCK, unix.AF_ALG} {
		fd, err := unix.Socket(family, unix.SOCK_RAW, 0)
		can(fmt.Sprintf("make a socket of family %d", family), err)
		unix.Close(fd)
	}
	_, err = net.Dial("unix", filepath.Join(dir, "in", "socket"))
	can("connect to a unix socket", err)
	// Of a process that there is not. One that is traced itself stays until its tracer,
	// which is the test, has waited for it.
	_, _, errno := unix.Syscall(unix.SYS_PTRACE, unix.PTRACE_ATTACH, 1<<30, 0)
	if errno == unix.ESRCH {
		errno = 0
	}
	can("trace", orNil(errno))
	_, err = unix.Open("/dev/fuse", unix.O_RDWR, 0)
	can("open a device", err)
	lentDescriptor(can, must)
	connections(can, must)
	plain := filepath.Join(dir, "plain")
	must("make a directory", os.Mkdir(filepath.Join(plain, "sub"), 0o700))
	must("write a plain file", os.WriteFile(filepath.Join(plain, "file"), []byte("x"), 0o600))
	must("rename a plain file", os.Rename(filepath.Join(plain, "file"), filepath.Join(plain, "sub", "file")))
	can("make a FIFO among plain files", unix.Mkfifo(filepath.Join(plain, "fifo"), 0o600))
	can("make a link among plain files", os.Symlink("/etc/passwd", filepath.Join(plain, "link")))
	can("make a device among plain files", unix.Mknod(filepath.Join(plain, "device"), unix.S_IFCHR, 0))
	must("make a FIFO elsewhere", unix.Mkfifo(filepath.Join(dir, "in", "other"), 0o600))
	can("move a FIFO among plain files", os.Rename(filepath.Join(dir, "in", "other"), filepath.Join(plain, "fifo")))
	can("link a FIFO among plain files", os.Link(filepath.Join(dir, "in", "other"), filepath.Join(plain, "fifo")))
	in := filepath.Join(dir, "in", "file")
	must("write inside", os.WriteFile(in, []byte("x"), 0o600))
	must("rename inside", os.Rename(in, filepath.Join(dir, "in", "sub", "file")))
	must("give a file away", os.Chown(filepath.Join(dir, "in", "sub", "file"), 7, 7))
	must("make a FIFO", unix.Mkfifo(filepath.Join(dir, "in", "fifo"), 0o600))
	must("make a whiteout", unix.Mknod(filepath.Join(dir, "in", "whiteout"), unix.S_IFCHR, 0))
	must("chroot", unix.Chroot(filepath.Join(dir, "in")))
	return 0
}

// connections tries to reach the proxy, if there is one, and all else.
func connections(can, must func(string, error)) {
	proxy, other := os.Getenv("SUBPOD_TEST_PROXY"), os.Getenv("SUBPOD_TEST_OTHER")
	if proxy != "" {
		_, err := net.Dial("tcp", proxy)
		must("connect to the proxy", err)
	}
	if proxy == "" || landlock.Version() >= 4 {
		_, err := net.Dial("tcp", other)
		can("connect elsewhere", err)
	}
	_, err := net.Dial("tcp6", "[::1]:"+other[strings.LastIndex(other, ":")+1:])
	can("connect by IPv6", err)
	for _, s := range []struct {
		what                   string
		family, kind, protocol int
	}{
		{"UDP", unix.AF_INET, unix.SOCK_DGRAM, 0}, {"UDP, close on exec", unix.AF_INET, unix.SOCK_DGRAM | unix.SOCK_CLOEXEC, 0},
		{"UDP over IPv6", unix.AF_INET6, unix.SOCK_DGRAM, 0}, {"MPTCP", unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_MPTCP},
		{"SCTP", unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_SCTP}, {"raw", unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP},
		{"unix", unix.AF_UNIX, unix.SOCK_DGRAM, 0}, {"SMC", unix.AF_SMC, unix.SOCK_STREAM, 0},
	} {
		fd, err := unix.Socket(s.family, s.kind, s.protocol)
		can("make a socket for "+s.what, err)
		unix.Close(fd)
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	if proxy == "" {
		can("make a socket for TCP", err)
		return
	}
	must("make a socket for TCP", err)
	defer unix.Close(fd)
	can("connect by sending", unix.Sendto(fd, []byte("x"), unix.MSG_FASTOPEN, inet4(other)))
	_, err = unix.SendmsgN(fd, []byte("x"), nil, inet4(other), unix.MSG_FASTOPEN)
	can("connect by sending a message", err)
	can("bind", unix.Bind(fd, inet4("127.0.0.1:0")))
}

func inet4(addr string) unix.Sockaddr {
	at := netip.MustParseAddrPort(addr)
	return &unix.SockaddrInet4{Addr: at.Addr().As4(), Port: int(at.Port())}
}

func readThrough(link, target string) error {
	if err := os.Symlink(target, link); err != nil {
		return err
	}
	_, err := os.ReadFile(link)
	return err
}

func orNil(errno unix.Errno) error {
	if errno == 0 {
		return nil
	}
	return errno
}

// TestConfined: a content process cannot do what it need not, and can do what it must.
func TestConfined(t *testing.T) {
	if landlock.Version() < 2 {
		t.Skip("the kernel has no Landlock: file access is bounded by chroot alone")
	}
	var addrs [2]netip.AddrPort
	for i := range addrs {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer listener.Close()
		addrs[i] = listener.Addr().(*net.TCPAddr).AddrPort()
	}
	for _, network := range []bool{false, true} {
		t.Run(fmt.Sprintf("network=%t", network), func(t *testing.T) {
			dir := t.TempDir()
			writeFile(t, filepath.Join(dir, "secret"), "secret")
			writeFile(t, filepath.Join(dir, "in", "sub", "x"), "x")
			session, err := net.Listen("unix", filepath.Join(dir, "in", "socket"))
			if err != nil {
				t.Fatal(err)
			}
			defer session.Close()
			conn, remote, err := socketPair()
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			env := append(os.Environ(), childMode+"="+confinedMode, "SUBPOD_TEST_CONFINED="+dir, fmt.Sprint("SUBPOD_TEST_PARENT=", os.Getpid()),
				"SUBPOD_TEST_OTHER="+addrs[1].String())
			if err := os.Mkdir(filepath.Join(dir, "plain"), 0o700); err != nil {
				t.Fatal(err)
			}
			c := confinement{readOnly: []string{"/etc", "/proc"}, readWrite: []string{filepath.Join(dir, "in")},
				plain: []string{filepath.Join(dir, "plain")}, program: "/proc/self/exe"}
			if network {
				env = append(env, "SUBPOD_TEST_PROXY="+addrs[0].String())
				c.port = addrs[0].Port()
			}
			p, err := startContent(c, remote, env)
			remote.Close()
			if err != nil {
				t.Fatal(err)
			}
			secret, err := os.Open(filepath.Join(dir, "secret"))
			if err != nil {
				t.Fatal(err)
			}
			defer secret.Close()
			if _, _, err := conn.WriteMsgUnix([]byte{0}, unix.UnixRights(int(secret.Fd())), nil); err != nil {
				t.Fatal(err)
			}
			<-p.ended
			if said := strings.TrimSpace(p.stderr.String()); said != "" || !p.cmd.ProcessState.Success() {
				t.Errorf("%v:\n%s", p.cmd.ProcessState, said)
			}
			wantFile(t, filepath.Join(dir, "secret"), "secret", 0o644, 0, 0)
		})
	}
}

// lentDescriptor tries a descriptor that the server has lent, of a file that is open for
// reading.
func lentDescriptor(can, must func(string, error)) {
	in, err := newInbox(3)
	if err != nil {
		must("open the socket", err)
		return
	}
	if _, err := in.Read(make([]byte, 1)); err != nil {
		must("receive a descriptor", err)
		return
	}
	files := in.take()
	if len(files) != 1 {
		must("receive a descriptor", unix.ENOENT)
		return
	}
	f := files[0]
	_, err = f.Read(make([]byte, 1))
	must("read what was lent", err)
	_, err = f.WriteAt([]byte("x"), 0)
	can("write what was lent", err)
	can("truncate what was lent", f.Truncate(0))
	for _, flags := range []int{unix.O_WRONLY, unix.O_RDWR, unix.O_RDONLY | unix.O_TRUNC} {
		_, err = unix.Open(fmt.Sprint("/proc/self/fd/", f.Fd()), flags, 0)
		can("open what was lent for writing", err)
	}
	can("truncate what was lent by its path", os.Truncate(fmt.Sprint("/proc/self/fd/", f.Fd()), 0))
	for _, dir := range []string{"in", "plain"} {
		can("link what was lent", unix.Linkat(unix.AT_FDCWD, fmt.Sprint("/proc/self/fd/", f.Fd()),
			unix.AT_FDCWD, filepath.Join(os.Getenv("SUBPOD_TEST_CONFINED"), dir, "lent"), unix.AT_SYMLINK_FOLLOW))
	}
	_, err = unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_RDLCK)
	can("take a lease of what was lent", err)
}

// TestContentProcessKilled: a content process that is killed, by whomever, ends its pull
// with an error, and leaves nothing.
func TestContentProcessKilled(t *testing.T) {
	f := startFake(t, sample(t, "killed"), func(_ http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.URL.Path, "/blobs/") {
			<-r.Context().Done() // the process is killed
			return true
		}
		return false
	})
	s := fakeStore(t, f)
	done := make(chan error, 1)
	go func() {
		_, err := s.Images.Pull(context.Background(), PullRequest{Ref: f.host + "/app:v1"})
		done <- err
	}()
	pid := 0
	for end := time.Now().Add(patience); pid == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("there is no content process")
		}
		for _, p := range processesNaming(contentName) {
			fmt.Sscan(p, &pid)
		}
	}
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := receive(t, "the pull", done); err == nil {
		t.Error("it succeeded")
	}
	wantClean(t, s, 0)
}

// TestBombOnFullDisk: a layer that unpacks to more than fits is given up when the disk
// is full: the rest is not read, and all space is free again.
func TestBombOnFullDisk(t *testing.T) {
	img := build(t, imageSpec{tars: [][]byte{layer{"zeros": {content: string(make([]byte, 64<<20))}}.tar(t)}})
	f := startFake(t, img, nil)
	d := newSmallDisk(t, DriverFuse, f.host)
	before := d.files(t)
	_, err := d.Images.Pull(context.Background(), PullRequest{Ref: f.host + "/app:v1"})
	if !errors.Is(err, ErrNoSpace) {
		t.Errorf("%v, want ErrNoSpace", err)
	}
	d.Images.work.Wait()
	for _, f := range d.files(t) {
		if !strings.Contains(strings.Join(before, "\n"), f) && !strings.Contains(f, "/overlay/l") && !strings.HasSuffix(f, "/overlay/tempdirs") && !strings.Contains(f, "/overlay-layers") && !strings.Contains(f, "/overlay-images") {
			t.Errorf("left: %s", f)
		}
	}
	var st unix.Statfs_t
	if err := unix.Statfs(d.dir, &st); err != nil || int64(st.Bfree)*st.Bsize < 12<<20 {
		t.Errorf("%d KiB are free, %v", int64(st.Bfree)*st.Bsize>>10, err)
	}
}

// TestMemoryLimit: what takes more memory than the limit ends the content process, not
// the server, and says so.
func TestMemoryLimit(t *testing.T) {
	// A zstd frame whose window is 512 MiB, with one raw block.
	data := layer{"x": {content: "x"}}.tar(t)
	frame := append([]byte{0x28, 0xb5, 0x2f, 0xfd, 0, 19 << 3}, byte(len(data)<<3|1), byte(len(data)<<3>>8), byte(len(data)<<3>>16))
	img := withLayer(t, data, append(frame, data...), "application/vnd.oci.image.layer.v1.tar+zstd")
	f := startFake(t, img, nil)
	o := testOptions(t, t.TempDir(), DriverVFS)
	o.Limits.Memory = 256 << 20
	insecureConf(t, o, f.host)
	s := openStore(t, o)
	t.Setenv("PATH", t.TempDir()) // zstd(1), where there is one, has a limit of its own
	_, err := s.Images.Pull(context.Background(), PullRequest{Ref: f.host + "/app:v1"})
	if !errors.Is(err, ErrTooLarge) || !strings.Contains(err.Error(), "images.limits.memory") {
		t.Errorf("%v, want ErrTooLarge by images.limits.memory", err)
	}
}
