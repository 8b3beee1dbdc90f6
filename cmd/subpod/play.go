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
		Long: `Runs what the manifests hold ("-" is standard input): Pods, Deployments (a pod for
each replica), with ConfigMaps, Secrets and PersistentVolumeClaims, which are
named volumes that stay. Init containers, sidecars, probes, hooks and the restart
policy work as in a cluster, as long as this command runs.

It ends when all pods have: with 0 if they succeeded. When it is interrupted it
stops and removes them. With -d it goes on in the background until the pods end or
--down.

Other kinds, and fields that mean nothing here, are refused.`,
		Example: `  subpod play pod.yaml
  subpod play --logs job.yaml
  subpod play -d app.yaml && subpod play --down app.yaml`,
		Args: atLeast(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if o.down && (o.detach || o.replace || o.logs) {
				return usagef("--down goes alone")
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
	f.BoolVar(&o.down, "down", false, "stop and remove the pods")
	f.BoolVar(&o.logs, "logs", false, "show what the containers write")
	f.BoolVar(&o.replace, "replace", false, "remove pods of these names first")
	f.BoolVarP(&o.detach, "detach", "d", false, "go on in the background once all containers are up")
	f.BoolVarP(&o.quiet, "quiet", "q", false, "do not tell what happens")
	f.IntVar(&o.upFD, "up-fd", -1, "descriptor to close once all containers are up")
	must(f.MarkHidden("up-fd"))
	return cmd
}

// readManifests joins the files to one stream of documents.
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
		// The command in the background sees its pods go, and ends.
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
		Say: func(format string, args ...any) {
			if o.quiet {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			fmt.Fprintf(os.Stderr, format+"\n", args...)
		},
		Pull:   func(ctx context.Context, ref string) error { return pull(ctx, conn.Client, ref, o.quiet) },
		Remove: func(ctx context.Context, dir string) error { return removeTree(ctx, conn, dir) },
	}
	if o.logs {
		opts.Logs = os.Stdout
	}
	if o.upFD >= 0 {
		up := os.NewFile(uintptr(o.upFD), "up")
		opts.Up = func() {
			_, _ = up.WriteString("up\n")
			up.Close()
		}
	}
	return opts
}

// removeTree removes a directory in which containers have written, as the node's
// root where the user alone may not.
func removeTree(ctx context.Context, conn *connection, dir string) error {
	err := os.RemoveAll(dir)
	if !errors.Is(err, os.ErrPermission) {
		return err
	}
	code, err := rootless.Enter(ctx, conn.config.Daemon.RunDir, []string{"rm", "-rf", "--", dir},
		rootless.EnterOptions{HostNetwork: true, Stderr: os.Stderr})
	if err == nil && code != 0 {
		err = fmt.Errorf("remove %s: rm ended with exit code %d", dir, code)
	}
	return err
}

// playInBackground starts this command again, in a session of its own, and
// waits until its containers are up.
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
		return fmt.Errorf("go on in the background: %w", err)
	}
	said, err := io.ReadAll(up)
	text, readErr := os.ReadFile(log.Name())
	if err = errors.Join(err, readErr); err != nil {
		return err
	}
	fmt.Fprint(os.Stderr, string(text))
	if string(said) != "up\n" {
		err := cmd.Wait()
		return errors.Join(exitStatus(max(exitOf(err), 1)), os.Remove(log.Name()))
	}
	// The file has its last name gone; the command goes on writing to it.
	return errors.Join(cmd.Process.Release(), os.Remove(log.Name()))
}

func exitOf(err error) int {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode()
	}
	return 0
}
