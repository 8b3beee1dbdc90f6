package egress

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// caller is a thread that waits for the answer to its connect(2).
type caller struct {
	tid int
	fd  int // of its socket
}

// maxAddress is what is read of a caller's memory: struct sockaddr_in6. maxSockaddr is what the kernel
// takes as the size of an address: struct sockaddr_storage.
const maxAddress, maxSockaddr = 28, 128

var (
	errFamily = errors.New("not an address of IPv4 or IPv6")
	// errOpaque is returned for processes that cannot be looked into.
	errOpaque = errors.New("the process cannot be looked into")
)

// readAddress reads the address that a caller wants to connect to, once. errFamily.
func readAddress(tid int, pointer, length uint64) (netip.AddrPort, error) {
	var buf [maxAddress]byte
	size := int(int32(length)) // as the kernel takes it, which refuses more than a sockaddr_storage
	if size < 2 || size > maxSockaddr || pointer == 0 || pointer>>63 != 0 {
		return netip.AddrPort{}, errFamily
	}
	size = min(size, maxAddress)
	local := []unix.Iovec{{Base: &buf[0], Len: uint64(size)}}
	remote := []unix.RemoteIovec{{Base: uintptr(pointer), Len: size}}
	n, err := unix.ProcessVMReadv(tid, local, remote, 0)
	if err != nil || n != size {
		return netip.AddrPort{}, fmt.Errorf("%w: read %d of %d bytes: %w", errOpaque, n, size, err)
	}
	return parseAddress(buf[:size])
}

// parseAddress reads struct sockaddr_in or sockaddr_in6. An IPv4 address in the form of IPv6
// stays in that.
func parseAddress(b []byte) (netip.AddrPort, error) {
	switch family := binary.NativeEndian.Uint16(b); {
	case family == unix.AF_INET && len(b) >= 16:
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[4:8])), binary.BigEndian.Uint16(b[2:4])), nil
	case family == unix.AF_INET6 && len(b) >= maxAddress && binary.NativeEndian.Uint32(b[24:28]) == 0: // without a scope
		return netip.AddrPortFrom(netip.AddrFrom16([16]byte(b[8:24])), binary.BigEndian.Uint16(b[2:4])), nil
	}
	return netip.AddrPort{}, errFamily
}

// socket returns a copy of the caller's socket; the caller of it closes it.
func (c caller) socket() (int, error) {
	pidfd, err := unix.PidfdOpen(c.tid, unix.PIDFD_THREAD)
	if errors.Is(err, unix.EINVAL) { // before Linux 6.9 there is none of a thread
		pidfd, err = c.leader()
	}
	if err != nil {
		return -1, fmt.Errorf("%w: %w", errOpaque, err)
	}
	defer unix.Close(pidfd)
	fd, err := unix.PidfdGetfd(pidfd, c.fd, 0)
	if err != nil {
		return -1, fmt.Errorf("%w: %w", errOpaque, err)
	}
	return fd, nil
}

// leader returns a descriptor of the caller's process. A thread with descriptors of its own
// gets a socket that is not the one it has named: it does that to itself.
func (c caller) leader() (int, error) {
	status, err := readBounded(fmt.Sprintf("/proc/%d/status", c.tid))
	if err != nil {
		return -1, err
	}
	for line := range strings.Lines(status) {
		if text, ok := strings.CutPrefix(line, "Tgid:"); ok {
			pid, err := strconv.Atoi(strings.TrimSpace(text))
			if err != nil {
				return -1, err
			}
			return unix.PidfdOpen(pid, 0)
		}
	}
	return -1, errOpaque
}

// closeOnExec reports whether the descriptor is closed when the caller executes another program.
func (c caller) closeOnExec() (bool, error) {
	info, err := readBounded(fmt.Sprintf("/proc/%d/fdinfo/%d", c.tid, c.fd))
	if err != nil {
		return false, fmt.Errorf("%w: %w", errOpaque, err)
	}
	for line := range strings.Lines(info) {
		if text, ok := strings.CutPrefix(line, "flags:"); ok {
			flags, err := strconv.ParseUint(strings.TrimSpace(text), 8, 64)
			return flags&unix.O_CLOEXEC != 0, err
		}
	}
	return false, errOpaque
}

// maxFiles is how many open files of a process are looked at.
const maxFiles = 1024

// use is where else a socket is in use.
type use string

// The uses of a socket that keep it in the pod's network: it would go on being used there as
// the one that it was.
const (
	usedOnce    use = ""
	usedByEpoll use = "epoll"
	usedTwice   use = "shared"
	usedUnknown use = "files" // too many to look at
)

// use looks for other descriptors of the socket and for sets of epoll(7) in the caller's process.
func (c caller) use(inode uint64) (use, error) {
	dir, err := os.Open(fmt.Sprintf("/proc/%d/fd", c.tid))
	if err != nil {
		return usedUnknown, fmt.Errorf("%w: %w", errOpaque, err)
	}
	defer dir.Close()
	names, err := dir.Readdirnames(maxFiles + 1)
	if err != nil || len(names) > maxFiles {
		return usedUnknown, nil
	}
	own, same := strconv.Itoa(c.fd), fmt.Sprintf("socket:[%d]", inode)
	buf, left := make([]byte, 64), int64(maxSets)
	for _, name := range names {
		if name == own {
			continue
		}
		n, err := unix.Readlinkat(int(dir.Fd()), name, buf)
		if err != nil {
			continue // it has been closed
		}
		switch string(buf[:n]) {
		case same:
			return usedTwice, nil
		case "anon_inode:[eventpoll]":
			found, err := c.inSet(name, &left)
			if err != nil || found != usedOnce {
				return found, err
			}
		}
	}
	return usedOnce, nil
}

// maxSets is how much of the descriptions of a process's epoll sets is read, in bytes: some 10,000 descriptors.
const maxSets = 1 << 20

// inSet reports whether an epoll set watches the caller's descriptor. left is how much may still be read.
func (c caller) inSet(epoll string, left *int64) (use, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/fdinfo/%s", c.tid, epoll))
	if err != nil {
		return usedOnce, nil // it has been closed
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, *left))
	if *left -= int64(len(text)); err != nil || *left <= 0 {
		return usedUnknown, nil
	}
	own := strconv.Itoa(c.fd)
	for line := range strings.Lines(string(text)) {
		if fields := strings.Fields(line); len(fields) > 1 && fields[0] == "tfd:" && fields[1] == own {
			return usedByEpoll, nil
		}
	}
	return usedOnce, nil
}

// readBounded reads a small file of proc(5).
func readBounded(path string) (string, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	var buf [4096]byte
	n, err := unix.Read(fd, buf[:])
	return string(buf[:max(n, 0)]), err
}
