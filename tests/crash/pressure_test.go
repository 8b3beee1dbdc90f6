package crash

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/subpod/subpod/tests/leak"
	"github.com/subpod/subpod/tests/node"
)

// small makes a node whose data directory is a tmpfs of a few MiB, mounted inside
// the node, and which also has the pods' logs.
func small(t *testing.T, options string) *rig {
	t.Helper()
	r := newRig(t, node.Options{})
	logs := filepath.Join(r.Dir, "logs")
	r.must("logs", os.MkdirAll(filepath.Join(r.DataDir, "podlogs"), 0o700))
	r.must("logs", os.MkdirAll(logs, 0o700))
	r.Enter("sh", "-c", fmt.Sprintf("mount -t tmpfs -o %s tmpfs %s && mkdir %[2]s/podlogs && mount --bind %[2]s/podlogs %s", options, r.DataDir, logs))
	r.must("reload", func() error { _, err := r.Subpod("reload"); return err }())
	eventually(t, "the server uses the small disk", converge, func() error {
		_, err := r.TryEnter("test", "-e", filepath.Join(r.DataDir, "state.db"))
		return err
	})
	return r
}

// full takes what is left of the small disk.
func (r *rig) full(leave string) {
	r.t.Helper()
	// Twice: dd stops short of the last pages.
	_, _ = r.TryEnter("sh", "-c", fmt.Sprintf("dd if=/dev/zero of=%s/ballast bs=64k 2>/dev/null; dd if=/dev/zero of=%[1]s/ballast2 bs=1k 2>/dev/null; %s", r.DataDir, leave))
}

func (r *rig) free() {
	r.t.Helper()
	r.Enter("sh", "-c", fmt.Sprintf("rm -rf %s/ballast*", r.DataDir))
}

// logsInNode makes the pod's log directory where the node sees it.
func (p *pod) logsInNode() *pod {
	p.r.t.Helper()
	p.r.Enter("mkdir", "-p", p.sandbox.LogDirectory)
	return p
}

// unharmed fails unless the pod's container runs as before and does its work.
func (r *rig) unharmed(p *pod) {
	r.t.Helper()
	r.must("a running container", p.isState(r.t.Context(), running))
	r.AwaitChild("sh")
}

// refused fails unless the request was refused with an error that names the cause.
func refused(t *testing.T, what string, err error, code codes.Code, words ...string) {
	t.Helper()
	if err == nil {
		t.Errorf("%s succeeded", what)
		return
	}
	t.Logf("%s: %v", what, err)
	for _, w := range words {
		if strings.Contains(err.Error(), w) {
			words = nil
		}
	}
	if code != codes.OK && status.Code(err) != code || words != nil {
		t.Errorf("%s: %v: the error is not %v with one of %q", what, err, code, words)
	}
}

func TestDiskFull(t *testing.T) {
	r := small(t, "size=24m")
	ctx := t.Context()
	r.must("pull", r.pull(ctx, busybox))
	p := r.newPod([]string{"sh", "-c", "while [ ! -e /dev/shm/end ]; do echo a line of the log; usleep 20000; done; exit 5"}).logsInNode()
	r.must("up", p.up(ctx))
	before := r.picture()

	r.full("truncate -s -4M " + r.DataDir + "/ballast")
	refused(t, "pull of an image that is too large", r.pull(ctx, nginx), codes.ResourceExhausted, "no space left")
	has, err := r.hasImage(ctx, nginx)
	if err != nil || has {
		t.Errorf("half an image: %v, %v", has, err)
	}
	r.full("true")
	r.unharmed(p)
	q := r.newPod(sleeper)
	err = q.run(ctx)
	var lucky []*pod // the last page of the records' file may have room for some
	for range 8 {
		if err != nil {
			break
		}
		lucky = append(lucky, q)
		q = r.newPod(sleeper)
		err = q.run(ctx)
	}
	refused(t, "RunPodSandbox without room for its record", err, codes.ResourceExhausted, "no space left")
	r.must("the refused pod", q.gone(ctx))
	// Lists and a new server need no room.
	r.KillServer()
	took, err := again(func(ctx context.Context) error { return p.isState(ctx, running) })
	r.must("the server is back on a full disk", err)
	t.Logf("a new server on a full disk after %v", took)
	r.unharmed(p)

	r.free()
	eventually(t, "there is room again", converge, func() error { return r.pull(ctx, busybox) })
	for _, p := range lucky {
		r.must("remove", p.removePod(ctx))
	}
	r.must("the refused pod", q.logsInNode().up(ctx))
	_, err = q.exec(ctx, "true")
	r.must("exec", err)
	r.must("remove", q.removePod(ctx))
	// The container has outlived it with its exit code, and logs again.
	_, err = p.exec(ctx, "touch", "/dev/shm/end")
	r.must("exec", err)
	eventually(t, "it ends", converge, func() error { return p.isState(ctx, exited) })
	if s, err := p.status(ctx); err != nil || s.ExitCode != 5 {
		t.Errorf("what ran while the disk was full: %v, %v", s, err)
	}
	r.must("remove", p.removePod(ctx))
	r.must("all is gone", r.settled(before))
}

func TestInodesExhausted(t *testing.T) {
	r := small(t, "size=64m,nr_inodes=600")
	ctx := t.Context()
	r.must("pull", r.pull(ctx, busybox))
	p := r.newPod(sleeper).logsInNode()
	r.must("up", p.up(ctx))
	before := r.picture()
	r.Enter("sh", "-c", fmt.Sprintf("mkdir %s/ballast; i=0; while touch %[1]s/ballast/$i 2>/dev/null; do i=$((i+1)); done", r.DataDir))
	refused(t, "pull", r.pull(ctx, nginx), codes.ResourceExhausted, "no space left")
	q := r.newPod(sleeper)
	err := q.run(ctx)
	if err == nil { // a record needs no inode
		err = q.create(ctx)
	}
	refused(t, "a container without inodes", err, codes.ResourceExhausted, "no space left")
	r.unharmed(p)
	r.free()
	if q.podID != "" {
		r.must("remove", q.removePod(ctx))
	}
	q = r.newPod(sleeper).logsInNode()
	r.must("up", q.up(ctx))
	r.must("remove", q.removePod(ctx))
	r.must("remove", p.removePod(ctx))
	r.must("all is gone", r.settled(before))
}

// limit sets a soft limit of processes and returns what lifts it, also from those
// that have come in their place.
func limit(t *testing.T, pids func() []int, resource int, soft uint64) (lift func()) {
	t.Helper()
	var old unix.Rlimit
	for _, pid := range pids() {
		if err := unix.Prlimit(pid, resource, nil, &old); err != nil {
			t.Fatal(err)
		}
		if err := unix.Prlimit(pid, resource, &unix.Rlimit{Cur: soft, Max: old.Max}, nil); err != nil {
			t.Fatal(err)
		}
	}
	return func() {
		for _, pid := range pids() {
			_ = unix.Prlimit(pid, resource, &old, nil) // it may end meanwhile
		}
	}
}

// squeeze asks for pods while something is short. Requests may fail; the server
// may even die and come back. Nothing that runs is harmed, nothing is left, and
// when the pressure goes all is as before.
func squeeze(t *testing.T, r *rig, press func() (lift func())) {
	t.Helper()
	ctx := t.Context()
	before := r.warm()
	p := r.newPod(sleeper)
	r.must("up", p.up(ctx))
	lift := press()
	failed := map[codes.Code]int{}
	var tried []*pod
	for range 10 {
		q := r.newPod(sleeper)
		tried = append(tried, q)
		// There may be no server to answer.
		ctx, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
		if err := q.up(ctx); err != nil {
			code := status.Code(err)
			if failed[code]++; failed[code] == 1 {
				t.Logf("under pressure: %v", err)
			}
			switch {
			case code == codes.ResourceExhausted, code == codes.Unavailable, code == codes.DeadlineExceeded:
			case strings.Contains(err.Error(), "fork/exec") && strings.Contains(err.Error(), unix.EBADF.Error()):
				// What dup3(2) says of a number above the limit, in Go's fork.
			default:
				t.Errorf("under pressure: %v: the code is %v", err, code)
			}
		}
		_, _ = q.exec(ctx, "true")
		cancel()
	}
	r.AwaitChild("sh")
	lift()
	t.Logf("10 pods under pressure, failed: %v", failed)
	if len(failed) == 0 {
		t.Error("there was no pressure: every pod came up")
	}
	for _, q := range tried {
		// A server that has ended may have made the pod and not told its ID.
		_, err := again(q.run)
		r.must("ask again for a pod", err)
		if _, err := again(q.removePod); err != nil {
			t.Errorf("remove what was made under pressure: %v", err)
		}
	}
	// A server that the pressure has broken may end only now.
	q := r.newPod(sleeper)
	for _, step := range []struct {
		what string
		do   func(context.Context) error
	}{
		{"a pod", q.up},
		{"exec in the bystander", func(ctx context.Context) error { _, err := p.exec(ctx, "true"); return err }},
		{"remove", q.removePod},
		{"remove the bystander", p.removePod},
	} {
		took, err := again(step.do)
		r.must(fmt.Sprintf("%s after the pressure, after %v", step.what, took), err)
	}
	r.must("all is gone", r.settled(before))
}

func TestOutOfDescriptors(t *testing.T) {
	for _, spare := range []uint64{0, 3, 8, 16} {
		t.Run(fmt.Sprintf("%d spare", spare), func(t *testing.T) {
			r := newRig(t, node.Options{})
			squeeze(t, r, func() func() {
				open, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", r.Server()))
				r.must("count", err)
				return limit(t, func() []int { return []int{r.Server()} }, unix.RLIMIT_NOFILE, uint64(len(open))+spare)
			})
		})
	}
}

func TestOutOfProcesses(t *testing.T) {
	r := newRig(t, node.Options{})
	// All that is not a container's, from the daemon down to the server.
	ours := func() []int {
		pids := []int{r.PID()}
		for _, p := range leak.Descendants(r.PID()) {
			exe, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", p.PID))
			if strings.HasPrefix(filepath.Base(exe), "subpod-") {
				pids = append(pids, p.PID)
			}
		}
		if len(pids) < 3 {
			t.Fatalf("only %d processes are the daemon's", len(pids))
		}
		return pids
	}
	squeeze(t, r, func() func() { return limit(t, ours, unix.RLIMIT_NPROC, 1) })
}

// TestInotifyExhausted: another program of the user has all inotify instances.
func TestInotifyExhausted(t *testing.T) {
	r := newRig(t, node.Options{})
	ctx := t.Context()
	before := r.warm()
	var taken []int
	defer func() {
		for _, fd := range taken {
			unix.Close(fd)
		}
	}()
	for {
		fd, err := unix.InotifyInit1(unix.IN_CLOEXEC)
		if err != nil {
			t.Logf("%d inotify instances taken, then %v", len(taken), err)
			break
		}
		taken = append(taken, fd)
	}
	p := r.newPod(sleeper)
	r.must("a pod needs no inotify", p.up(ctx))
	_, err := p.exec(ctx, "true")
	r.must("exec", err)
	r.KillServer()
	_, err = again(func(ctx context.Context) error { return p.isState(ctx, running) })
	r.must("nor does a server", err)
	r.must("stop", p.stop(ctx))
	if s, err := p.status(ctx); err != nil || s.ExitCode != 0 {
		t.Errorf("the exit code: %v, %v", s, err)
	}
	r.must("remove", p.removePod(ctx))
	r.must("all is gone", r.settled(before))
}
