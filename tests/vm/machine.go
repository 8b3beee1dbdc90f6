// Package vm runs subpod in a machine of its own, as a systemd user service: there
// cgroup controllers are delegated to the user, which a test inside a container
// rarely has. image.sh makes a Debian, QEMU emulates it without KVM, about twenty
// times slower than the host: no figure from here says anything about speed.
//
// Nothing is written to the disk image: each run begins with the same machine.
package vm

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// User is the ordinary user in the machine, UID its ID.
const (
	User = "pod"
	UID  = 1000
)

const (
	bootTimeout = 10 * time.Minute // on a machine that others use as well
	haltTimeout = time.Minute
)

// Machine is a running virtual machine.
type Machine struct {
	dir   string // sockets and logs; removed by Stop
	cache string // key, disk
	port  int    // of sshd, on loopback
	qemu  *exec.Cmd
	ended chan struct{}
}

// emulators are QEMU's programs and processors, and the kernel's arguments, by Debian's name
// of the architecture.
var emulators = map[string]struct{ program, machine, cpu, args string }{
	// Plain "max" has features of which the emulation is not right: a kernel that uses
	// them may crash. Of others it makes a step for each byte that is copied or cleared
	// (erms, rep_good), or ends what it has translated (smap). Memory is cleared once, when
	// it is freed or mapped, and not in pages of 2 MiB of which little is used.
	"amd64": {"qemu-system-x86_64", "q35", "max,la57=off,cx16=off,erms=off,smap=off,smep=off",
		"console=ttyS0 mitigations=off nokaslr init_on_alloc=0 transparent_hugepage=never clearcpuid=rep_good"},
	// Newer ones sign pointers, which costs the emulation half of its speed. Page tables
	// of the kernel's own, which its random addresses bring, cost much more: the emulation
	// forgets all translations at each change.
	"arm64": {"qemu-system-aarch64", "virt", "cortex-a72", "console=ttyAMA0 mitigations=off nokaslr"},
}

// Boot starts the machine of an architecture that image.sh has made in cache, and waits
// until it lets users in. The caller must Stop it.
func Boot(ctx context.Context, cache, arch string) (m *Machine, err error) {
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	if m, err = Attach(cache, port); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, m.Stop())
		}
	}()
	file := func(name string) string { return filepath.Join(cache, name) }
	e := emulators[arch]
	m.qemu = exec.Command(e.program,
		"-machine", e.machine, "-accel", "tcg,thread=multi", "-cpu", e.cpu, "-smp", "2", "-m", "3072",
		"-nodefaults", "-display", "none", "-serial", "file:"+m.console(),
		"-kernel", file("vmlinuz"), "-initrd", file("initrd.img"),
		"-append", "root=/dev/vda rw panic=1 quiet "+e.args,
		"-drive", "file="+file("disk.raw")+",format=raw,if=virtio,snapshot=on",
		"-netdev", fmt.Sprintf("user,id=n,hostfwd=tcp:127.0.0.1:%d-:22", port),
		"-device", "virtio-net-pci,netdev=n,romfile=", "-device", "virtio-rng-pci")
	m.qemu.Stderr = os.Stderr
	// Interrupts of the terminal are for the test, which then ends the machine.
	m.qemu.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: unix.SIGKILL}
	if err := m.qemu.Start(); err != nil {
		return nil, fmt.Errorf("start the machine: %w (make deps-vm)", err)
	}
	m.ended = make(chan struct{})
	go func() { _ = m.qemu.Wait(); close(m.ended) }()

	ctx, cancel := context.WithTimeout(ctx, bootTimeout)
	defer cancel()
	for {
		if _, err = m.Run(ctx, "root", "systemctl is-system-running --wait"); err == nil {
			return m, nil
		}
		select {
		case <-m.ended:
			return nil, fmt.Errorf("the machine ended while it was booting; the end of its console: %s", m.consoleTail())
		case <-ctx.Done():
			return nil, fmt.Errorf("the machine does not let us in: %w; the end of its console: %s", err, m.consoleTail())
		case <-time.After(time.Second):
		}
	}
}

// Attach is a Machine that someone else has booted, with sshd on the port.
func Attach(cache string, port int) (*Machine, error) {
	dir, err := os.MkdirTemp("", "vm")
	if err != nil {
		return nil, err
	}
	return &Machine{dir: dir, cache: cache, port: port}, nil
}

// Stop shuts the machine down, by force when it takes too long.
func (m *Machine) Stop() error {
	if m.qemu != nil && m.qemu.Process != nil && m.ended != nil {
		ctx, cancel := context.WithTimeout(context.Background(), haltTimeout)
		defer cancel()
		_, _ = m.Run(ctx, "root", "systemctl poweroff")
		select {
		case <-m.ended:
		case <-ctx.Done():
			_ = m.qemu.Process.Kill()
			<-m.ended
		}
	}
	for _, user := range []string{"root", User} {
		m.HangUp(user)
	}
	return os.RemoveAll(m.dir)
}

func (m *Machine) console() string { return filepath.Join(m.dir, "console") }

func (m *Machine) consoleTail() string {
	b, _ := os.ReadFile(m.console())
	return string(b[max(0, len(b)-2000):])
}

// ssh prepares an ssh into the machine. All of a user's share one connection: a
// new one takes the emulated machine a second.
func (m *Machine) ssh(ctx context.Context, user string, args ...string) *exec.Cmd {
	return m.connect(ctx, filepath.Join(m.dir, "%r"), user, args...)
}

// connect prepares an ssh by the connection of a path, or by one of its own for "none".
func (m *Machine) connect(ctx context.Context, path, user string, args ...string) *exec.Cmd {
	argv := append([]string{
		"-F", "none", "-i", filepath.Join(m.cache, "key"), "-p", strconv.Itoa(m.port),
		"-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR",
		"-o", "ConnectTimeout=10", "-o", "BatchMode=yes",
		"-o", "ControlMaster=auto", "-o", "ControlPath=" + path, "-o", "ControlPersist=600",
		user + "@127.0.0.1",
	}, args...)
	cmd := exec.CommandContext(ctx, "ssh", argv...)
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// HangUp ends the shared connection of a user, and with it the user's session.
func (m *Machine) HangUp(user string) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	_ = m.ssh(ctx, user, "-O", "exit").Run()
}

// searched is where commands of the machine are looked for. A login shell would set it as
// well, which takes the machine as long as the shell itself.
const searched = "export PATH=~/.local/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n"

// Run runs a shell script in the machine and returns its standard output; the
// error carries standard error.
func (m *Machine) Run(ctx context.Context, user, script string) (string, error) {
	cmd := m.ssh(ctx, user, "bash", "-s")
	cmd.Stdin = strings.NewReader(searched + script)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	// The shared connection goes on in the background and keeps these open.
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	if errors.Is(err, exec.ErrWaitDelay) {
		err = nil
	}
	if err != nil {
		err = fmt.Errorf("%s: %w: %s", script, err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), err
}

// Send copies files into the user's home: from a path here to one below it. They go by
// a connection of their own: ssh's encryption takes the emulated machine minutes.
func (m *Machine) Send(ctx context.Context, user string, files map[string]string) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer l.Close()
	sent := make(chan error, 1)
	go func() {
		conn, err := l.Accept()
		if err == nil {
			err = errors.Join(pack(conn, files), conn.Close())
		}
		sent <- err
	}()
	// QEMU shows the host's loopback to the machine as 10.0.2.2.
	_, err = m.Run(ctx, user, fmt.Sprintf("tar -xf - --no-same-owner <%s", deviceOf(l.Addr())))
	l.Close() // where nobody has come
	return errors.Join(err, <-sent)
}

// deviceOf is the file by which the machine's bash connects to an address here.
func deviceOf(addr net.Addr) string {
	return fmt.Sprintf("/dev/tcp/10.0.2.2/%d", addr.(*net.TCPAddr).Port)
}

func pack(w io.Writer, files map[string]string) error {
	t := tar.NewWriter(w)
	for name, source := range files {
		content, err := os.ReadFile(source)
		if err != nil {
			return err
		}
		st, err := os.Stat(source)
		if err != nil {
			return err
		}
		err = t.WriteHeader(&tar.Header{Name: name, Mode: int64(st.Mode().Perm()), Size: int64(len(content))})
		if err != nil {
			return err
		}
		if _, err := t.Write(content); err != nil {
			return err
		}
	}
	return t.Close()
}

// Forward makes the machine's unix socket reachable by the path that it returns,
// until Stop or HangUp.
func (m *Machine) Forward(ctx context.Context, user, socket string) (string, error) {
	local := filepath.Join(m.dir, filepath.Base(socket))
	// ssh makes no socket for one that it has forwarded before.
	_ = m.ssh(ctx, user, "-O", "cancel", "-L", local+":"+socket).Run()
	if err := os.Remove(local); err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", err
	}
	out, err := m.ssh(ctx, user, "-O", "forward", "-L", local+":"+socket).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("forward %s: %w: %s", socket, err, out)
	}
	return local, nil
}

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	return l.Addr().(*net.TCPAddr).Port, l.Close()
}
