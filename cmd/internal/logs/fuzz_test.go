package logs

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// FuzzRead: any file is read to its end, or refused with ErrFormat; what comes out
// is in the file.
func FuzzRead(f *testing.F) {
	f.Add([]byte("2026-01-02T03:04:05.678901234Z stdout F hello\n2026-01-02T03:04:06Z stderr P par\n2026-01-02T03:04:06Z stderr F tial\n"), 1, true)
	f.Add([]byte("2026-01-02T03:04:05+01:00 stdout F\n"), -1, false)
	f.Add([]byte("no log\n\n\x00"), 0, false)
	f.Fuzz(func(t *testing.T, data []byte, tail int, stamps bool) {
		path := filepath.Join(t.TempDir(), "0.log")
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		var out, errs bytes.Buffer
		follow := Options{Tail: tail, Timestamps: stamps, Follow: true, Ended: func() bool { return true }}
		if err := Read(ctx, path, follow, &out, &errs); err != nil && !errors.Is(err, ErrFormat) && !errors.Is(err, ErrDamaged) {
			t.Error(err)
		}
		if ctx.Err() != nil {
			t.Error("hung")
		}
		if !stamps && out.Len()+errs.Len() > len(data) {
			t.Errorf("%d bytes of log became %d", len(data), out.Len()+errs.Len())
		}
	})
}

// FuzzParse: a line is refused with ErrFormat or its text is its end.
func FuzzParse(f *testing.F) {
	f.Add([]byte("2026-01-02T03:04:05.678901234Z stdout F hello"))
	f.Add([]byte("2026-01-02T03:04:05Z stderr P "))
	f.Fuzz(func(t *testing.T, line []byte) {
		e, err := Parse(line)
		if err != nil {
			if !errors.Is(err, ErrFormat) {
				t.Error(err)
			}
			return
		}
		if !bytes.HasSuffix(line, e.Text) {
			t.Errorf("%q has the text %q", line, e.Text)
		}
	})
}
