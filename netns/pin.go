package netns

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/subpod/subpod/pkg/idmap"
	"github.com/subpod/subpod/pkg/proc"
	"golang.org/x/sys/unix"
)

// pinNames are the files that Pin makes in a pod's directory.
// The user namespace is last: it owns the others.
var pinNames = []string{"net", "ipc", "uts", "pid", "user"}

// IDMaps are the maps of a nested user namespace. Host IDs are those of the caller's.
type IDMaps struct{ UIDs, GIDs []idmap.Map }

// PinSpec says which namespaces a pod gets for itself.
type PinSpec struct {
	Dir           string // the pins are files in it; made (0700) when missing
	Net, IPC, UTS bool
	Hostname      string            // set in the new UTS namespace
	Sysctls       map[string]string // net.* and those of the IPC namespace
	// DefaultSysctls are net.* sysctls for a new network namespace, unless Sysctls has
	// them or the kernel does not take them.
	DefaultSysctls map[string]string
	// UserNS asks for a nested user namespace that owns the others. Its root
	// must be mapped.
	UserNS *IDMaps
	// PID asks for a shared PID namespace too, kept by a pause process.
	PID bool
	// PauseUID and PauseGID are what the pause process runs as, in UserNS where that is
	// set: IDs of no container, so that none can signal or trace it by having the same.
	PauseUID, PauseGID uint32
}

// Pins are the paths of pinned namespaces; "" for those not made.
type Pins struct {
	Net, IPC, UTS, PID, User string
	Pause                    proc.ID `json:"Keeper"` // zero without a PID namespace
}

// Pin makes the namespaces of a pod and binds them to files in Dir, so that no
// process has to hold them: they live until Unpin. A new network namespace has its lo
// up. Either all is made or nothing is left. fs.ErrExist when Dir already has pins;
// ErrSysctl for a sysctl that is not the pod's to set.
func Pin(ctx context.Context, s PinSpec) (Pins, error) {
	if err := ctx.Err(); err != nil {
		return Pins{}, err
	}
	if err := s.check(); err != nil {
		return Pins{}, fmt.Errorf("pin namespaces: %w", err)
	}
	if err := os.MkdirAll(s.Dir, 0o700); err != nil {
		return Pins{}, fmt.Errorf("pin namespaces: %w", err)
	}
	for _, name := range pinNames {
		if _, err := os.Lstat(filepath.Join(s.Dir, name)); err == nil {
			return Pins{}, fmt.Errorf("pin namespaces: %s/%s: %w", s.Dir, name, fs.ErrExist)
		}
	}
	pins, err := s.pin(ctx)
	if err != nil {
		return Pins{}, errors.Join(fmt.Errorf("pin namespaces: %w", err), Unpin(s.Dir))
	}
	return pins, nil
}

func (s PinSpec) check() error {
	if s.Dir == "" {
		return errors.New("no directory given")
	}
	if s.Hostname != "" && !s.UTS {
		return errors.New("a hostname needs a UTS namespace")
	}
	for key := range s.Sysctls {
		p, err := checkSysctl(key, s.Net, s.IPC)
		if err != nil {
			return err
		}
		if namesInterface(p) {
			return fmt.Errorf("%w: %s: the interface does not exist yet", ErrSysctl, key)
		}
	}
	return nil
}

func (s PinSpec) pin(ctx context.Context) (Pins, error) {
	if s.UserNS != nil {
		return s.pinNested()
	}
	pins := s.paths()
	err := onThread(func() (err error) {
		if err := s.unshareHere(); err != nil || !s.PID {
			return err
		}
		pins.Pause, err = s.startPause(ctx)
		return err
	})
	return pins, err
}

func (s PinSpec) paths() Pins {
	path := func(want bool, name string) string {
		if !want {
			return ""
		}
		return filepath.Join(s.Dir, name)
	}
	return Pins{
		Net: path(s.Net, "net"), IPC: path(s.IPC, "ipc"), UTS: path(s.UTS, "uts"),
		PID: path(s.PID, "pid"), User: path(s.UserNS != nil, "user"),
	}
}

func (s PinSpec) cloneFlags() int {
	flags := 0
	if s.Net {
		flags |= unix.CLONE_NEWNET
	}
	if s.IPC {
		flags |= unix.CLONE_NEWIPC
	}
	if s.UTS {
		flags |= unix.CLONE_NEWUTS
	}
	return flags
}

// unshareHere gives the calling thread new namespaces and pins them. The thread
// is of no other use after it.
func (s PinSpec) unshareHere() error {
	flags := s.cloneFlags()
	if flags == 0 {
		return nil
	}
	if err := unix.Unshare(flags); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	if err := s.configure(); err != nil {
		return err
	}
	return s.bindFrom("/proc/thread-self/ns")
}

// configure sets hostname, sysctls and loopback in the calling thread's
// namespaces.
func (s PinSpec) configure() error {
	if s.Hostname != "" {
		if err := unix.Sethostname([]byte(s.Hostname)); err != nil {
			return fmt.Errorf("set hostname %q: %w", s.Hostname, err)
		}
	}
	if s.Net {
		if err := loopbackUp(); err != nil {
			return err
		}
		s.writeDefaults()
	}
	return writeSysctls(s.Sysctls, s.Net, s.IPC)
}

// bindFrom pins the namespaces found in procNS (a /proc/…/ns directory).
func (s PinSpec) bindFrom(procNS string) error {
	for _, p := range []struct {
		want bool
		name string
	}{{s.UserNS != nil, "user"}, {s.Net, "net"}, {s.IPC, "ipc"}, {s.UTS, "uts"}} {
		if !p.want {
			continue
		}
		if err := bind(filepath.Join(procNS, p.name), filepath.Join(s.Dir, p.name)); err != nil {
			return err
		}
	}
	return nil
}

func bind(from, to string) error {
	if err := unix.Mknod(to, unix.S_IFREG|0o400, 0); err != nil {
		return fmt.Errorf("make pin: %w", &os.PathError{Op: "mknod", Path: to, Err: err})
	}
	if err := unix.Mount(from, to, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind %s to %s: %w", from, to, err)
	}
	return nil
}
