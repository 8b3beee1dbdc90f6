package storage

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"
)

// TestLargestMessages: whatever the limits let an image, or an archive of many, have, the
// messages about it are taken, and an error that crosses keeps its class.
func TestLargestMessages(t *testing.T) {
	for _, names := range []int64{1, 256, 100000} {
		limits := Limits{Names: names}.withDefaults()
		var ids []string
		for i := range names {
			ids = append(ids, fmt.Sprintf("%064x", i))
		}
		full := contentLog{At: time.Now(), Level: slog.LevelWarn, Message: cutLog(strings.Repeat("\x01", 1<<20))}
		for range maxLogAttrs {
			full.Attrs = append(full.Attrs, [2]string{strings.Repeat("\x01", maxLogKey), cutLog(strings.Repeat("\x01", 1<<20))})
		}
		failed := newContentFailed(fmt.Errorf("%w: %s", ErrTooLarge, strings.Repeat("\x01", 1<<20)))
		for _, m := range []contentMessage{{Result: &contentResult{Images: ids}}, {Log: &full}, {Result: &contentResult{Err: failed}}} {
			var got contentMessage
			w := &wire{rw: &bytes.Buffer{}}
			if err := w.send(m); err != nil {
				t.Fatal(err)
			}
			if err := w.receive(&got, limits.maxMessage()); err != nil {
				t.Errorf("%d names: %v", names, err)
			} else if m.Result != nil && len(got.Result.Images) != len(m.Result.Images) {
				t.Errorf("%d of %d images", len(got.Result.Images), names)
			} else if m.Result != nil && m.Result.Err != nil && !errors.Is(got.Result.Err.unpack(), ErrTooLarge) {
				t.Errorf("%v", got.Result.Err.unpack())
			}
		}
	}
}

// TestHostileError: an error of a process that was taken over is cut.
func TestHostileError(t *testing.T) {
	err := (&contentFailed{Text: strings.Repeat("é", 100<<10), Sentinel: "corrupt"}).unpack()
	if n := len(err.Error()); n > maxErrorText+10 || !errors.Is(err, ErrCorrupt) {
		t.Errorf("%d bytes, %v", n, errors.Is(err, ErrCorrupt))
	}
}

// TestSaidOnce: the class of an error is not named twice, whoever has named it first.
func TestSaidOnce(t *testing.T) {
	for _, text := range []string{"unpacking failed: image is corrupt: gzip: invalid header", "storing layer: image is corrupt: unpacking failed: x"} {
		err := classify(t.Context(), errors.New(text))
		if !errors.Is(err, ErrCorrupt) || strings.Count(err.Error(), ErrCorrupt.Error()) != 1 {
			t.Errorf("%v", err)
		}
	}
}
