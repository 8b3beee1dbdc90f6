package named

import (
	"os"
	"os/exec"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"

	"github.com/subpod/subpod/tests/nettest"
)

// lateHolder is a Holder as the supervisor is one: what it is told, it does in its own
// time, and in order.
type lateHolder struct {
	mu      sync.Mutex
	files   map[string]*os.File
	changes chan func()
}

func newLateHolder(t *testing.T, delay time.Duration) *lateHolder {
	h := &lateHolder{files: map[string]*os.File{}, changes: make(chan func(), 64)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for change := range h.changes {
			time.Sleep(delay)
			change()
		}
	}()
	t.Cleanup(func() {
		close(h.changes)
		<-done
		for name := range h.files {
			h.put(name, nil)
		}
	})
	return h
}

func (h *lateHolder) put(name string, f *os.File) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if old := h.files[name]; old != nil {
		old.Close()
	}
	delete(h.files, name)
	if f != nil {
		h.files[name] = f
	}
}

func (h *lateHolder) Take(string) *os.File { return nil } // no server takes anything over

func (h *lateHolder) DropRest() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	for name := range h.files {
		h.changes <- func() { h.put(name, nil) }
	}
	return nil
}

func (h *lateHolder) Keep(name string, fd int) error {
	copied, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err == nil {
		h.changes <- func() { h.put(name, os.NewFile(uintptr(copied), name)) }
	}
	return err
}

func (h *lateHolder) Drop(name string) error {
	h.changes <- func() { h.put(name, nil) }
	return nil
}

// TestNamesOfARepairedBridge: pods find each other by name after somebody has taken the
// bridge down or deleted it, although the supervisor closes the sockets of before in its own
// time.
func TestNamesOfARepairedBridge(t *testing.T) {
	for name, damage := range map[string]string{
		"down":          "ip link set subnet1 down",
		"deleted":       "ip link del subnet1",
		"deleted twice": "ip link del subnet1; sleep 0.2; ip link del subnet1",
	} {
		t.Run(name, func(t *testing.T) {
			w := nettest.New(t)
			late := newLateHolder(t, 20*time.Millisecond)
			n := open(t, w)
			n.speaker.held = late
			_, err := n.Create(Config{Name: "one"}, true)
			nettest.Must(t, err)
			first, second := pod(w, "first", "one"), pod(w, "second", "one")
			result, err := n.Setup(t.Context(), first)
			nettest.Must(t, err)
			_, err = n.Setup(t.Context(), second)
			nettest.Must(t, err)
			nettest.Must(t, w.Thread.Do(func() error { return exec.Command("sh", "-c", damage).Run() }))
			for _, server := range result.Nameservers {
				nettest.Eventually(t, "an answer of "+server.String(), func() bool {
					return lookupWithin(t, time.Second, second, server, "first.", dnsmessage.TypeA) == result.IPs[0].String()
				})
			}
		})
	}
}

// TestNamesAfterTheRest: the first pod after a start of the server can look up names, although
// the supervisor still closes what an earlier server has listened with.
func TestNamesAfterTheRest(t *testing.T) {
	w := nettest.New(t)
	late := newLateHolder(t, 20*time.Millisecond)
	n := open(t, w)
	n.speaker.held = late
	_, err := n.Setup(t.Context(), pod(w, "first"))
	nettest.Must(t, err)
	nettest.Eventually(t, "the supervisor has the sockets", func() bool {
		late.mu.Lock()
		defer late.mu.Unlock()
		return len(late.files) == 4
	})
	for _, socket := range n.base.sockets { // the server is killed
		socket.Close()
	}
	n.base.sockets, n.base.addrs = nil, nil
	nettest.Must(t, n.Reconcile(t.Context(), nil))
	result, err := n.Setup(t.Context(), pod(w, "second"))
	nettest.Must(t, err)
	if len(result.Nameservers) != 2 {
		t.Errorf("name servers %v", result.Nameservers)
	}
}
