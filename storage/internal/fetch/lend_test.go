package fetch

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/subpod/subpod/tests/registry"
)

// TestLend: a blob whose connections break is read from the file in which it is kept, while it
// comes; nothing can be written there.
func TestLend(t *testing.T) {
	blob := noise(12<<20, 1)
	f := fake(t, registry.FakeOptions{CutAfter: 1 << 20}, blob)
	p, c := start(t, Config{Endpoints: []Endpoint{endpointOf(f)}, Spool: newSpool(t)})
	if _, err := p.Lend(context.Background(), digest.FromBytes(blob)); !errors.Is(err, ErrNotKept) {
		t.Errorf("before a manifest was asked for: %v", err)
	}
	wantManifest(t, c, f)
	l, err := p.Lend(context.Background(), digest.FromBytes(blob))
	if err != nil {
		t.Fatal(err)
	}
	defer l.File.Close()
	if l.Size != int64(len(blob)) {
		t.Errorf("the size is %d, want %d", l.Size, len(blob))
	}
	if _, err := l.File.Write([]byte("x")); err == nil {
		t.Error("who was lent a blob can write it")
	}
	var got []byte
	grown := 0
	if err := l.Follow(context.Background(), func() error {
		grown++
		more, err := io.ReadAll(l.File)
		got = append(got, more...)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, blob) {
		t.Errorf("got %d bytes of %d", len(got), len(blob))
	}
	if grown < 2 {
		t.Errorf("it has grown %d times", grown)
	}
	again, err := p.Lend(context.Background(), digest.FromBytes(blob))
	if err != nil {
		t.Fatal(err)
	}
	defer again.File.Close()
	if err := again.Follow(context.Background(), func() error { return nil }); err != nil {
		t.Errorf("lent once more: %v", err)
	}
}

// wantManifest asks for the manifest, as the library does before it asks for blobs.
func wantManifest(t *testing.T, c *http.Client, f *registry.Fake) {
	t.Helper()
	if resp, _, err := get(t, c, f.Addr, "manifests/1"); err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("the manifest: %v %v", resp, err)
	}
}

// TestLendWithoutSpool: the library asks for what is not kept.
func TestLendWithoutSpool(t *testing.T) {
	blob := noise(1<<20, 1)
	f := fake(t, registry.FakeOptions{}, blob)
	p, c := start(t, Config{Endpoints: []Endpoint{endpointOf(f)}})
	wantManifest(t, c, f)
	if _, err := p.Lend(context.Background(), digest.FromBytes(blob)); !errors.Is(err, ErrNotKept) {
		t.Errorf("the error is %v, want ErrNotKept", err)
	}
	wantBlob(t, c, f.Addr, blob)
	if n := f.Requests("GET /v2/app/blobs/"); n != 1 {
		t.Errorf("the registry was asked for the blob %d times", n)
	}
}

// TestLendLost: a blob that nobody has ends the pull, and so does one whose rest nobody has.
func TestLendLost(t *testing.T) {
	blob := noise(3<<20, 1)
	f := fake(t, registry.FakeOptions{CutAfter: 1 << 20, NoRanges: true}, blob)
	for name, d := range map[string]digest.Digest{"missing": digest.FromString("nobody has it"), "rest": digest.FromBytes(blob)} {
		t.Run(name, func(t *testing.T) {
			p, c := start(t, Config{Endpoints: []Endpoint{endpointOf(f)}, Spool: newSpool(t)})
			wantManifest(t, c, f)
			l, err := p.Lend(context.Background(), d)
			if err == nil {
				err = l.Follow(context.Background(), func() error { return nil })
				l.File.Close()
			}
			var e *Error
			if !errors.As(err, &e) || !errors.As(p.Err(), &e) {
				t.Errorf("the error is %v, the reason of the pull's end %v", err, p.Err())
			}
			if _, err := p.Lend(context.Background(), d); !errors.As(err, &e) {
				t.Errorf("lent again: %v", err)
			}
		})
	}
}

// TestLendEnds: who does not want a blob any more waits for no registry.
func TestLendEnds(t *testing.T) {
	blob := noise(1<<20, 1)
	f := fake(t, registry.FakeOptions{}, blob)
	p, c := start(t, Config{Endpoints: []Endpoint{endpointOf(f)}, Spool: newSpool(t)})
	wantManifest(t, c, f)
	l, err := p.Lend(context.Background(), digest.FromBytes(blob))
	if err != nil {
		t.Fatal(err)
	}
	defer l.File.Close()
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	gone := errors.New("gone")
	if err := l.Follow(ctx, func() error { return gone }); !errors.Is(err, gone) && !errors.Is(err, context.Canceled) {
		t.Errorf("it has ended with %v", err)
	}
	if p.Err() != nil {
		t.Errorf("the pull has failed with %v", p.Err())
	}
}

// TestLendGivenUp: who gives up while a registry does not answer waits for it no longer, and the
// blob can be asked for again.
func TestLendGivenUp(t *testing.T) {
	blob := noise(1<<20, 1)
	asked := make(chan struct{}, 1)
	f := fake(t, registry.FakeOptions{}, blob)
	f.SetFault(func(_ http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, "/blobs/") {
			return false
		}
		asked <- struct{}{}
		<-r.Context().Done()
		return true
	})
	p, c := start(t, Config{Endpoints: []Endpoint{endpointOf(f)}, Spool: newSpool(t), Timeout: time.Hour})
	wantManifest(t, c, f)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() {
		_, err := p.Lend(ctx, digest.FromBytes(blob))
		ended <- err
	}()
	<-asked
	cancel()
	select {
	case err := <-ended:
		if !errors.Is(err, context.Canceled) {
			t.Errorf("the error is %v", err)
		}
	case <-time.After(3 * time.Second):
		t.Fatal("it waits for the registry")
	}
	f.SetFault(nil)
	wantBlob(t, c, f.Addr, blob)
}

// TestLendGoesOn: a blob that two pulls are lent comes whole when the one that downloads it goes
// away.
func TestLendGoesOn(t *testing.T) {
	blob := noise(8<<20, 1)
	f := fake(t, registry.FakeOptions{}, blob)
	f.SetFault(func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodGet || !strings.Contains(r.URL.Path, "/blobs/") || r.Header.Get("Range") != "" {
			return false
		}
		w.Header().Set("Content-Length", strconv.Itoa(len(blob)))
		w.Write(blob[:3<<20])
		w.(http.Flusher).Flush()
		<-r.Context().Done()
		return true
	})
	spool := newSpool(t)
	begin := func() (*Proxy, *Loan) {
		p, c := start(t, Config{Endpoints: []Endpoint{endpointOf(f)}, Spool: spool, Timeout: time.Hour})
		wantManifest(t, c, f)
		l, err := p.Lend(context.Background(), digest.FromBytes(blob))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.File.Close() })
		return p, l
	}
	first, a := begin()
	begun, gone := make(chan struct{}), make(chan struct{})
	var once sync.Once
	go func() {
		defer close(gone)
		_ = a.Follow(context.Background(), func() error {
			once.Do(func() { close(begun) })
			return nil
		})
	}()
	_, b := begin()
	<-begun
	var leave sync.Once
	var got []byte
	if err := b.Follow(context.Background(), func() error {
		leave.Do(func() { first.Close(false) })
		more, err := io.ReadAll(b.File)
		got = append(got, more...)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	<-gone
	if !bytes.Equal(got, blob) {
		t.Errorf("got %d bytes of %d", len(got), len(blob))
	}
}

// TestLendFull: where no more of a blob can be written, the library is sent to ask for it, and
// gets it.
func TestLendFull(t *testing.T) {
	blob := noise(6<<20, 1)
	f := fake(t, registry.FakeOptions{}, blob)
	p, c := start(t, Config{Endpoints: []Endpoint{endpointOf(f)}, Spool: newSpool(t)})
	wantManifest(t, c, f)
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_FSIZE, &old); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Setrlimit(unix.RLIMIT_FSIZE, &old) })
	if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: 2 << 20, Max: old.Max}); err != nil {
		t.Fatal(err)
	}
	l, err := p.Lend(context.Background(), digest.FromBytes(blob))
	if err != nil {
		t.Fatal(err)
	}
	defer l.File.Close()
	if err := l.Follow(context.Background(), func() error { return nil }); !errors.Is(err, ErrNotKept) {
		t.Errorf("the error is %v, want ErrNotKept", err)
	}
	if p.Err() != nil {
		t.Errorf("the pull has failed with %v", p.Err())
	}
	wantBlob(t, c, f.Addr, blob)
}

// TestFutureBlob: a blob whose file says that it comes from the future does not stay for longer
// than others.
func TestFutureBlob(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, digest.FromString("a").Encoded())
	future := time.Now().Add(1000 * time.Hour)
	if err := errors.Join(os.WriteFile(path, []byte("a"), 0o600), os.Chtimes(path, future, future)); err != nil {
		t.Fatal(err)
	}
	if _, err := NewSpool(dir, 1<<30, time.Hour); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it is still there: %v", err)
	}
}
