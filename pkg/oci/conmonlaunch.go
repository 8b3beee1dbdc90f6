package oci

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/subpod/subpod/pkg/proc"
)

// conmonLaunch is a conmon that waits on its start pipe.
type conmonLaunch struct {
	p      *Pending
	cmd    *exec.Cmd
	stderr bytes.Buffer
	start  *os.File // conmon reads from it before it invokes the runtime
	sync   *os.File // conmon reports there
}

func (m conmon) launch(p *Pending) (launch, error) {
	l := &conmonLaunch{p: p}
	if p.log != nil {
		if err := linkTo(filepath.Join(p.spec.Bundle, logLink), fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), fdOf(p.log))); err != nil {
			return nil, err
		}
	}
	if err := l.begin(); err != nil {
		l.close()
		return nil, err
	}
	return l, nil
}

func (l *conmonLaunch) pid() int { return l.cmd.Process.Pid }

func (l *conmonLaunch) begin() error {
	p := l.p
	sync, syncEnd, err := os.Pipe()
	if err != nil {
		return err
	}
	defer syncEnd.Close()
	l.sync = sync
	startEnd, start, err := os.Pipe()
	if err != nil {
		return err
	}
	defer startEnd.Close()
	l.start = start
	cmd := exec.Command(p.e.conmon, conmonArgs(p.createArgv(), p.spec, p.e.exitDir)...)
	cmd.Dir = p.spec.Bundle // conmon writes "oom" where it was started
	cmd.ExtraFiles = []*os.File{syncEnd, startEnd}
	cmd.Env = append(runtimeEnv(p.e.sockDir), "_OCI_SYNCPIPE=3", "_OCI_STARTPIPE=4")
	cmd.WaitDelay = 10 * time.Second
	cmd.Stderr = &l.stderr
	if err := p.start(cmd); err != nil {
		return fmt.Errorf("start %s: %w", p.e.conmon, err)
	}
	l.cmd = cmd
	return nil
}

// invoke sets c.Conmon and c.Init as soon as each is known.
func (l *conmonLaunch) invoke(ctx context.Context, c *Container) error {
	_, writeErr := l.start.Write([]byte{0})
	if writeErr != nil && !errors.Is(writeErr, unix.EPIPE) {
		_ = l.cmd.Process.Kill() // it would wait for ever
	}
	stop := context.AfterFunc(ctx, func() { _ = l.cmd.Process.Kill() })
	// The first process ends as soon as conmon has daemonized.
	err := l.cmd.Wait()
	stop()
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if err == nil {
		err = writeErr
	}
	pidFile := filepath.Join(l.p.spec.Bundle, conmonPIDFile)
	if err != nil {
		// It may have daemonized nevertheless.
		if pid, pidErr := readPID(pidFile); pidErr == nil {
			c.Conmon, _ = proc.Identify(pid)
		}
		return fmt.Errorf("start %s: %w: %s", l.cmd.Path, err, strings.TrimSpace(l.stderr.String()))
	}
	pid, err := readPID(pidFile)
	if err != nil {
		return err
	}
	// conmon has ended already if the runtime failed at once.
	if c.Conmon, err = proc.Identify(pid); err != nil && !errors.Is(err, proc.ErrGone) {
		return err
	}
	if pid, err = readSync(ctx, l.p.rt, l.sync); err != nil {
		return err
	}
	if c.Conmon.IsZero() {
		return errors.New("conmon ended right after it had created the container")
	}
	c.Init, err = proc.Identify(pid)
	if err != nil {
		return fmt.Errorf("the container's init (process %d): %w", pid, err)
	}
	if l.p.log != nil { // conmon has opened it
		if err := linkTo(filepath.Join(l.p.spec.Bundle, logLink), l.p.spec.LogPath); err != nil {
			return fmt.Errorf("name the log in the bundle: %w", err)
		}
	}
	return nil
}

// close ends conmon unless it was asked to call the runtime, before it could see
// the end of its start pipe, which it takes for that word.
func (l *conmonLaunch) close() {
	if l.cmd != nil && l.cmd.ProcessState == nil {
		_ = l.cmd.Process.Kill()
		_ = l.cmd.Wait()
	}
	for _, f := range []*os.File{l.start, l.sync} {
		if f != nil {
			f.Close()
		}
	}
}
