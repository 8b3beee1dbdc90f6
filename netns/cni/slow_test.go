package cni

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/subpod/subpod/netns"
	"github.com/subpod/subpod/tests/nettest"
)

// TestHungPlugin: a plugin of a new configuration hangs at its first question. Whoever
// gives up meanwhile gets an answer, and pods that are there can be torn down.
func TestHungPlugin(t *testing.T) {
	w := nettest.New(t)
	configure(t, w, "10.conflist", chain(w, v4))
	dir := filepath.Join(w.Dir, "bin")
	nettest.Must(t, os.MkdirAll(dir, 0o755))
	asked, answer := filepath.Join(w.Dir, "asked"), filepath.Join(w.Dir, "answer")
	nettest.Must(t, os.WriteFile(filepath.Join(dir, "hung"), []byte("#!/bin/sh\ntouch "+asked+"\nuntil [ -e "+answer+" ]; do sleep 0.1; done\nexit 1\n"), 0o755))
	n := open(t, w, func(o *Options) { o.BinDirs = append([]string{dir}, o.BinDirs...); o.Timeout = time.Minute })
	pod := w.Pod("one")
	w.Setup(n, pod)
	configure(t, w, "05.conflist", obj{"cniVersion": "1.0.0", "name": "x", "plugins": []obj{{"type": "hung"}}})
	first := make(chan error, 1)
	go func() {
		_, err := n.Setup(background, w.Pod("two"))
		first <- err
	}()
	nettest.Eventually(t, "the plugin is asked", func() bool { _, err := os.Stat(asked); return err == nil })
	canceled, cancel := context.WithCancel(background)
	cancel()
	done := make(chan error, 1)
	go func() {
		_, err := n.Setup(canceled, w.Pod("three"))
		if status := n.Status(canceled); !errors.Is(status, netns.ErrNotReady) {
			err = errors.Join(err, errors.New("Status: ready with a plugin that hangs"))
		}
		done <- errors.Join(err, n.Teardown(background, pod.ID))
	}()
	select {
	case err := <-done:
		if !errors.Is(err, context.Canceled) {
			t.Errorf("a canceled Setup: %v", err)
		}
	case <-time.After(time.Minute):
		t.Error("a canceled Setup, Status and a Teardown wait for the plugin")
	}
	nettest.Must(t, os.WriteFile(answer, nil, 0o600))
	if err := <-first; !errors.Is(err, netns.ErrNotReady) {
		t.Errorf("Setup by a plugin that fails: %v", err)
	}
}
