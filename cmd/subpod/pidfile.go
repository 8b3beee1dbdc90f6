package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/api"
	"github.com/subpod/subpod/pkg/proc"
	"github.com/subpod/subpod/rootless"
)

// pidFilePath makes a path of --pidfile absolute: "start" writes the file again, from
// wherever it is called.
func pidFilePath(file string) (string, error) {
	if file == "" {
		return "", nil
	}
	path, err := filepath.Abs(file)
	if err != nil {
		return "", fmt.Errorf("--pidfile: %w", err)
	}
	if st, err := os.Stat(filepath.Dir(path)); err != nil || !st.IsDir() {
		return "", fmt.Errorf("--pidfile: the directory %s is not there; make it first", filepath.Dir(path))
	}
	if st, err := os.Stat(path); err == nil && st.IsDir() {
		return "", fmt.Errorf("--pidfile: %s is a directory; name a file", path)
	}
	return path, nil
}

// hostPID returns the PID outside of the node of a process of a container's status.
func (c *connection) hostPID(pid int) (int, error) {
	n, err := rootless.Load(c.config.Daemon.RunDir)
	if err != nil {
		return 0, err
	}
	return n.HostPID(pid)
}

// writePIDFile writes the PID of a container that was created or started, if its options
// ask for it.
func (c *connection) writePIDFile(ctx context.Context, annotations map[string]string, id string) error {
	options, err := api.Options(annotations)
	if err != nil || options.PIDFile == "" {
		return err
	}
	st, err := c.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: id, Verbose: true})
	if err != nil {
		return fmt.Errorf("--pidfile: %w", err)
	}
	var facts containerFacts
	if err := json.Unmarshal([]byte(st.Info["info"]), &facts); err != nil {
		return fmt.Errorf("--pidfile: decode the status of container %s: %w", id, err)
	}
	pid := 0
	if err = proc.ErrGone; facts.PID != 0 {
		pid, err = c.hostPID(facts.PID)
	}
	if errors.Is(err, proc.ErrGone) {
		warn("--pidfile: container %s has ended already; %s is not written", shortID(id), options.PIDFile)
		return nil
	}
	if err != nil {
		return fmt.Errorf("--pidfile: %w", err)
	}
	if err := os.WriteFile(options.PIDFile, []byte(strconv.Itoa(pid)), 0o644); err != nil {
		return fmt.Errorf("--pidfile: %w", err)
	}
	return nil
}

// writePIDFiles is writePIDFile for what was started.
func (c *connection) writePIDFiles(ctx context.Context, t target) error {
	for _, x := range t.containers {
		if err := c.writePIDFile(ctx, x.Annotations, x.Id); err != nil {
			return err
		}
	}
	return nil
}
