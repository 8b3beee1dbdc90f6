package rootless

import (
	"bytes"
	"context"
	"errors"
	"maps"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/rootless-containers/rootlesskit/v3/pkg/parent"
	"golang.org/x/sys/unix"
)

// errStartFailed: the child has ended before rootlesskit was ready to notice. Its
// own error is on stderr.
var errStartFailed = errors.New("the node's first process has ended during the start (its own message is above)")

// errNotReaped: a PID namespace ends when all its processes have been waited for.
// One that entered it from outside, and whose parent was killed there, is for the
// machine's first process to wait for.
var errNotReaped = errors.New("the node has ended, but this machine's first process waits for no process left to it: run an init there (for a container: docker run --init, or catatonit)")

// How long a child that has ended may be a zombie before rootlesskit must be waiting for
// something else, and how long one may be that cannot end.
const (
	unreaped    = time.Second
	slowestStop = 8 * time.Second
)

// runRootlesskit is parent.Parent with an end in every case. While it sets up
// the node, rootlesskit reads a pipe of which it holds the other end itself, and
// opens a fifo that only the child opens: both last for ever when the child dies
// first. A child that has ended and that nobody waits for gives this away; so does
// one that cannot end (errNotReaped).
func runRootlesskit(opt parent.Opt) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	stuck := make(chan error, 1)
	go func() { stuck <- watchZombies(ctx) }()
	ended := make(chan error, 1)
	go func() {
		// The child's death signal is tied to the thread that starts it.
		runtime.LockOSThread()
		ended <- parent.Parent(opt)
	}()
	select {
	case err := <-ended:
		return err
	case err := <-stuck:
		return errors.Join(err, os.RemoveAll(opt.StateDir))
	}
}

// watchZombies returns when a child of this process has been a zombie for longer
// than any wait for it takes, with the reason.
func watchZombies(ctx context.Context) error {
	child, stop := make(chan os.Signal, 1), make(chan os.Signal, 1)
	signal.Notify(child, unix.SIGCHLD)
	signal.Notify(stop, unix.SIGTERM, unix.SIGINT)
	defer signal.Stop(child)
	defer signal.Stop(stop)
	stopping, since := false, map[zombie]time.Time{}
	var again <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-stop:
			stopping = true // a namespace's first process that cannot end sends no SIGCHLD
		case <-child:
		case <-again:
		}
		now := zombies()
		maps.DeleteFunc(since, func(z zombie, _ time.Time) bool { return !slices.Contains(now, z) })
		for _, z := range now {
			first, seen := since[z]
			switch age := time.Since(first); {
			case !seen:
				since[z] = time.Now()
			case z.ended && age >= unreaped:
				return errStartFailed
			case !z.ended && age >= slowestStop:
				return errNotReaped
			}
		}
		if again = nil; stopping || len(now) > 0 {
			again = time.After(unreaped / 2)
		}
	}
}

// zombie is a child of this process that nobody has waited for.
type zombie struct {
	pid int
	// ended says that it can be waited for. A namespace's first process cannot before all
	// others in it have ended.
	ended bool
}

// zombies returns the children of this process that are zombies.
func zombies() []zombie {
	var found []zombie
	files, _ := filepath.Glob("/proc/self/task/*/children")
	for _, f := range files {
		b, _ := os.ReadFile(f)
		for _, field := range strings.Fields(string(b)) {
			stat, _ := os.ReadFile("/proc/" + field + "/stat")
			// The state follows the command's name in brackets (proc(5)).
			i := bytes.LastIndexByte(stat, ')')
			if i < 0 || !bytes.HasPrefix(stat[i:], []byte(") Z")) {
				continue
			}
			pid, _ := strconv.Atoi(field)
			var info unix.Siginfo
			err := unix.Waitid(unix.P_PID, pid, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil)
			found = append(found, zombie{pid, err == nil && info.Signo != 0})
		}
	}
	return found
}
