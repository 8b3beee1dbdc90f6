package storage

import (
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/subpod/subpod/storage/internal/fetch"
	fakes "github.com/subpod/subpod/tests/registry"
)

// lending is a lender of the blobs of a registry, and the other end of its socket.
func lending(t *testing.T, blobs ...[]byte) (*lender, *wire) {
	t.Helper()
	f := fakes.NewFake(fakes.FakeOptions{})
	t.Cleanup(f.Close)
	all := map[digest.Digest][]byte{}
	for _, b := range blobs {
		all[digest.FromBytes(b)] = b
	}
	f.Push("app", "1", "application/vnd.oci.image.manifest.v1+json", []byte(`{"schemaVersion":2,"config":{},"layers":[]}`), all)
	spool, err := fetch.NewSpool(t.TempDir(), 1<<30, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	p, err := fetch.Start(t.Context(), fetch.Config{Endpoints: []fetch.Endpoint{{Host: f.Addr, Repo: "app", Insecure: true}},
		Spool: spool, Timeout: time.Hour, Delay: time.Millisecond, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close(false) })
	tr := &http.Transport{Proxy: func(r *http.Request) (*url.URL, error) { return p.Route().ProxyFor(r.URL) }}
	defer tr.CloseIdleConnections()
	resp, err := (&http.Client{Transport: tr}).Get("http://" + f.Addr + "/v2/app/manifests/1")
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("the manifest: %v %v", resp, err)
	}
	resp.Body.Close()
	conn, remote, err := socketPair()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(); remote.Close() })
	l := newLender(t.Context(), conn, &wire{rw: conn}, p)
	t.Cleanup(l.end)
	return l, &wire{rw: remote}
}

// TestNotHandedOver: who asks for a blob that cannot be handed over, since the server has too
// many descriptors, is told to ask the proxy, and does not wait.
func TestNotHandedOver(t *testing.T) {
	blob := []byte("a blob")
	l, borrower := lending(t, blob)
	loan, err := l.proxy.Lend(t.Context(), digest.FromBytes(blob))
	if err != nil {
		t.Fatal(err)
	}
	loan.File.Close() // cannot be sent
	l.work.Go(func() { l.follow(7, loan) })
	answered := make(chan *lendAnswer, 1)
	go func() {
		var a contentAnswer
		if err := borrower.receive(&a, maxContentMessage); err != nil {
			t.Error(err)
		}
		answered <- a.Lent
	}()
	select {
	case a := <-answered:
		if a == nil || a.ID != 7 || !a.NotKept {
			t.Errorf("the answer is %+v", a)
		}
	case <-time.After(patience):
		t.Fatal("it is not answered")
	}
}

// TestHostileBorrower: who asks for blobs without an end, and reads no answer, takes no more
// than a few descriptors and goroutines, and leaves none.
func TestHostileBorrower(t *testing.T) {
	blob := []byte("a blob")
	l, _ := lending(t, blob)
	asked := make(chan struct{})
	go func() {
		defer close(asked)
		for id := uint32(0); ; id++ {
			if l.lend(lendRequest{ID: id % 3, Digest: digest.FromBytes(blob)}) != nil {
				return
			}
		}
	}()
	for l.loans.Load() < maxLoans { // nothing more fits into the socket
		time.Sleep(time.Millisecond)
	}
	if n := descriptors(t); n > 8*maxLoans {
		t.Errorf("%d descriptors are open", n)
	}
	ended := make(chan struct{})
	go func() {
		l.cancel()
		_ = l.conn.SetDeadline(time.Unix(1, 0))
		<-asked // who asks is who ends it, otherwise
		l.end()
		close(ended)
	}()
	select {
	case <-ended:
	case <-time.After(patience):
		t.Fatal("it does not end")
	}
	if n := l.loans.Load(); n != 0 {
		t.Errorf("%d blobs are lent", n)
	}
}

// descriptors returns how many descriptors this process has.
func descriptors(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}
