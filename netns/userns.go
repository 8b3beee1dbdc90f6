package netns

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"github.com/subpod/subpod/pkg/idmap"
	"github.com/subpod/subpod/pkg/proc"
	"golang.org/x/sys/unix"
)

// pinNested makes a nested user namespace and, owned by it, the others. A thread
// cannot unshare a user namespace, so a child process does it: the pause process when a
// shared PID namespace is wanted too, else one that is killed once all is pinned.
func (s PinSpec) pinNested() (Pins, error) {
	pins := s.paths()
	err := onThread(func() (err error) {
		pins.Pause, err = s.cloneNested()
		return err
	})
	if err != nil {
		return pins, fmt.Errorf("nested user namespace: %w", err)
	}
	return pins, nil
}

// cloneNested runs on a thread of its own, so that the helper dies with it should
// the server be killed meanwhile (PR_SET_PDEATHSIG means the parent thread).
func (s PinSpec) cloneNested() (proc.ID, error) {
	_, hasUID := idmap.Root(s.UserNS.UIDs)
	_, hasGID := idmap.Root(s.UserNS.GIDs)
	if !hasUID || !hasGID {
		return proc.ID{}, errors.New("root is not mapped")
	}
	attr := &syscall.SysProcAttr{
		Cloneflags:                 uintptr(s.cloneFlags() | unix.CLONE_NEWUSER),
		UidMappings:                sysIDs(s.UserNS.UIDs),
		GidMappings:                sysIDs(s.UserNS.GIDs),
		GidMappingsEnableSetgroups: true,
		Credential:                 &syscall.Credential{Uid: 0, Gid: 0},
	}
	var child *os.Process
	var err error
	if s.PID {
		attr.Cloneflags |= uintptr(s.pauseFlags())
		child, err = s.spawnPause(attr)
	} else {
		attr.Pdeathsig = unix.SIGKILL
		child, err = spawnWaiter(attr)
	}
	if err != nil {
		return proc.ID{}, err
	}
	id, err := proc.Identify(child.Pid)
	if err == nil {
		err = s.pinChild(child.Pid)
	}
	if err != nil || !s.PID {
		_ = child.Kill()
		_, _ = child.Wait()
		return proc.ID{}, err
	}
	reapLater(child, id)
	return id, nil
}

// pinChild pins the namespaces of the child and configures them from a thread
// that joins them: the child itself runs no code of ours.
func (s PinSpec) pinChild(pid int) error {
	ns := "/proc/" + strconv.Itoa(pid) + "/ns"
	if err := s.bindFrom(ns); err != nil {
		return err
	}
	if s.PID {
		if err := bind(ns+"/pid", filepath.Join(s.Dir, "pid")); err != nil {
			return err
		}
	}
	if s.cloneFlags() == 0 {
		return nil
	}
	return onThread(func() error {
		for _, p := range []struct {
			want bool
			name string
			kind int
		}{{s.Net, "net", unix.CLONE_NEWNET}, {s.IPC, "ipc", unix.CLONE_NEWIPC}, {s.UTS, "uts", unix.CLONE_NEWUTS}} {
			if !p.want {
				continue
			}
			if err := enter(filepath.Join(s.Dir, p.name), p.kind); err != nil {
				return err
			}
		}
		uid, _ := idmap.Root(s.UserNS.UIDs)
		gid, _ := idmap.Root(s.UserNS.GIDs)
		return s.configureAs(uid, gid)
	})
}

// configureAs configures the calling thread's namespaces, whose owner is the
// user namespace with the given root. The IPC sysctls ask for that very user;
// capabilities over the namespace do not count (ipc/ipc_sysctl.c).
func (s PinSpec) configureAs(uid, gid uint32) error {
	sysctls := s.Sysctls
	late := map[string]string{}
	s.Sysctls = map[string]string{}
	for key, value := range sysctls {
		if p, err := sysctlPath(key); err == nil && p == pingGroupRange {
			value = outerGroups(value, s.UserNS.GIDs)
		}
		if p, err := checkSysctl(key, s.Net, false); err == nil && p != "" {
			s.Sysctls[key] = value
		} else {
			late[key] = value
		}
	}
	if err := s.configure(); err != nil || len(late) == 0 {
		return err
	}
	// The raw calls change this thread only, and it ends soon.
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESGID, ^uintptr(0), uintptr(gid), ^uintptr(0)); errno != 0 {
		return fmt.Errorf("become the nested root: setresgid %d: %w", gid, errno)
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, ^uintptr(0), uintptr(uid), ^uintptr(0)); errno != 0 {
		return fmt.Errorf("become the nested root: setresuid %d: %w", uid, errno)
	}
	return writeSysctls(late, false, s.IPC)
}

func sysIDs(ids []idmap.Map) []syscall.SysProcIDMap {
	out := make([]syscall.SysProcIDMap, 0, len(ids))
	for _, m := range ids {
		out = append(out, syscall.SysProcIDMap{ContainerID: int(m.Container), HostID: int(m.Host), Size: int(m.Size)})
	}
	return out
}

// reapLater collects the child when it ends. Until then it costs a goroutine and
// a pidfd in the poller, not a thread. After a restart of the server the node's
// init collects it.
func reapLater(child *os.Process, id proc.ID) {
	go func() {
		_ = id.Wait(context.Background())
		_, _ = child.Wait()
	}()
}
