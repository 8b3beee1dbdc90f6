package play

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/cmd/internal/kube"
	"github.com/subpod/subpod/pkg/client"
)

// The files of a pod are made before the pod is: a command that is killed in between leaves
// them. So whoever makes them has the pod's directory locked until the pod is there, which
// the kernel ends with the command; the next command of play removes the directories that
// nobody has locked and that are no pod's.

// sweepAge is how old a directory must be. The server may still be making the pod of a
// command that was killed a moment ago, and shows it only then.
const sweepAge = 10 * time.Minute

// claimPlace makes the directory of a pod and locks it until release is called.
func claimPlace(at kube.Place) (release func(), err error) {
	for {
		if err := os.MkdirAll(at.Disk, 0o711); err != nil {
			return nil, err
		}
		f, err := lockDir(at.Disk)
		switch {
		case err == nil:
			return func() { f.Close() }, nil
		case !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.EWOULDBLOCK):
			return nil, err
		}
		// It was swept just now: sweepAge makes that as good as impossible.
	}
}

// lockDir opens and locks a directory that is at its place. unix.EWOULDBLOCK,
// os.ErrNotExist.
func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(dir, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	here, err := f.Stat()
	if err == nil {
		var there os.FileInfo
		if there, err = os.Lstat(dir); err == nil && !os.SameFile(here, there) {
			err = os.ErrNotExist
		}
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// sweep removes the files of pods that a killed command has not handed over, or that were
// removed by other means. What cannot be removed is reported.
func (o Options) sweep(ctx context.Context) {
	dir := filepath.Join(o.DataDir, "play")
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) == 0 {
		return // nothing was ever played, or the next step says what is wrong
	}
	pods, err := played(ctx, o.Client)
	if err != nil {
		return // as above
	}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil || !e.IsDir() || time.Since(info.ModTime()) < sweepAge || isOfAny(e.Name(), pods) {
			continue
		}
		if err := o.sweepPlace(ctx, e.Name()); err != nil && ctx.Err() == nil {
			o.Report("%s: the files of a pod that is gone could not be removed: %v", filepath.Join(dir, e.Name()), err)
		}
	}
}

// sweepPlace removes the files of a pod by the name of its directory, unless the pod is
// there, or made by another command just now.
func (o Options) sweepPlace(ctx context.Context, own string) error {
	f, err := lockDir(filepath.Join(o.DataDir, "play", own))
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.EWOULDBLOCK) {
		return nil
	} else if err != nil {
		return err
	}
	defer f.Close()
	pods, err := played(ctx, o.Client) // after the lock: its holder had handed it over
	if err != nil {
		return err
	}
	if isOfAny(own, pods) {
		return nil
	}
	return o.removeFiles(ctx, kube.Place{Logs: filepath.Join(o.DataDir, "logs", own), Disk: filepath.Join(o.DataDir, "play", own)})
}

// isOfAny reports whether a directory with that name is one of the pods'.
func isOfAny(own string, pods []*runtimeapi.PodSandbox) bool {
	return slices.ContainsFunc(pods, func(p *runtimeapi.PodSandbox) bool { return strings.HasSuffix(own, "-"+client.RunID(p)) })
}
