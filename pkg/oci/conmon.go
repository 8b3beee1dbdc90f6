package oci

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Files in a bundle, made by us or by conmon.
const (
	configFile    = "config.json"
	initPIDFile   = "init.pid"
	conmonPIDFile = "conmon.pid"
	attachSocket  = "attach"
	ctlFIFO       = "ctl"
	winszFIFO     = "winsz"
	logLink       = "log"     // leads conmon to the log file, see log.go
	nextLogLink   = "log.tmp" // leads conmon to the next log file
	oomFile       = "oom"
)

var bundleFiles = []string{configFile, initPIDFile, conmonPIDFile, attachSocket, ctlFIFO, winszFIFO, logLink, nextLogLink, oomFile, consoleSocket, mountsLink}

// conmonArgs returns conmon's command line. conmon(8) appends "create --bundle …"
// to argv, the runtime and its arguments.
func conmonArgs(argv []string, s BeginSpec, exitDir string) []string {
	log := "none"
	if s.LogPath != "" {
		log = "k8s-file:" + filepath.Join(s.Bundle, logLink)
	}
	args := []string{
		"--api-version", "1",
		"--cid", s.ID,
		"--cuuid", s.ID,
		"--bundle", s.Bundle,
		"--full-attach",
		"--conmon-pidfile", filepath.Join(s.Bundle, conmonPIDFile),
		"--container-pidfile", filepath.Join(s.Bundle, initPIDFile),
		"--exit-dir", exitDir,
		"--log-path", log,
		"--no-sync-log",
		"--no-new-keyring", // conmon has it, see keyring.go
		"--runtime", argv[0],
	}
	for _, a := range argv[1:] {
		args = append(args, "--runtime-arg="+a)
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

// readSync reads conmon's report of a create: init's PID, or the runtime's
// message.
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
		failed.Message = "failed without a message"
		return 0, failed
	}
	var m struct {
		Data    int
		Message string
	}
	if json.Unmarshal(line, &m) != nil {
		failed.Message = runtimeMessage(string(line))
		return 0, failed
	}
	if m.Data <= 0 {
		failed.Message = runtimeMessage(m.Message)
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
