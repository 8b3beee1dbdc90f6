package rootless

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// A node with ViewMinimal lies in two user namespaces, one in the other. The outer
// one has the IDs (newuidmap) and a mount namespace with the host's full tree; in it
// are the parent, the uplink's program and the broker. The inner one has the same IDs
// and is the node: it has no rights over the outer one, so the processes, mounts and
// namespaces there are out of its reach whatever it finds a name for.
//
// This process moves into the outer one by nsenter(1), since a Go program cannot:
// setns(2) and unshare(2) of a user namespace want a single thread.

// envOuter says that this process is in the outer user namespace: "PID FD INODE" of
// the process that was made with it, of the pipe that keeps that process, and of the
// user namespace around.
const envOuter = envPrefix + "OUTER"

// outerNS is what the parent in an outer user namespace knows of it.
type outerNS struct {
	host uint64 // inode number of the user namespace around it
	// uids and gids are its ID maps: the node's own show this namespace as the outside.
	uids, gids []IDMap
}

// enterOuter makes the outer user namespace and replaces this process by one in it,
// with the same PID, that goes on with Run. It returns only when that fails.
func enterOuter(c Config, h Host) error {
	host, err := nsInode("self", "user")
	if err != nil {
		return err
	}
	nsenter, err := exec.LookPath("nsenter")
	if err != nil {
		return fmt.Errorf("find nsenter (package util-linux): %w", err)
	}
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	holder := exec.Command(selfExe)
	holder.Env = append(cleanEnv(os.Environ()), envRole+"="+roleHolder)
	holder.Stdin, holder.Stderr = r, os.Stderr
	holder.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER | unix.CLONE_NEWNS}
	if err := holder.Start(); err != nil {
		return fmt.Errorf("make the outer user namespace: %w", err)
	}
	r.Close()
	pid := strconv.Itoa(holder.Process.Pid)
	b, err := json.Marshal(c)
	if err == nil {
		err = mapOuter(c, h, pid)
	}
	if err == nil {
		_, err = unix.FcntlInt(w.Fd(), unix.F_SETFD, 0) // nsenter keeps it open
	}
	if err == nil {
		keepActivation()
		env := append(cleanEnv(os.Environ()), envRole+"="+roleParent, envConfig+"="+string(b),
			fmt.Sprintf("%s=%s %d %d", envOuter, pid, w.Fd(), host))
		argv := append([]string{"nsenter", "--target", pid, "--user", "--mount", "--preserve-credentials", "--", exe}, os.Args[1:]...)
		err = unix.Exec(nsenter, argv, env)
	}
	w.Close()
	return errors.Join(fmt.Errorf("enter the outer user namespace: %w", err), holder.Wait())
}

// mapOuter gives the outer user namespace its IDs: those that a node with ViewFull has.
func mapOuter(c Config, h Host, pid string) error {
	if c.IDMapping == IDsSingle {
		return errors.Join(writeIDMap([]string{pid}, "uid_map", h.UID), writeIDMap([]string{pid}, "gid_map", h.GID))
	}
	uids, gids := h.SubordinateIDs()
	for _, m := range []struct {
		program string
		own     int
		ranges  []SubIDs
	}{{linkNewUIDMap, h.UID, uids}, {linkNewGIDMap, h.GID, gids}} {
		args := []string{pid, "0", strconv.Itoa(m.own), "1"}
		next := uint32(1)
		for _, r := range without(m.ranges, uint32(m.own)) {
			args = append(args, strconv.FormatUint(uint64(next), 10), strconv.FormatUint(uint64(r.First), 10), strconv.FormatUint(uint64(r.Size), 10))
			next += r.Size
		}
		if out, err := exec.Command(m.program, args...).CombinedOutput(); err != nil {
			return fmt.Errorf("%s %s: %w: %s", m.program, strings.Join(args, " "), err, strings.TrimSpace(string(out)))
		}
	}
	return nil
}

// without cuts an ID out of ranges: newuidmap maps none twice, and the user's own is
// root already.
func without(ranges []SubIDs, id uint32) []SubIDs {
	var out []SubIDs
	for _, r := range ranges {
		if id < r.First || id-r.First >= r.Size {
			out = append(out, r)
			continue
		}
		for _, part := range []SubIDs{{r.First, id - r.First}, {id + 1, r.Size - (id - r.First) - 1}} {
			if part.Size > 0 {
				out = append(out, part)
			}
		}
	}
	return out
}

// runHolderRole keeps the namespaces that it was made with until another process is
// in them, or has ended before.
func runHolderRole() error {
	_, _ = os.Stdin.Read(make([]byte, 1))
	return nil
}

// takeOuter ends the process that enterOuter made, whose namespaces this one is in.
// Nil where this process is in none.
func takeOuter() (*outerNS, error) {
	text := os.Getenv(envOuter)
	if text == "" {
		return nil, nil
	}
	var pid, fd int
	var o outerNS
	if _, err := fmt.Sscan(text, &pid, &fd, &o.host); err != nil {
		return nil, fmt.Errorf("decode %s=%q: %w", envOuter, text, err)
	}
	if err := errors.Join(os.Unsetenv(envOuter), unix.Close(fd)); err != nil {
		return nil, err
	}
	if _, err := unix.Wait4(pid, nil, 0, nil); err != nil {
		return nil, fmt.Errorf("wait for the process that made the outer user namespace: %w", err)
	}
	var err error
	if o.uids, err = readIDMap("self", "uid_map"); err != nil {
		return nil, err
	}
	if o.gids, err = readIDMap("self", "gid_map"); err != nil {
		return nil, err
	}
	// What is mounted here stays here; what the host mounts still comes.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return nil, fmt.Errorf("take the host's mounts into the outer mount namespace: %w", err)
	}
	return &o, nil
}
