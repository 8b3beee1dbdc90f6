package storage

import (
	"context"
	"fmt"
	"net/http"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// contentProcesses returns the PIDs of the content processes that run.
func contentProcesses() (pids []int) {
	for _, p := range processesNaming(contentName) {
		pid := 0
		if _, err := fmt.Sscan(p, &pid); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

// TestSilentContentProcess: a content process that is stopped, so that it neither answers
// nor ends, does not keep its pull, nor another of the same image, and leaves nothing.
func TestSilentContentProcess(t *testing.T) {
	img := sample(t, "silent")
	asked := make(chan struct{}, 100)
	f := startFake(t, img, func(_ http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.URL.Path, "/blobs/") {
			asked <- struct{}{}
			<-r.Context().Done()
			return true
		}
		return false
	})
	o := testOptions(t, t.TempDir(), DriverFuse)
	o.PullTimeout = contentSilence // no more is waited for, and a busy machine is silent for a second
	insecureConf(t, o, f.host)
	s := openStore(t, o)
	pull := func() <-chan error {
		done := make(chan error, 1)
		go func() {
			_, err := s.Images.Pull(context.Background(), PullRequest{Ref: f.host + "/app:v1"})
			done <- err
		}()
		return done
	}
	first := pull()
	<-asked
	t.Cleanup(func() {
		for _, pid := range contentProcesses() {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
	})
	for _, pid := range contentProcesses() {
		if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
			t.Fatal(err)
		}
	}
	second := pull()
	for _, done := range []<-chan error{first, second} {
		if err := receive(t, "the pull", done); err == nil || !strings.Contains(err.Error(), "has said nothing for") {
			t.Errorf("%v, want that the content process says nothing", err)
		}
	}
	wantClean(t, s, 0)
	f.setHook(nil)
	if err := receive(t, "a pull afterwards", pull()); err != nil {
		t.Error(err)
	}
}

// TestContentProcessStays: one that does not end when it is killed, because the kernel
// waits for a disk, is left behind.
func TestContentProcessStays(t *testing.T) {
	s := openStore(t, testOptions(t, t.TempDir(), DriverVFS))
	cmd := exec.Command("sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	p := &contentProcess{cmd: cmd, ended: make(chan struct{})} // nobody reaps it
	_ = within(t, "the end", func() error {
		p.end(s.layers.log)
		return nil
	})
}
