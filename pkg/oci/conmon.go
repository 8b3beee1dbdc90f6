package oci

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/subpod/subpod/pkg/proc"
)

// Files in a bundle, made by us or by conmon.
const (
	configFile    = "config.json"
	initPIDFile   = "init.pid"
	conmonPIDFile = "conmon.pid"
	attachSocket  = "attach"
	ctlFIFO       = "ctl"
	winszFIFO     = "winsz"
	oomFile       = "oom"
)

var bundleFiles = []string{configFile, initPIDFile, conmonPIDFile, attachSocket, ctlFIFO, winszFIFO, oomFile}

// conmonArgs is conmon's command line. conmon(8) appends "create --bundle …" to
// the runtime and its arguments.
func (e *Executor) conmonArgs(rt *runtime, s CreateSpec) []string {
	log := "none"
	if s.LogPath != "" {
		log = "k8s-file:" + s.LogPath
	}
	argv := rt.argv()
	args := []string{
		"--api-version", "1",
		"--cid", s.ID,
		"--cuuid", s.ID,
		"--bundle", s.Bundle,
		"--full-attach",
		"--conmon-pidfile", filepath.Join(s.Bundle, conmonPIDFile),
		"--container-pidfile", filepath.Join(s.Bundle, initPIDFile),
		"--exit-dir", e.exitDir,
		"--log-path", log,
		"--no-sync-log",
		"--runtime", argv[0],
	}
	for _, a := range argv[1:] {
		args = append(args, "--runtime-arg="+a)
	}
	if !rt.keyring.Load() {
		args = append(args, "--no-new-keyring")
	}
	if s.Terminal {
		args = append(args, "--terminal")
	}
	if s.Stdin {
		args = append(args, "--stdin")
		if !s.StdinOnce {
			args = append(args, "--leave-stdin-open")
		}
	}
	return args
}

// conmonStart is a conmon that has been started and waits for the word to call
// the runtime.
type conmonStart struct {
	cmd   *exec.Cmd
	words bytes.Buffer
	start *os.File // conmon reads from it before it does anything
	sync  *os.File // conmon answers there
}

// startConmon starts conmon up to the point where it would call the runtime.
// The caller must abandon what it gets.
func (e *Executor) startConmon(rt *runtime, s CreateSpec) (_ *conmonStart, err error) {
	c := &conmonStart{cmd: exec.Command(e.conmon, e.conmonArgs(rt, s)...)}
	sync, syncEnd, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer syncEnd.Close()
	startEnd, start, err := os.Pipe()
	if err != nil {
		sync.Close()
		return nil, err
	}
	defer startEnd.Close()
	c.sync, c.start = sync, start
	c.cmd.Dir = s.Bundle // conmon writes "oom" where it was started
	c.cmd.ExtraFiles = []*os.File{syncEnd, startEnd}
	c.cmd.Env = append(runtimeEnv(e.sockDir), "_OCI_SYNCPIPE=3", "_OCI_STARTPIPE=4")
	c.cmd.WaitDelay = 10 * time.Second
	c.cmd.Stderr = &c.words
	if s.ConmonCgroup != "" {
		dir, err := os.Open(s.ConmonCgroup)
		if err != nil {
			c.abandon()
			return nil, fmt.Errorf("cgroup for conmon: %w", err)
		}
		defer dir.Close()
		c.cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}
	}
	if err := c.cmd.Start(); err != nil {
		c.abandon()
		return nil, fmt.Errorf("start %s: %w", e.conmon, err)
	}
	return c, nil
}

// create lets conmon call the runtime's create and waits until the container
// exists. It fills in f.Conmon and f.Init as soon as each is known, also when
// it returns an error.
func (c *conmonStart) create(ctx context.Context, rt *runtime, bundle string, f *Facts) error {
	_, writeErr := c.start.Write([]byte{0})
	if writeErr != nil && !errors.Is(writeErr, unix.EPIPE) {
		_ = c.cmd.Process.Kill() // it would wait for ever
	}
	stop := context.AfterFunc(ctx, func() { _ = c.cmd.Process.Kill() })
	// The first process ends as soon as conmon has daemonized.
	err := c.cmd.Wait()
	stop()
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if err == nil {
		err = writeErr
	}
	if err != nil {
		// It may have daemonized nevertheless.
		if pid, pidErr := readPID(filepath.Join(bundle, conmonPIDFile)); pidErr == nil {
			f.Conmon, _ = proc.Identify(pid)
		}
		return fmt.Errorf("start %s: %w: %s", c.cmd.Path, err, strings.TrimSpace(c.words.String()))
	}
	pid, err := readPID(filepath.Join(bundle, conmonPIDFile))
	if err != nil {
		return err
	}
	// conmon may have ended already if the runtime failed at once.
	if f.Conmon, err = proc.Identify(pid); err != nil && !errors.Is(err, proc.ErrGone) {
		return err
	}
	if pid, err = readSync(ctx, rt, c.sync); err != nil {
		return err
	}
	if f.Conmon.IsZero() {
		return errors.New("conmon ended right after it had made the container")
	}
	f.Init, err = proc.Identify(pid)
	if err != nil {
		return fmt.Errorf("the container's init (process %d): %w", pid, err)
	}
	return nil
}

// abandon ends a conmon that was not told to call the runtime, and frees what
// belongs to the start. After create only the latter is left to do.
func (c *conmonStart) abandon() {
	if c.cmd.Process != nil && c.cmd.ProcessState == nil {
		_ = c.cmd.Process.Kill()
		_ = c.cmd.Wait()
	}
	c.start.Close()
	c.sync.Close()
}

// readSync reads conmon's answer to a create: init's PID, or the runtime's
// words.
func readSync(ctx context.Context, rt *runtime, sync *os.File) (pid int, err error) {
	stop := context.AfterFunc(ctx, func() { _ = sync.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	line, err := bufio.NewReader(io.LimitReader(sync, 64<<10)).ReadBytes('\n')
	if ctx.Err() != nil {
		return 0, fmt.Errorf("%s create: %w", rt.name, context.Cause(ctx))
	}
	failed := &RuntimeError{Op: "create", Handler: rt.name, ExitCode: -1}
	if len(line) == 0 {
		if !errors.Is(err, io.EOF) {
			return 0, fmt.Errorf("read conmon's sync pipe: %w", err)
		}
		failed.Message = "failed without a word"
		return 0, failed
	}
	var m struct {
		Data    int
		Message string
	}
	if json.Unmarshal(line, &m) != nil {
		failed.Message = runtimeWords(string(line))
		return 0, failed
	}
	if m.Data <= 0 {
		failed.Message = runtimeWords(m.Message)
		return 0, failed
	}
	return m.Data, nil
}

func readPID(path string) (int, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil || pid <= 0 {
		return 0, fmt.Errorf("%s holds no PID: %q", path, b)
	}
	return pid, nil
}

// control writes one line to the container's control fifo. ErrNotRunning when
// no conmon reads it.
func control(f Facts, line string) error {
	// Opening without blocking fails with ENXIO when the reader is gone.
	ctl, err := os.OpenFile(filepath.Join(f.Bundle, ctlFIFO), os.O_WRONLY|unix.O_NONBLOCK, 0)
	if errors.Is(err, unix.ENXIO) || errors.Is(err, os.ErrNotExist) {
		return ErrNotRunning
	}
	if err != nil {
		return fmt.Errorf("open conmon's control fifo: %w", err)
	}
	defer ctl.Close()
	_ = ctl.SetWriteDeadline(time.Now().Add(5 * time.Second))
	if _, err := ctl.WriteString(line); err != nil {
		return fmt.Errorf("write to conmon's control fifo: %w", err)
	}
	return nil
}
