package state

import (
	"bufio"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// child prepares another process of this test binary that runs one test as the
// child of this one, with a file to work on.
func child(t *testing.T, test, file string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", "-test.run=^"+test+"$", "-test.count=1")
	cmd.Env = append(os.Environ(), "STATE_TEST_CHILD="+file)
	return cmd
}

// TestAKilledProcess kills a process that writes, at random, and opens what it has
// left: the last version of each record that it has reported is there, or the next.
func TestAKilledProcess(t *testing.T) {
	if file := os.Getenv("STATE_TEST_CHILD"); file != "" {
		writeUntilKilled(file)
	}
	file := filepath.Join(t.TempDir(), "state.db")
	acked := map[string]int{}
	for range 15 {
		cmd := child(t, t.Name(), file)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := 0
		limit := 50 + rand.IntN(400)
		for scan := bufio.NewScanner(out); scan.Scan(); lines++ {
			var id string
			var n int
			if _, err := fmt.Sscan(scan.Text(), &id, &n); err != nil {
				t.Fatalf("the child says %q", scan.Text())
			}
			acked[id] = n
			if lines == limit {
				_ = cmd.Process.Kill()
			}
		}
		_ = cmd.Wait()
		if lines < limit {
			t.Fatalf("the child ended after %d lines", lines)
		}
		s := openWith(t, file, byHand())
		for id, n := range acked {
			p, err := s.Pod(id)
			got := 0
			if err == nil {
				_, _ = fmt.Sscan(p.Handler, &got)
			}
			// A multiple of 5 is a deletion.
			if want := n; got != want && got != want+1 && !(want%5 == 0 && got == 0) && !((want+1)%5 == 0 && got == 0) {
				t.Errorf("record %s is version %d, %d was acknowledged", id, got, want)
			}
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// writeUntilKilled counts records up, reports each acknowledged version, and never
// returns. It goes on where an earlier process was killed.
func writeUntilKilled(file string) {
	opts := defaults
	opts.commitDelay, opts.journalLimit = time.Millisecond, 20000
	s, err := open(file, discard, opts)
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	var out sync.Mutex
	for g := range 4 {
		go func() {
			id := fmt.Sprint("p", g)
			n := 0
			if p, err := s.Pod(id); err == nil {
				_, _ = fmt.Sscan(p.Handler, &n)
			} else if c, err := s.Container(id); err == nil { // its last version
				n = int(c.Status.ExitCode)
			}
			for {
				n++
				var err error
				if n%5 == 0 {
					err = errors.Join(s.PutContainer(Container{ID: id, Status: ContainerStatus{ExitCode: int32(n)}}), s.DeletePod(id))
				} else {
					err = s.PutPod(Pod{ID: id, Handler: fmt.Sprint(n), Status: PodStatus{Reason: strings.Repeat("x", 500)}})
				}
				if err != nil {
					fmt.Println(err)
					os.Exit(1)
				}
				out.Lock()
				fmt.Println(id, n)
				out.Unlock()
			}
		}()
	}
	select {}
}

// onTmpfs runs a part of a test on a small tmpfs, in a user and mount namespace of its own.
func onTmpfs(t *testing.T, size string, do func(t *testing.T, dir string)) {
	if dir := os.Getenv("STATE_TEST_CHILD"); dir != "" {
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size="+size); err != nil {
			t.Fatal(err)
		}
		do(t, dir)
		return
	}
	cmd := child(t, t.Name(), t.TempDir())
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	}
	out, err := cmd.CombinedOutput()
	if errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.ENOSPC) {
		t.Skipf("user namespaces cannot be made here: %v", err)
	}
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestAFullFileSystem: nothing is lost that a store has acknowledged on a full disk.
func TestAFullFileSystem(t *testing.T) { onTmpfs(t, "512k", onFullFileSystem) }

// TestReserve: what is stored can be changed and deleted on a full file system, nothing is
// added to it, and the next server can do so as well. The reserve is there again when there
// is space.
func TestReserve(t *testing.T) { onTmpfs(t, "4m", withReserve) }

// TestReserveIsKept: the reserve lasts for many changes, each of which the database takes
// over, also where somebody takes all space that becomes free, and in the next server.
func TestReserveIsKept(t *testing.T) { onTmpfs(t, "4m", withGreed) }

func withGreed(t *testing.T, dir string) {
	file, filler := filepath.Join(dir, "state.db"), filepath.Join(dir, "filler")
	opts := defaults
	opts.commitDelay, opts.retryDelay = time.Hour, time.Hour // rounds are asked for
	var greed atomic.Bool
	opts.hook = func(step string, do func() error) error {
		err := do()
		if greed.Load() {
			topUp(filler)
		}
		return err
	}
	l := newLedger()
	s := openWith(t, file, opts)
	write := func(id string) {
		t.Helper()
		if err := l.write(s, id, false); err != nil {
			t.Fatal(err)
		}
		awaitRound(s)
	}
	for i := range 40 { // the database gets pages that it can use again
		write(fmt.Sprint("p", i%10))
	}
	fill(t, filler)
	greed.Store(true)
	for range 3 {
		for i := range 30 {
			write(fmt.Sprint("p", i%10))
		}
		if err := l.write(s, "new", false); !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("a new row on a full file system: %v", err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		s = openWith(t, file, opts)
		if err := l.check(s, false); err != nil {
			t.Error("opened again:", err)
		}
	}
	if c := s.Counts(); c.Failures > 0 {
		t.Errorf("the database was not written: %+v", c)
	}
	greed.Store(false)
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	write("new")
	awaitRound(s) // the other was perhaps that of the start
	if c := s.Counts(); c.JournalBytes > 0 {
		t.Errorf("the journal is not cut when there is space: %+v", c)
	}
	if _, err := os.Stat(file + ".journal.reserve"); err != nil {
		t.Error(err)
	}
}

// awaitRound asks for a round of the committer and waits for the end of one.
func awaitRound(s *Store) {
	s.disk.mu.Lock()
	end := s.disk.rounds
	s.disk.mu.Unlock()
	notify(s.disk.urgent)
	<-end
}

// topUp takes what space there is.
func topUp(path string) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return
	}
	defer f.Close()
	for err == nil {
		_, err = f.Write(make([]byte, 4096))
	}
}

func withReserve(t *testing.T, dir string) {
	file, filler := filepath.Join(dir, "state.db"), filepath.Join(dir, "filler")
	opts := defaults
	opts.commitDelay, opts.retryDelay = time.Hour, time.Hour // the journal is never cut
	l := newLedger()
	for cycle := range 3 {
		s := openWith(t, file, opts)
		for i := range 20 {
			if err := l.write(s, fmt.Sprint("p", i), false); err != nil {
				t.Fatal(err)
			}
		}
		fill(t, filler)
		for i := 0; ; i++ { // the rest of the last page of the journal
			if err := l.write(s, fmt.Sprint("new", cycle, "-", i), false); err != nil {
				if !errors.Is(err, syscall.ENOSPC) {
					t.Fatal(err)
				}
				break
			}
			if i == 5000 {
				t.Fatal("a full file system takes new rows")
			}
		}
		for i := range 400 { // a greedy writer takes what is given up
			if err := l.write(s, fmt.Sprint("p", i%20), i%40 >= 20 && i > 380); err != nil {
				t.Fatalf("cycle %d, change %d on a full file system: %v", cycle, i, err)
			}
			if f, err := os.OpenFile(filler, os.O_WRONLY|os.O_APPEND, 0); err == nil {
				_, _ = f.Write(make([]byte, 1<<20))
				f.Close()
			}
		}
		if err := l.check(s, false); err != nil {
			t.Errorf("cycle %d: %v", cycle, err)
		}
		if err := os.Remove(filler); err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		s = openWith(t, file, byHand())
		if err := l.check(s, false); err != nil {
			t.Errorf("cycle %d, opened again: %v", cycle, err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}

func onFullFileSystem(t *testing.T, dir string) {
	file := filepath.Join(dir, "state.db")
	filler := filepath.Join(dir, "filler")
	opts := defaults
	opts.commitDelay, opts.retryDelay = time.Millisecond, time.Millisecond
	l := newLedger()
	s := openWith(t, file, opts)
	for i := range 20 {
		if err := l.write(s, fmt.Sprint("p", i), false); err != nil {
			t.Fatal(err)
		}
	}
	for cycle := range 5 {
		fill(t, filler)
		refused := 0
		for i := 0; refused < 3; i++ {
			if i == 5000 {
				t.Fatal("a full file system refuses nothing")
			}
			if err := l.write(s, fmt.Sprint("p", i%60), i%7 == 6); err != nil {
				if !errors.Is(err, syscall.ENOSPC) {
					t.Fatal(err)
				}
				refused++
			}
		}
		if err := l.check(s, false); err != nil {
			t.Errorf("cycle %d, in memory: %v", cycle, err)
		}
		_ = s.Close()               // may fail: then the journal has it
		s = openWith(t, file, opts) // a server starts on a full disk
		if err := l.check(s, false); err != nil {
			t.Errorf("cycle %d, opened on a full disk: %v", cycle, err)
		}
		if err := os.Remove(filler); err != nil {
			t.Fatal(err)
		}
		if err := l.write(s, "space", false); err != nil {
			t.Errorf("cycle %d, with space again: %v", cycle, err)
		}
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if err := l.check(openWith(t, file, byHand()), false); err != nil {
		t.Error("at the end:", err)
	}
}

// fill writes a file until there is no space.
func fill(t *testing.T, path string) {
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, size := range []int{4096, 1} {
		for err = nil; err == nil; {
			_, err = f.Write(make([]byte, size))
		}
		if !errors.Is(err, syscall.ENOSPC) {
			t.Fatal(err)
		}
	}
}
