package storage

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.podman.io/storage/pkg/lockfile"
	"golang.org/x/sys/unix"
)

// childOrder tells a re-executed test binary what to do with a store. It stands
// for a server that will be killed.
type childOrder struct {
	Options Options
	Rootfs  RootfsSpec
	Pull    string
	Load    string
	// LockLayers takes the layer lock of the store at Options.Root, no more.
	LockLayers bool
	// Binds are mounted first, source by target: the child has then a user and
	// mount namespace of its own, in which our uid 0 is nobody.
	Binds map[string]string
}

// hostFirst is what uid 0 of a child with Binds is here.
const hostFirst = 1

// runChild does what the order in the environment says and then waits to be
// killed.
func runChild(order string) int {
	var o childOrder
	if err := json.Unmarshal([]byte(order), &o); err != nil {
		fmt.Println("error", err)
		return 1
	}
	if o.LockLayers {
		lock, err := lockfile.GetLockFile(filepath.Join(o.Options.Root, "overlay-layers", "layers.lock"))
		if err != nil {
			fmt.Println("error", err)
			return 1
		}
		lock.Lock()
		fmt.Println("ready")
		time.Sleep(time.Hour)
	}
	for target, source := range o.Binds {
		if err := unix.Mount(source, target, "", unix.MS_BIND, ""); err != nil {
			fmt.Println("error bind", source, target, err)
			return 1
		}
	}
	o.Options.Log = slog.New(slog.DiscardHandler)
	s, err := Open(context.Background(), o.Options)
	if err != nil {
		fmt.Println("error", err)
		return 1
	}
	if o.Binds != nil {
		return runOnce(s, o)
	}
	if o.Load != "" {
		_, err = s.Images.Load(context.Background(), o.Load)
		s.Close()
		fmt.Println("ready")
	} else if o.Pull != "" {
		fmt.Println("ready")
		_, err = s.Images.Pull(context.Background(), PullRequest{Ref: o.Pull})
	} else {
		var r Mounted
		r, err = s.Rootfs.Create(context.Background(), o.Rootfs)
		fmt.Println("ready", r.Path)
	}
	if err != nil {
		fmt.Println("error", err)
		return 1
	}
	time.Sleep(time.Hour)
	return 0
}

// runOnce pulls, if ordered to, and ends.
func runOnce(s *Store, o childOrder) int {
	defer s.Close()
	if o.Pull != "" {
		if _, err := s.Images.Pull(context.Background(), PullRequest{Ref: o.Pull}); err != nil {
			fmt.Println("error", err)
			return 1
		}
	}
	fmt.Println("ready")
	return 0
}

// startChild starts a process that carries out order, and returns what it says
// once it is ready and the function that kills it with SIGKILL.
func startChild(t *testing.T, order childOrder) (said string, kill func()) {
	t.Helper()
	order.Options.Log = nil
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), childMode+"="+string(mustJSON(t, order)))
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	kill = func() {
		cmd.Process.Kill()
		cmd.Wait()
	}
	t.Cleanup(kill)
	timer := time.AfterFunc(patience, kill)
	line, err := bufio.NewReader(out).ReadString('\n')
	timer.Stop()
	word, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
	if err != nil || word != "ready" {
		t.Fatalf("child said %q, %v", line, err)
	}
	return rest, kill
}
