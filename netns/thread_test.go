package netns

import (
	"context"
	"errors"
	"io"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

func pinNet(t testing.TB) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "pins")
	pins, err := Pin(context.Background(), PinSpec{Dir: dir, Net: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { mustUnpin(t, dir) })
	return pins.Net
}

func TestNodeThread(t *testing.T) {
	path := pinNet(t)
	own := inode(t, "/proc/self/ns/net")
	n, err := OpenThread(path)
	if err != nil {
		t.Fatal(err)
	}
	want := inode(t, path)
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			err := n.Do(func() error {
				if inode(t, "/proc/thread-self/ns/net") != want {
					t.Error("Do ran outside the node network namespace")
				}
				return nil
			})
			if err != nil {
				t.Error(err)
			}
			// Every other thread stays where it was.
			if inode(t, "/proc/thread-self/ns/net") != own {
				t.Error("another goroutine runs in the node network namespace")
			}
		})
	}
	wg.Wait()
	if inode(t, "/proc/self/ns/net") != own {
		t.Error("the main thread was moved")
	}
	want2 := errors.New("mine")
	if err := n.Do(func() error { return want2 }); !errors.Is(err, want2) {
		t.Errorf("Do returned %v", err)
	}
	for range 2 {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	}
	if err := n.Do(func() error { return nil }); !errors.Is(err, ErrClosed) {
		t.Errorf("Do after Close: %v, want ErrClosed", err)
	}
	if _, err := OpenThread(filepath.Join(t.TempDir(), "missing")); err == nil {
		t.Error("a missing namespace was opened")
	}
	// Waiting on one locked goroutine must not stop the others from starting.
	if n, err = OpenThread(""); err != nil {
		t.Fatal(err)
	}
	n.Close()
}

func TestListenAndDialIn(t *testing.T) {
	path := pinNet(t)
	n, err := OpenThread(path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for _, addr := range []string{"127.0.0.1:0", "[::1]:0"} {
		l, err := n.Listen("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				_, _ = io.WriteString(c, addr)
				c.Close()
			}
		}()
		_, port, _ := net.SplitHostPort(l.Addr().String())
		// "localhost" finds the one that listens, whatever the family.
		c, err := DialIn(ctx, path, "tcp", "localhost:"+port)
		if err != nil {
			t.Fatal(err)
		}
		if got, _ := io.ReadAll(c); string(got) != addr {
			t.Errorf("got %q from %s", got, addr)
		}
		c.Close()
		if _, err := net.Dial("tcp", l.Addr().String()); err == nil {
			t.Errorf("%s answers outside its namespace", l.Addr())
		}
		// The listener outlives the thread that made it.
		n.Close()
		if c, err = DialIn(ctx, path, "tcp", l.Addr().String()); err != nil {
			t.Error(err)
		} else {
			c.Close()
		}
		if n, err = OpenThread(path); err != nil {
			t.Fatal(err)
		}
	}
	defer n.Close()
	if _, err := n.Listen("tcp", "localhost:0"); err == nil {
		t.Error("a name was accepted as listen address")
	}
	if _, err := DialIn(ctx, path, "tcp", "example.com:80"); err == nil {
		t.Error("a name was accepted as dial address")
	}
	if _, err := DialIn(ctx, path, "tcp", "127.0.0.1:1"); err == nil {
		t.Error("dialling a closed port succeeded")
	}
}

// TestLoopbackUp: lo is up in a new namespace, and to bring it up again is no error.
func TestLoopbackUp(t *testing.T) {
	path := pinNet(t)
	for range 2 {
		if err := In(path, loopbackUp); err != nil {
			t.Error(err)
		}
	}
}
