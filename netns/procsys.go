package netns

import (
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// procSys opens files of /proc/sys, which shows the namespaces of whoever opens them.
//
// The kernel keeps one directory entry of each name for each network namespace that was
// looked into, all in one list, and searches that: with 1,000 namespaces 0.4 ms and more a
// file. A mount of its own has lists of its own. It is in no directory, and replaced
// after maxLookups files, so that its lists stay short.
type procSys struct {
	mu      sync.Mutex
	lookups int // with root, or without while there is none yet
	root    *os.File
	mount   func() (*os.File, error)
}

// maxLookups is how many files are opened by one mount: those of some 40 pods.
const maxLookups = 128

// sysctls are the server's.
var sysctls = procSys{mount: mountProc}

// open opens a file below /proc/sys for writing, as the calling thread sees it.
func (p *procSys) open(name string) (*os.File, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.lookups++; p.lookups > maxLookups {
		p.renew()
	}
	path := "/proc/sys/" + name
	dir, below := unix.AT_FDCWD, path
	if p.root != nil {
		dir, below = int(p.root.Fd()), "sys/"+name
	}
	fd, err := unix.Openat(dir, below, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// renew puts a new mount in the place of the last one. Where that fails, all goes on as it
// is: not each thread may mount (configureAs), and on some hosts none.
func (p *procSys) renew() {
	p.lookups = 0
	root, err := p.mount()
	if err != nil {
		return
	}
	if p.root != nil {
		p.root.Close()
	}
	p.root = root
}

// mountProc makes a mount of /proc that is in no directory.
func mountProc() (*os.File, error) {
	fs, err := unix.Fsopen("proc", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("fsopen", err)
	}
	defer unix.Close(fs)
	if err := unix.FsconfigCreate(fs); err != nil {
		return nil, os.NewSyscallError("fsconfig", err)
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("fsmount", err)
	}
	return os.NewFile(uintptr(fd), "/proc"), nil
}
