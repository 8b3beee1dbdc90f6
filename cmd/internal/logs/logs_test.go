package logs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

const sample = `2026-01-02T03:04:05.000000001Z stdout F one
2026-01-02T03:04:06Z stderr F oops
2026-01-02T03:04:07+01:00 stdout P par
2026-01-02T03:04:08Z stdout F tial
2026-01-02T03:04:09Z stdout F 
2026-01-02T03:04:10Z stdout P no end`

func file(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "log")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestRead(t *testing.T) {
	since := time.Date(2026, 1, 2, 3, 4, 8, 0, time.UTC)
	for _, c := range []struct {
		name     string
		o        Options
		out, err string
	}{
		{"all", Options{Tail: -1}, "one\npartial\n\n", "oops\n"},
		{"tail", Options{Tail: 2}, "tial\n\n", ""},
		{"none", Options{Tail: 0}, "", ""},
		{"more than there are", Options{Tail: 100}, "one\npartial\n\n", "oops\n"},
		{"since", Options{Tail: -1, Since: since}, "tial\n\n", ""},
		{"prefix", Options{Tail: -1, Prefix: "p: "}, "p: one\np: partial\np: \n", "p: oops\n"},
		{"timestamps", Options{Tail: -1, Timestamps: true, Since: since},
			"2026-01-02T03:04:08.000000000Z tial\n2026-01-02T03:04:09.000000000Z \n", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			text := sample[:strings.LastIndex(sample, "\n")+1]
			if err := Read(t.Context(), file(t, text), c.o, &stdout, &stderr); err != nil {
				t.Fatal(err)
			}
			if stdout.String() != c.out || stderr.String() != c.err {
				t.Errorf("%q, %q; want %q, %q", stdout.String(), stderr.String(), c.out, c.err)
			}
		})
	}
	if err := Read(t.Context(), file(t, "not a log\n"), Options{Tail: -1}, &bytes.Buffer{}, nil); !errors.Is(err, ErrFormat) {
		t.Errorf("no log: %v", err)
	}
}

// TestReadDamaged: a line that was cut off, as where the disk was full, takes the next one
// along, and no other.
func TestReadDamaged(t *testing.T) {
	path := file(t, "2026-01-02T03:04:05Z stdout F one\n2026-01-02T03:04:06Z stdo2026-01-02T03:04:07Z stdout F two\n"+
		"\x00\x00\n2026-01-02T03:04:08Z stdout F three\n")
	for _, o := range []Options{{Tail: -1}, {Tail: 3}, {Tail: 2}, {Tail: -1, Follow: true, Ended: func() bool { return true }}} {
		var stdout bytes.Buffer
		err := Read(t.Context(), path, o, &stdout, nil)
		if got := strings.TrimPrefix(stdout.String(), "one\n"); got != "three\n" || !errors.Is(err, ErrDamaged) {
			t.Errorf("%+v: %q, %v", o, stdout.String(), err)
		}
	}
}

// buffer may be written to and read at the same time.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) { b.mu.Lock(); defer b.mu.Unlock(); return b.b.Write(p) }
func (b *buffer) String() string              { b.mu.Lock(); defer b.mu.Unlock(); return b.b.String() }

// TestFollow: across a rotation, and to the very end.
func TestFollow(t *testing.T) {
	path := file(t, "")
	var ended atomic.Bool
	out := &buffer{}
	done := make(chan error, 1)
	go func() {
		done <- Read(context.Background(), path, Options{Tail: -1, Follow: true, Ended: ended.Load}, out, out)
	}()
	line := func(name string, n int) {
		f, err := os.OpenFile(name, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		fmt.Fprintf(f, "2026-01-02T03:04:05Z stdout F line %d\n", n)
	}
	want := ""
	for i := range 20 {
		if i == 10 {
			// What is renamed before it was opened is not read.
			for deadline := time.Now().Add(time.Minute); out.String() != want && time.Now().Before(deadline); {
				time.Sleep(time.Millisecond)
			}
			if err := os.Rename(path, path+".1"); err != nil {
				t.Fatal(err)
			}
		}
		line(path, i)
		want += fmt.Sprintf("line %d\n", i)
	}
	time.Sleep(pollInterval)
	line(path, 20)
	ended.Store(true)
	want += "line 20\n"
	select {
	case err := <-done:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(time.Minute):
		t.Fatal("it does not end")
	}
	if out.String() != want {
		t.Errorf("%q\nwant %q", out.String(), want)
	}
}
