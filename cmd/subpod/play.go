package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/subpod/subpod/cmd/internal/kube"
	"github.com/subpod/subpod/cmd/internal/play"
	"github.com/subpod/subpod/rootless"
)

// playOptions are the flags of "play".
type playOptions struct {
	down, logs, replace, detach, quiet bool
	upFD                               int
}

func newPlay(a *app) *cobra.Command {
	o := &playOptions{}
	cmd := &cobra.Command{
		Use:   "play [flags] FILE...",
		Short: "Run the pods of Kubernetes manifests",
		Long: `Runs the Pods and Deployments (one pod for each replica) of manifests ("-" is
standard input), with their ConfigMaps, Secrets and PersistentVolumeClaims. Claims
are named volumes and are kept. Init containers, sidecars, probes, hooks and restart
policies work as in a cluster while this command is running.

The command exits when all pods have completed, with 0 if they succeeded. When
interrupted, it stops and removes them. With -d it continues in the background until
the pods complete or are removed with --down.

Other kinds and unsupported fields are rejected.`,
		Example: `  subpod play pod.yaml
  subpod play --logs job.yaml
  subpod play -d app.yaml && subpod play --down app.yaml`,
		Args: atLeast(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if o.down && (o.detach || o.replace || o.logs) {
				return usagef("--down cannot be combined with other flags")
			}
			manifest, err := readManifests(args)
			if err != nil {
				return err
			}
			set, err := kube.Parse(bytes.NewReader(manifest))
			if err != nil {
				return err
			}
			connect := a.connectOrStart
			if o.down {
				connect = a.connect
			}
			conn, err := connect()
			if err != nil {
				return err
			}
			defer conn.Close()
			return o.play(cmd.Context(), a, conn, set, manifest)
		},
	}
	f := cmd.Flags()
	addRefused(f, refusedPlay)
	f.BoolVar(&o.down, "down", false, "stop and remove the pods")
	f.BoolVar(&o.logs, "logs", false, "show the logs of the containers")
	f.BoolVar(&o.replace, "replace", false, "remove existing pods of the same names first")
	f.BoolVarP(&o.detach, "detach", "d", false, "continue in the background once all containers are up")
	f.BoolVarP(&o.quiet, "quiet", "q", false, "do not print status messages")
	f.IntVar(&o.upFD, "up-fd", -1, "descriptor to close once all containers are up")
	must(f.MarkHidden("up-fd"))
	return cmd
}

// readManifests concatenates the files into one stream of documents.
func readManifests(files []string) ([]byte, error) {
	var all bytes.Buffer
	for _, name := range files {
		var text []byte
		var err error
		if name == "-" {
			text, err = io.ReadAll(os.Stdin)
		} else {
			text, err = os.ReadFile(name)
		}
		if err != nil {
			return nil, fmt.Errorf("read the manifest: %w", err)
		}
		all.WriteString("---\n")
		all.Write(text)
		all.WriteString("\n")
	}
	return all.Bytes(), nil
}

func (o *playOptions) play(ctx context.Context, a *app, conn *connection, set *kube.Set, manifest []byte) error {
	ctx, stop := signal.NotifyContext(ctx, unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	defer stop()
	opts := o.options(conn)
	if o.down {
		// A command in the background exits when its pods are removed.
		return play.Down(ctx, set, opts)
	}
	if o.replace {
		if err := play.Down(ctx, set, opts); err != nil {
			return err
		}
	}
	if o.detach {
		return playInBackground(a, conn, manifest)
	}
	err := play.Play(ctx, set, opts)
	if ctx.Err() != nil && err == nil {
		return exitStatus(128 + int(unix.SIGINT))
	}
	return err
}

func (o *playOptions) options(conn *connection) play.Options {
	var mu sync.Mutex
	opts := play.Options{
		Client: conn.Client, DataDir: conn.config.Daemon.DataDir, RunDir: conn.config.Daemon.RunDir,
		Report: func(format string, args ...any) {
			if o.quiet {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			fmt.Fprintln(os.Stderr, plainLines(fmt.Sprintf(format, args...)))
		},
		Pull:   func(ctx context.Context, ref string) error { return pull(ctx, conn.Client, ref, o.quiet) },
		Remove: func(ctx context.Context, dir string) error { return removeTree(ctx, conn, dir) },
	}
	if o.logs {
		opts.Logs = os.Stdout
	}
	if o.upFD >= 0 {
		up := os.NewFile(uintptr(o.upFD), "up")
		opts.Up = func(err error) {
			text := isUp
			if err != nil {
				text = err.Error()
			}
			_, _ = up.WriteString(text)
			up.Close()
		}
	}
	return opts
}

// removeTree removes a directory that containers have written to, as root of the
// node if the user does not have the permission.
func removeTree(ctx context.Context, conn *connection, dir string) error {
	err := os.RemoveAll(dir)
	if !errors.Is(err, os.ErrPermission) {
		return err
	}
	code, err := rootless.Enter(ctx, conn.config.Daemon.RunDir, []string{"rm", "-rf", "--", dir},
		rootless.EnterOptions{HostNetwork: true, Stderr: os.Stderr})
	if err == nil && code != 0 {
		err = fmt.Errorf("remove %s: rm exited with code %d", dir, code)
	}
	return err
}

// isUp is what the command in the background writes once all pods are up; if some
// have failed it writes their errors instead, if all have failed nothing.
const isUp = "up\n"

// playInBackground starts this command again in a session of its own, and waits
// until its containers are up.
func playInBackground(a *app, conn *connection, manifest []byte) error {
	args, err := a.flags.Args()
	if err != nil {
		return err
	}
	exe, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this program: %w", err)
	}
	dir := filepath.Join(conn.config.Daemon.DataDir, "play")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	log, err := os.CreateTemp(dir, "play-*.log")
	if err != nil {
		return err
	}
	defer log.Close()
	up, theirs, err := os.Pipe()
	if err != nil {
		return err
	}
	defer up.Close()
	cmd := exec.Command(exe, append(args, "play", "--up-fd", "3", "-")...)
	cmd.Stdin = bytes.NewReader(manifest)
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	theirs.Close()
	if err != nil {
		return fmt.Errorf("start in the background: %w", err)
	}
	reported, err := io.ReadAll(up)
	text, readErr := os.ReadFile(log.Name())
	if err = errors.Join(err, readErr); err != nil {
		return err
	}
	fmt.Fprint(os.Stderr, plainLines(string(text)))
	if len(reported) == 0 { // it exits
		err := cmd.Wait()
		return errors.Join(exitStatus(max(exitOf(err), 1)), os.Remove(log.Name()))
	}
	// The command keeps writing to the unlinked file.
	err = errors.Join(cmd.Process.Release(), os.Remove(log.Name()))
	if err == nil && string(reported) != isUp {
		err = errors.New(string(reported)) // the other pods keep running
	}
	return err
}

func exitOf(err error) int {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode()
	}
	return 0
}
