package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/api"
	"github.com/subpod/subpod/pkg/client"
	"github.com/subpod/subpod/pkg/stdio"
)

func newRun(a *app) *cobra.Command {
	o := &runOptions{}
	cmd := &cobra.Command{
		Use:   "run [flags] IMAGE [COMMAND [ARG...]]",
		Short: "Run a command in a new container",
		Long: `Runs a container in a pod of its own. The daemon is started if it is not running,
the image is pulled if it is missing. The exit code is that of the command, or 125
if subpod itself failed, 126 if the command cannot be executed, 127 if the command
is not found.

Without -d the output is streamed and signals are forwarded. With -it, ctrl-p ctrl-q
detaches from the container and leaves it running.

Containers have the default seccomp profile, the default capabilities and masked
paths; root in a container is the user who runs the daemon.`,
		Example: `  subpod run --rm busybox echo hello
  subpod run -it --rm -v "$PWD:/src" -w /src golang:1.26 bash
  subpod run -d --name web -p 8080:80 nginx
  subpod run --rm --ephemeral-node alpine ./test.sh     (in CI: nothing keeps running)`,
		Args: atLeast(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runCode(runRun(cmd.Context(), a, o, args))
		},
	}
	o.addFlags(cmd)
	return cmd
}

func runRun(ctx context.Context, a *app, o *runOptions, args []string) (err error) {
	if err := o.check(); err != nil {
		return err
	}
	conn, err := a.connect()
	if errors.Is(err, client.ErrNoDaemon) {
		if o.ephemeral {
			var done func()
			ctx, done = o.interruptible(ctx)
			defer done()
		}
		var d *ownDaemon
		if d, err = a.startDaemon(ctx); err != nil {
			return err
		}
		if o.ephemeral && d != nil {
			defer d.stop()
		}
		conn, err = a.connect()
	}
	if err != nil {
		return err
	}
	err = o.run(ctx, conn, args) // the connection is closed when the process exits
	var interrupted exitStatus
	if cause := context.Cause(ctx); err != nil && errors.As(cause, &interrupted) {
		return cause
	}
	return err
}

// interruptible returns a context that a signal ends, as long as it is not one for the
// container: a command that has a daemon to stop must not die of it. done gives the signals back.
func (o *runOptions) interruptible(ctx context.Context) (_ context.Context, done func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	caught := make(chan os.Signal, 1)
	signal.Notify(caught, unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT)
	go func() {
		for {
			select {
			case sig := <-caught:
				if !o.forwards.Load() {
					cancel(exitStatus(128 + int(sig.(unix.Signal))))
				}
			case <-ctx.Done():
				return
			}
		}
	}()
	return ctx, func() { signal.Stop(caught); cancel(nil) }
}

func (o *runOptions) run(ctx context.Context, conn *connection, args []string) (err error) {
	if err := checkIDFile("--cidfile", o.cidFile); err != nil {
		return err
	}
	if err := nameFor(ctx, conn, o, args[0]); err != nil {
		return err
	}
	if err := o.warnings(ctx, conn.Client); err != nil {
		return err
	}
	if err := ofPlatform(ctx, conn, o, args[0]); err != nil {
		return err
	}
	pod, ctr, err := o.configs(conn.config, args)
	if err != nil {
		return err
	}
	if o.pull == "always" || o.pull == "newer" {
		err := o.pullImage(ctx, conn.Client, args[0])
		if err != nil && (o.pull == "always" || !hasImage(ctx, conn.Client, args[0])) {
			return err
		}
	}
	if err := o.prepare(ctx, conn, args[0], pod, ctr); err != nil {
		return err
	}
	if pod.LogDirectory != "" {
		if err := os.MkdirAll(pod.LogDirectory, 0o700); err != nil {
			return fmt.Errorf("make the log directory: %w", err)
		}
	}
	exit, err := o.session(ctx, conn, pod, ctr)
	defer func() {
		if err != nil && pod.LogDirectory != "" {
			_ = os.Remove(pod.LogDirectory) // only if it is empty: there was no container
		}
	}()
	if client.HasReason(err, api.ReasonImageNotFound) && o.pull != "never" {
		if err := o.pullImage(ctx, conn.Client, args[0]); err != nil {
			return err
		}
		exit, err = o.session(ctx, conn, pod, ctr)
	}
	if client.HasReason(err, api.ReasonForeignImage) {
		if err := foreign(ctx, conn.Client, o, args[0], ctr, err); err != nil {
			return err
		}
		exit, err = o.session(ctx, conn, pod, ctr)
	}
	if errors.Is(err, errDetached) {
		fmt.Fprintf(os.Stderr, "\r\nsubpod: detached from %s; reattach with \"subpod attach %s\"\n", o.name, o.name)
		return nil
	}
	if client.HasReason(err, api.ReasonNameTaken) {
		return cmp.Or(checkName(ctx, conn.Client, o.name), nameTaken(o.name, ""))
	}
	if err != nil {
		return err
	}
	if o.removeImage {
		removeUnused(ctx, conn.Client, args[0])
	}
	if exit.Code != 0 {
		return exitStatus(exit.Code)
	}
	return nil
}

// nameFor sees to it that the name of the container is free, before anything is pulled or
// created; the server decides.
func nameFor(ctx context.Context, conn *connection, o *runOptions, image string) error {
	switch {
	case o.name == "":
		o.name = newName(image)
	case o.replace && o.joins():
		// The container of that pod; a pod may have the same name.
		if err := remove(ctx, conn, o.pod+"/"+o.name, true); err != nil && !client.IsNotFound(err) && !errors.Is(err, client.ErrNotFound) {
			return err
		}
	case o.replace:
		if err := removeNamed(ctx, conn, o.name); err != nil {
			return err
		}
	case o.pod == "":
		if err := checkName(ctx, conn.Client, o.name); err != nil {
			return err
		}
	}
	return nil
}

// session makes the daemon create and start the container, and stays attached unless
// the container is to run in the background.
func (o *runOptions) session(ctx context.Context, c *connection, pod *runtimeapi.PodSandboxConfig, ctr *runtimeapi.ContainerConfig) (*api.SessionExit, error) {
	run := &api.RunRequest{Handler: o.handler, Detach: o.detach, Create: o.create, Restart: o.restart, PodID: o.podID}
	err := c.GrantFor(ctr)
	if err != nil {
		return nil, err
	}
	if run.Pod, err = proto.Marshal(pod); err != nil {
		return nil, err
	}
	if run.Container, err = proto.Marshal(ctr); err != nil {
		return nil, err
	}
	s := &session{client: c.Client, tty: o.tty, stdin: o.interactive && !o.detach, signals: !o.detach && o.sigProxy}
	if s.detachKeys, err = parseDetachKeys(o.detachKeys); err != nil {
		return nil, err
	}
	o.attachTo(s)
	s.made = func(id string) error {
		o.forwards.Store(s.signals)
		return errors.Join(writeIDFile("--cidfile", o.cidFile, id), c.writePIDFile(ctx, ctr.Annotations, id))
	}
	exit, err := s.run(ctx, api.SessionRequest{Kind: api.SessionRun, Run: run})
	if o.podID != "" && o.remove && s.containerID != "" && !errors.Is(err, errDetached) {
		// Its pod stays, so that the daemon does not remove it.
		_, removeErr := c.RemoveContainer(context.WithoutCancel(ctx), &runtimeapi.RemoveContainerRequest{ContainerId: s.containerID})
		err = errors.Join(err, removeErr)
	}
	if err == nil && o.detach {
		_, err = fmt.Println(s.containerID)
	}
	return exit, err
}

// forwarded lists the signals that are forwarded to the container's process.
var forwarded = []os.Signal{unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT, unix.SIGUSR1, unix.SIGUSR2}

// session connects the streams of this process to a container.
type session struct {
	client      *client.Client
	containerID string
	tty, stdin  bool
	signals     bool   // forward them
	detachKeys  []byte // that detach from a terminal
	// noOutput and noErrors leave a stream of the container alone; made is called with the
	// container once there is one.
	noOutput, noErrors bool
	made               func(id string) error
}

// madeError is what made has returned: it is told even if the session was over before it
// could be ended.
type madeError struct{ error }

func (e madeError) Unwrap() error { return e.error }

// errDetached reports that the user has detached with ctrl-p ctrl-q.
var errDetached = errors.New("detached")

func (s *session) run(ctx context.Context, req api.SessionRequest) (*api.SessionExit, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	req.ContainerID, req.TTY = s.containerID, s.tty
	streams := api.Streams{Output: os.Stdout, Errors: os.Stderr}
	if s.noOutput {
		streams.Output = io.Discard
	}
	if s.noErrors {
		streams.Errors = io.Discard
	}
	if s.stdin {
		streams.Input = os.Stdin
	}
	if s.tty && isTerminal(os.Stdin) && s.stdin {
		restore, err := rawTerminal(os.Stdin)
		if err != nil {
			return nil, err
		}
		defer restore()
		streams.Input = &detacher{input: os.Stdin, keys: s.detachKeys, detach: func() { cancel(errDetached) }}
	}
	if s.tty && isTerminal(os.Stdout) {
		sizes := make(chan stdio.TerminalSize, 1)
		streams.Sizes = sizes
		go watchSize(ctx, sizes)
	}
	if s.signals && s.containerID != "" {
		s.forwardSignals(ctx)
	}
	streams.Made = func(m api.Made) {
		s.containerID = m.ContainerID
		if s.signals {
			s.forwardSignals(ctx)
		}
		if s.made != nil { // it may take its time
			if err := s.made(m.ContainerID); err != nil {
				cancel(madeError{err})
			}
		}
	}
	exit, err := s.client.Session(ctx, req, streams)
	if errors.Is(context.Cause(ctx), errDetached) {
		return nil, errDetached
	}
	var notMade madeError
	if cause := context.Cause(ctx); errors.As(cause, &notMade) || err != nil && cause != nil && !errors.Is(cause, context.Canceled) {
		return nil, cause // what made has returned
	}
	return exit, err
}

// forwardSignals forwards signals to the container until ctx ends. Before there is
// a container they terminate this process, and with it the session.
func (s *session) forwardSignals(ctx context.Context) {
	caught := make(chan os.Signal, 16)
	signal.Notify(caught, forwarded...)
	go func() {
		defer signal.Stop(caught)
		for {
			select {
			case sig := <-caught:
				// The container may have exited in the meantime.
				_ = s.client.Signal(ctx, s.containerID, int(sig.(unix.Signal)))
			case <-ctx.Done():
				return
			}
		}
	}()
}

// watchSize sends the size of the terminal, now and when it changes.
func watchSize(ctx context.Context, sizes chan<- stdio.TerminalSize) {
	changed := make(chan os.Signal, 1)
	signal.Notify(changed, unix.SIGWINCH)
	defer signal.Stop(changed)
	for {
		if w, h, err := terminalSize(os.Stdout); err == nil {
			select {
			case sizes <- stdio.TerminalSize{Width: w, Height: h}:
			case <-ctx.Done():
				return
			}
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

// newName generates a name from that of the image.
func newName(image string) string {
	base, _, _ := strings.Cut(path.Base(image), "@")
	base, _, _ = strings.Cut(base, ":")
	words := strings.FieldsFunc(strings.ToLower(base), func(r rune) bool { return (r < 'a' || r > 'z') && (r < '0' || r > '9') })
	base = strings.Join(words, "-")
	if base == "" {
		base = "container"
	}
	return base[:min(len(base), 40)] + "-" + randomHex(3)
}

func randomHex(bytes int) string {
	b := make([]byte, bytes)
	_, _ = rand.Read(b) // never fails (crypto/rand)
	return hex.EncodeToString(b)
}

// checkName returns an error if a pod has the name.
func checkName(ctx context.Context, c *client.Client, name string) error {
	pods, err := c.Pods(ctx)
	if err != nil {
		return err
	}
	for _, p := range pods {
		if client.PodName(p) == name && !leaves(ctx, c, p) {
			return nameTaken(name, " "+shortID(p.Id))
		}
	}
	return nil
}

// leaves reports whether a pod of "run --rm" has ended: the server waits until it is removed.
func leaves(ctx context.Context, c *client.Client, p *runtimeapi.PodSandbox) bool {
	if p.Annotations[api.AnnotationWhenDone] != api.WhenDoneRemove {
		return false
	}
	resp, err := c.ListContainers(ctx, &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{PodSandboxId: p.Id}})
	return err == nil && !slices.ContainsFunc(resp.Containers, func(c *runtimeapi.Container) bool {
		return c.State != runtimeapi.ContainerState_CONTAINER_EXITED
	})
}

func nameTaken(name, id string) error {
	return fmt.Errorf("the name %s is in use by pod%s; remove that pod (subpod rm -f %s) or choose another name", name, id, name)
}

// removePod removes a pod, and its logs if they are in our log directory.
func removePod(ctx context.Context, conn *connection, id, logs string) error {
	if _, err := conn.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: id}); err != nil {
		return err
	}
	if _, err := conn.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: id}); err != nil {
		return err
	}
	if logs != "" && filepath.Dir(logs) == logsDir(conn.config) {
		return os.RemoveAll(logs)
	}
	return nil
}
