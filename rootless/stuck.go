package rootless

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/rootless-containers/rootlesskit/v3/pkg/parent"
	"golang.org/x/sys/unix"
)

// errStartFailed: the child has ended before rootlesskit was ready to notice. It
// has said why on stderr.
var errStartFailed = errors.New("the node's first process has ended during the start (its own message is above)")

// unreaped is how long a child may be a zombie before rootlesskit must be
// waiting for something else.
const unreaped = time.Second

// runRootlesskit is parent.Parent with an end in every case. While it sets up
// the node, rootlesskit reads a pipe of which it holds the other end itself, and
// opens a fifo that only the child opens: both last for ever when the child dies
// first. A child that has ended and that nobody waits for gives this away.
func runRootlesskit(opt parent.Opt) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	stuck := watchZombies(ctx)
	ended := make(chan error, 1)
	go func() {
		// The child's death signal is tied to the thread that starts it.
		runtime.LockOSThread()
		ended <- parent.Parent(opt)
	}()
	select {
	case err := <-ended:
		return err
	case <-stuck:
		return errors.Join(errStartFailed, os.RemoveAll(opt.StateDir))
	}
}

// watchZombies closes the channel when a child of this process has been a
// zombie for longer than any wait for it takes.
func watchZombies(ctx context.Context) <-chan struct{} {
	stuck := make(chan struct{})
	chld := make(chan os.Signal, 1)
	signal.Notify(chld, unix.SIGCHLD)
	go func() {
		defer signal.Stop(chld)
		for {
			select {
			case <-ctx.Done():
				return
			case <-chld:
			}
			before := zombies()
			if len(before) == 0 {
				continue
			}
			select {
			case <-ctx.Done():
				return
			case <-time.After(unreaped):
			}
			for pid := range zombies() {
				if before[pid] {
					close(stuck)
					return
				}
			}
		}
	}()
	return stuck
}

// zombies returns the children of this process that have ended and that nobody
// has waited for.
func zombies() map[string]bool {
	found := map[string]bool{}
	files, _ := filepath.Glob("/proc/self/task/*/children")
	for _, f := range files {
		b, _ := os.ReadFile(f)
		for _, pid := range strings.Fields(string(b)) {
			stat, _ := os.ReadFile("/proc/" + pid + "/stat")
			// The state follows the command's name in brackets (proc(5)).
			if i := bytes.LastIndexByte(stat, ')'); i >= 0 && bytes.HasPrefix(stat[i:], []byte(") Z")) {
				found[pid] = true
			}
		}
	}
	return found
}
