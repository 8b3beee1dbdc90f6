package cni

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"
	"golang.org/x/sys/unix"

	"github.com/subpod/subpod/netns"
)

// run runs the plugins of one operation. It implements libcni's invoke.Exec.
type run struct {
	version.PluginDecoder
	n    *Network
	verb string
	// rest is how many plugins are still to be called. When it is set, a plugin
	// that fails does not keep the others from being called: the last one reports.
	rest   int
	failed []error
}

// pipeDelay bounds the wait for pipes that a plugin's children keep open.
const pipeDelay = time.Second

func (n *Network) exec(verb string) *run { return &run{n: n, verb: verb} }

func (r *run) lib() *libcni.CNIConfig {
	return libcni.NewCNIConfigWithCacheDir(r.n.BinDirs, r.n.cache, r)
}

// explain returns what the plugins said themselves in place of libcni's error,
// which names only the one that was called last.
func (r *run) explain(err error) error {
	if err != nil && len(r.failed) > 0 {
		return errors.Join(r.failed...)
	}
	return err
}

// FindInPath implements invoke.Exec.
func (r *run) FindInPath(plugin string, dirs []string) (string, error) {
	path, err := invoke.FindInPath(plugin, dirs)
	if err == nil || r.rest == 0 {
		if err != nil {
			err = fmt.Errorf("plugin %s: not found in %s: install it there, or correct network.cni_bin_dirs: %w",
				plugin, strings.Join(dirs, ", "), err)
			r.failed = append(r.failed, err)
		}
		return path, err
	}
	return plugin, nil // ExecPlugin fails to start it, and others get their turn
}

// ExecPlugin implements invoke.Exec: it starts the plugin on a thread in the node
// network namespace, which the plugin inherits, and waits for it elsewhere.
func (r *run) ExecPlugin(ctx context.Context, path string, stdin []byte, env []string) ([]byte, error) {
	out, err := r.plugin(ctx, path, stdin, env)
	if err != nil && err.Error() == "unknown CNI_COMMAND: VERSION" {
		return nil, err // libcni knows these words: a plugin for CNI 0.1.0
	}
	if err != nil {
		err = fmt.Errorf("plugin %s failed at %s: %w", filepath.Base(path), r.verb, err)
		r.failed = append(r.failed, err)
	}
	if r.rest == 0 {
		return out, err
	}
	if r.rest--; r.rest > 0 {
		return out, nil
	}
	return out, errors.Join(r.failed...)
}

func (r *run) plugin(ctx context.Context, path string, stdin []byte, env []string) ([]byte, error) {
	if !filepath.IsAbs(path) {
		return nil, fmt.Errorf("not found in %s", strings.Join(r.n.BinDirs, ", "))
	}
	ctx, cancel := context.WithTimeout(ctx, r.n.Timeout)
	defer cancel()
	var stdout, stderr bytes.Buffer
	var cmd *exec.Cmd
	start := func() error {
		cmd = exec.CommandContext(ctx, path)
		cmd.Env, cmd.Stdin, cmd.Stdout, cmd.Stderr = env, bytes.NewReader(stdin), &stdout, &stderr
		// Programs that the plugin has started end with it.
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
		cmd.WaitDelay = pipeDelay
		return cmd.Start()
	}
	begin := time.Now()
	// On a thread of its own: a start from a file system that hangs stops nobody else.
	node := r.n.Thread.Path()
	err := netns.In(node, start)
	for tries := 0; errors.Is(err, unix.ETXTBSY) && tries < 5; tries++ {
		time.Sleep(200 * time.Millisecond) // it is being installed
		err = netns.In(node, start)
	}
	if err == nil {
		err = cmd.Wait()
	}
	if err == nil {
		return stdout.Bytes(), nil
	}
	if ctx.Err() != nil {
		return nil, fmt.Errorf("no answer within %v, killed: %w%s", time.Since(begin).Round(time.Millisecond), ctx.Err(), said(stderr.String()))
	}
	// A plugin says in JSON on its standard output what went wrong.
	var reason types.Error
	if json.Unmarshal(stdout.Bytes(), &reason) == nil && reason.Msg != "" {
		return nil, &reason
	}
	return nil, fmt.Errorf("%w%s", err, said(stderr.String()+stdout.String()))
}

// said returns the beginning of what a program wrote, for an error.
func said(text string) string {
	const most = 512
	text = strings.TrimSpace(text)
	if text == "" {
		return ""
	}
	if len(text) > most {
		text = text[:most] + "…"
	}
	return ": " + text
}
