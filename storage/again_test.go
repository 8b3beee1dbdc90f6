package storage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"

	cstorage "go.podman.io/storage"
	"golang.org/x/sys/unix"
)

// TestAgain: what others disturb is tried again, a few times, within the same limits.
func TestAgain(t *testing.T) {
	for _, c := range []struct {
		what     string
		err      error
		failures int
		tries    int
		ok       bool
	}{
		{"nothing", nil, 0, 1, true},
		{"a directory that is not locked", fmt.Errorf("unpacking failed (error: exit status 1; output: %v)", errStagingUnlocked), 3, 4, true},
		{"a layer that was removed", fmt.Errorf("find: %w", cstorage.ErrLayerUnknown), 3, 4, true},
		{"a rename", &os.PathError{Op: "openat2", Path: "x", Err: unix.EAGAIN}, 1, 2, true},
		{"a rename, always", &os.PathError{Op: "openat2", Path: "x", Err: unix.EAGAIN}, 100, 4, false},
		{"a damaged archive", errors.New("unexpected EOF"), 100, 1, false},
	} {
		w := &worker{meter: &meter{ctx: context.Background(), limits: Limits{Size: 1500, Entries: 10}}}
		w.meter.bytes.Add(500) // of an image before
		tries := 0
		err := again(w, func() error {
			tries++
			if _, err := io.ReadAll(w.meter.read(strings.NewReader(strings.Repeat("x", 1000)))); err != nil {
				return err
			}
			if tries <= c.failures {
				return c.err
			}
			return nil
		})
		if tries != c.tries || (err == nil) != c.ok {
			t.Errorf("%s: %v after %d tries, want %d", c.what, err, tries, c.tries)
		}
	}
}
