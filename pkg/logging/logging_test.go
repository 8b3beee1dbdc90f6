package logging_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/subpod/subpod/pkg/logging"
)

// lines counts what is written: a line a call.
type lines struct {
	mu    sync.Mutex
	lines []string
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, string(p))
	return len(p), nil
}

// TestPriority: under a service manager each line, also one of a derived logger, begins
// with its own priority, whoever logs at the same time.
func TestPriority(t *testing.T) {
	for _, json := range []bool{false, true} {
		var out lines
		log := logging.New(&out, logging.Options{Level: slog.LevelDebug, JSON: json, Journal: true})
		var group sync.WaitGroup
		for i := range 8 {
			group.Go(func() {
				log := log.With("worker", i).WithGroup("g")
				log.Debug("of 7")
				log.Info("of 6")
				log.Warn("of 4")
				log.Error("of 3", "k", "v")
			})
		}
		group.Wait()
		if len(out.lines) != 32 {
			t.Errorf("%d lines, want 32", len(out.lines))
		}
		for _, l := range out.lines {
			if !strings.Contains(l, "of "+l[1:2]) || l[0] != '<' || l[2] != '>' || strings.Count(l, "\n") != 1 {
				t.Errorf("line %q", l)
			}
			if !json && strings.Contains(l, "time=") {
				t.Errorf("the journal has the time: %q", l)
			}
		}
	}
}

// loud logs while it is made into text.
type loud struct{ log *slog.Logger }

func (l loud) String() string {
	l.log.Warn("of 4")
	return "text"
}

// TestNested: what is logged may log: it waits for no lock of the log's.
func TestNested(t *testing.T) {
	var out lines
	log := logging.New(&out, logging.Options{Journal: true})
	log.Info("of 6", "value", loud{log})
	if len(out.lines) != 2 || out.lines[0] != "<4>level=WARN msg=\"of 4\"\n" || out.lines[1] != "<6>level=INFO msg=\"of 6\" value=text\n" {
		t.Errorf("lines %q", out.lines)
	}
}

// TestPlain: elsewhere lines are slog's, and a level may change.
func TestPlain(t *testing.T) {
	var out bytes.Buffer
	var level slog.LevelVar
	log := logging.New(&out, logging.Options{Level: &level, JSON: true})
	log.Debug("not")
	level.Set(slog.LevelDebug)
	log.Debug("this")
	var line struct{ Msg, Level, Time string }
	if err := json.Unmarshal(out.Bytes(), &line); err != nil || line.Msg != "this" || line.Level != "DEBUG" || line.Time == "" {
		t.Errorf("%v: %q", err, out.String())
	}
}

// TestToJournal: the file is the one that the service manager names.
func TestToJournal(t *testing.T) {
	dir := t.TempDir()
	open := func(name string) (*os.File, string) {
		f, err := os.Create(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		var st unix.Stat_t
		if err := unix.Fstat(int(f.Fd()), &st); err != nil {
			t.Fatal(err)
		}
		return f, fmt.Sprintf("%d:%d", st.Dev, st.Ino)
	}
	f, id := open("a")
	other, _ := open("b")
	t.Setenv("JOURNAL_STREAM", "")
	if logging.ToJournal(f) {
		t.Error("no journal, and a file is one")
	}
	t.Setenv("JOURNAL_STREAM", id)
	if !logging.ToJournal(f) || logging.ToJournal(other) {
		t.Error("the journal is not told from another file")
	}
}

// TestOutliveReader: a program whose standard error has no reader goes on, and what it starts
// is not made to.
func TestOutliveReader(t *testing.T) {
	const writer = "TEST_WRITER"
	if os.Getenv(writer) != "" {
		logging.OutliveReader()
		for range 3 {
			slog.New(slog.NewTextHandler(os.Stderr, nil)).Info("a line")
		}
		out, err := exec.Command("grep", "^SigIgn:", "/proc/self/status").Output()
		fmt.Printf("goes on: %s %v\n", out, err)
		return
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
	defer w.Close()
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestOutliveReader$")
	cmd.Env, cmd.Stderr = append(os.Environ(), writer+"=1"), w
	out, err := cmd.Output()
	if err != nil || !strings.Contains(string(out), "goes on") {
		t.Fatalf("%v: %s", err, out)
	}
	var ignored uint64
	if _, err := fmt.Sscanf(string(out), "goes on: SigIgn: %x", &ignored); err != nil || ignored&(1<<(unix.SIGPIPE-1)) != 0 {
		t.Errorf("what it starts ignores SIGPIPE: %v: %s", err, out)
	}
}

func TestParseLevel(t *testing.T) {
	for text, want := range map[string]slog.Level{"debug": slog.LevelDebug, "info": slog.LevelInfo, "Warn": slog.LevelWarn, "error": slog.LevelError} {
		if l, err := logging.ParseLevel(text); err != nil || l != want {
			t.Errorf("%s: %v, %v", text, l, err)
		}
	}
	for _, bad := range []string{"", "trace", "info+2", "4"} {
		if _, err := logging.ParseLevel(bad); err == nil {
			t.Errorf("%q is a level", bad)
		}
	}
}

// TestOnce: what was said is not said again, and what is remembered has a bound.
func TestOnce(t *testing.T) {
	var once logging.Once
	for i := range 3000 {
		what := fmt.Sprint("reason ", i)
		if l := once.Level(what); l != slog.LevelWarn {
			t.Fatalf("%s is said for the first time at level %v", what, l)
		}
		if l := once.Level(what); l != slog.LevelDebug {
			t.Fatalf("%s is said again at level %v", what, l)
		}
	}
}

// TestOnceLong: what is remembered of a sentence is no longer for one that a client made long.
func TestOnceLong(t *testing.T) {
	var once logging.Once
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	for i := range 100 {
		once.Level(strings.Repeat("x", 1<<20) + fmt.Sprint(i))
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 10<<20 {
		t.Errorf("100 sentences of 1 MiB take %d bytes", grown)
	}
	if l := once.Level(strings.Repeat("x", 1<<20) + "7"); l != slog.LevelDebug {
		t.Errorf("a long sentence is said again at level %v", l)
	}
}

// TestSentence: a value of one container makes no new sentence.
func TestSentence(t *testing.T) {
	var once logging.Once
	if a, b, c := once.Sentence("oom_score_adj 7 is below 100"), once.Sentence("oom_score_adj -998 is below 100"), once.Sentence("device a"); a != slog.LevelWarn || b != slog.LevelDebug || c != slog.LevelWarn {
		t.Errorf("levels %v, %v, %v", a, b, c)
	}
}
