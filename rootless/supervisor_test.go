package rootless

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
)

// fakeNode is a supervisor whose servers are a script, in no node at all.
type fakeNode struct {
	t       *testing.T
	dir     string
	signals chan os.Signal
	log     *logBuffer
	s       *supervisor
	result  chan error
}

// startSupervisor runs a supervisor of a server with the text. What the server writes
// to $DIR/starts is read by starts.
func startSupervisor(t *testing.T, served bool, text string) *fakeNode {
	t.Helper()
	n := &fakeNode{t: t, dir: t.TempDir(), signals: make(chan os.Signal, 4), log: &logBuffer{}, result: make(chan error, 1)}
	if err := os.MkdirAll(nodeDir(n.dir), 0o700); err != nil {
		t.Fatal(err)
	}
	if served {
		n.servedBefore()
	}
	n.install(text)
	n.s = &supervisor{argv: []string{n.program()}, saved: savedConfig(n.dir), log: slog.New(slog.NewTextHandler(n.log, nil)),
		signals: n.signals, pause: time.Millisecond,
		ready: func(since time.Time) bool { return wasReady(n.dir, since) }}
	go func() { n.result <- n.s.run() }()
	return n
}

func (n *fakeNode) program() string { return filepath.Join(n.dir, "server") }

// servedBefore leaves the note of a server that has served an hour ago.
func (n *fakeNode) servedBefore() {
	n.t.Helper()
	file, then := filepath.Join(nodeDir(n.dir), fileReady), time.Now().Add(-time.Hour)
	err := os.WriteFile(file, nil, 0o600)
	if err == nil {
		err = os.Chtimes(file, then, then)
	}
	if err != nil {
		n.t.Fatal(err)
	}
}

// install replaces the program; "" removes it.
func (n *fakeNode) install(text string) {
	n.t.Helper()
	err := os.Remove(n.program())
	if errors.Is(err, os.ErrNotExist) {
		err = nil
	}
	if err == nil && text != "" {
		tmp := n.program() + ".new"
		if err = os.WriteFile(tmp, []byte(strings.ReplaceAll(text, "$DIR", n.dir)), 0o755); err == nil {
			err = os.Rename(tmp, n.program())
		}
	}
	if err != nil {
		n.t.Fatal(err)
	}
}

// until waits for a condition; the supervisor must not end meanwhile.
func (n *fakeNode) until(what string, ok func() bool) {
	n.t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(5 * time.Millisecond) {
		select {
		case err := <-n.result:
			n.t.Fatalf("waiting for %s: the supervisor has ended (%v):\n%s", what, err, n.log)
		default:
		}
		if time.Now().After(deadline) {
			n.t.Fatalf("waiting for %s: nothing after a minute:\n%s", what, n.log)
		}
	}
}

func (n *fakeNode) starts() []string {
	text, _ := os.ReadFile(filepath.Join(n.dir, "starts"))
	return strings.Fields(string(text))
}

// stop ends the supervisor, which must not report an error.
func (n *fakeNode) stop() {
	n.t.Helper()
	n.signals <- unix.SIGTERM
	if err := <-n.result; err != nil {
		n.t.Errorf("after SIGTERM: %v", err)
	}
}

const goodServer = "#!/bin/sh\n: >$DIR/node/ready\necho good >>$DIR/starts\ntrap 'exit 0' TERM\nwhile :; do sleep 0.05; done\n"

// badServers cannot serve, each in another way.
var badServers = map[string]string{
	"missing":           "",
	"not a program":     "\x7fELF",
	"no interpreter":    "#!/nonexistent/sh\n",
	"exit status 0":     "#!/bin/sh\nexit 0\n",
	"exit status 1":     "#!/bin/sh\nexit 1\n",
	"bad configuration": "#!/bin/sh\nexit 78\n",
	"killed":            "#!/bin/sh\nkill -KILL $$\n",
}

// In a node in which a server has served, none of the failures of a server ends the
// supervisor; a good program is taken as soon as it is there.
func TestSupervisorGoesOn(t *testing.T) {
	for name, text := range badServers {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := startSupervisor(t, true, text)
			n.until("more failures than a first server may have", func() bool {
				return strings.Count(n.log.String(), "the server has ended") > maxFirstFailures+1
			})
			n.install(goodServer)
			n.until("a good server", func() bool { return len(n.starts()) > 0 })
			n.stop()
		})
	}
}

// The note that a server has served may be lost: the supervisor remembers it.
func TestSupervisorRemembers(t *testing.T) {
	n := startSupervisor(t, true, "#!/bin/sh\nexit 1\n")
	n.until("a failure", func() bool { return strings.Contains(n.log.String(), "the server has ended") })
	if err := os.RemoveAll(nodeDir(n.dir)); err != nil {
		t.Fatal(err)
	}
	n.install("#!/bin/sh\nexit 78\n")
	have := strings.Count(n.log.String(), "the server has ended")
	n.until("more failures", func() bool { return strings.Count(n.log.String(), "the server has ended") > have+maxFirstFailures })
	n.stop()
}

// In a node in which none has served the supervisor ends with the server's exit code:
// at once for a configuration that is refused, else after a few starts.
func TestSupervisorGivesUp(t *testing.T) {
	for name, text := range badServers {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := startSupervisor(t, false, text)
			err := <-n.result
			code, failures := 1, maxFirstFailures
			if name == "bad configuration" {
				code, failures = ExitConfig, 1
			}
			if err == nil || exitCode(err) != code {
				t.Errorf("%v with exit code %d, want %d", err, exitCode(err), code)
			}
			if n.s.failures != failures {
				t.Errorf("%d starts, want %d", n.s.failures, failures)
			}
		})
	}
}

// After a failure every second server is asked to use the configuration that served
// last; after a reload the first one is not.
func TestSupervisorTakesTurns(t *testing.T) {
	n := startSupervisor(t, true, "#!/bin/sh\necho \"use=$"+envUseSaved+",$"+envSaved+"\" >>$DIR/starts\nexit 1\n")
	want := func(first int, use ...string) {
		t.Helper()
		n.until("starts", func() bool { return len(n.starts()) >= first+len(use) })
		for i, u := range use {
			if got := n.starts()[first+i]; got != "use="+u+","+savedConfig(n.dir) {
				t.Errorf("start %d: %s, want use=%s", first+i, got, u)
			}
		}
	}
	want(0, "", "1", "", "1")
	n.install("#!/bin/sh\necho \"use=$" + envUseSaved + ",$" + envSaved + "\" >>$DIR/starts\ntrap 'exit 0' TERM\nwhile :; do sleep 0.05; done\n")
	have := len(n.starts())
	n.until("a server that stays", func() bool { return len(n.starts()) > have })
	have = len(n.starts())
	n.signals <- unix.SIGHUP
	want(have, "")
	n.stop()
}

// The pauses between servers that fail grow, first to maxPause, much later to
// longPause, so that the log does; SIGHUP ends a pause.
func TestSupervisorPauses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &supervisor{pause: minPause, hasServed: true, ready: func(time.Time) bool { return false }}
		n, begin := 0, time.Now()
		for ; time.Since(begin) < 24*time.Hour; n++ {
			s.count(time.Now())
			time.Sleep(s.pause)
			s.lengthen()
			if since := time.Since(begin); s.pause > maxPause && since < longAfter {
				t.Errorf("a pause of %v after %v", s.pause, since)
			}
		}
		if s.pause != longPause {
			t.Errorf("the pause is %v after a day, want %v", s.pause, longPause)
		}
		if most := int(24*time.Hour/longPause) + 50; n > most {
			t.Errorf("%d starts a day, want at most %d", n, most)
		}
		s.ready = func(time.Time) bool { return true }
		s.count(time.Now())
		if s.pause != minPause || s.failures != 0 {
			t.Errorf("after a server that served: pause %v, %d failures", s.pause, s.failures)
		}
	})
}

// What the server notes, others read; no reason removes the note.
func TestDegraded(t *testing.T) {
	n := &Node{RunDir: t.TempDir()}
	if err := os.Mkdir(nodeDir(n.RunDir), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, reason := range []string{"", "first", "second", "", ""} {
		if err := n.SetDegraded(reason); err != nil {
			t.Errorf("SetDegraded(%q): %v", reason, err)
		}
		if got := n.Degraded(); got != reason {
			t.Errorf("Degraded is %q, want %q", got, reason)
		}
	}
}

func TestSavedConfig(t *testing.T) {
	t.Setenv(envSaved, "/x")
	t.Setenv(envUseSaved, "1")
	if file, use := SavedConfig(); file != "/x" || !use {
		t.Errorf("%q, %v", file, use)
	}
	if file, use := SavedConfig(); file != "" || use {
		t.Errorf("the environment is still there: %s", fmt.Sprint(file, use))
	}
}
