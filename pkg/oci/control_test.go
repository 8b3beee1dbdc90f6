package oci

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestControlReaderEnds has conmon end between the opening of its control FIFO and
// its reading of a line, as it does when a container ends.
func TestControlReaderEnds(t *testing.T) {
	c := Container{Bundle: t.TempDir()}
	path := filepath.Join(c.Bundle, ctlFIFO)
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	conmon, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	ctl, err := openControl(context.Background(), c)
	if err != nil {
		t.Fatal(err)
	}
	defer ctl.close()
	sent := make(chan error)
	go func() { sent <- ctl.send(context.Background(), "1 24 80\n") }()
	eventually(t, "the line is in the FIFO", func() bool {
		empty, err := ctl.isEmpty()
		return err == nil && !empty
	})
	conmon.Close()
	if err := <-sent; !errors.Is(err, ErrNotRunning) {
		t.Errorf("a line that conmon did not read before it ended: %v, want ErrNotRunning", err)
	}
	// The next one finds the FIFO as it was left.
	if err := ctl.send(context.Background(), "1 24 80\n"); !errors.Is(err, ErrNotRunning) {
		t.Errorf("a line after the end: %v, want ErrNotRunning", err)
	}
}
