package state

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func openFile(t *testing.T, file string) *Store {
	t.Helper()
	return openWith(t, file, defaults)
}

func openWith(t *testing.T, file string, opts options) *Store {
	t.Helper()
	s, err := open(file, discard, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

var discard = slog.New(slog.DiscardHandler)

// byHand are the options of a store that commits only when round asks for it.
func byHand() options {
	opts := defaults
	opts.commitDelay, opts.noSync, opts.reserve = time.Hour, true, 0
	return opts
}

// round makes the committer work at once and returns its error.
func round(s *Store) error {
	s.disk.mu.Lock()
	done := s.disk.rounds
	s.disk.mu.Unlock()
	notify(s.disk.urgent)
	<-done
	s.disk.mu.Lock()
	defer s.disk.mu.Unlock()
	return s.disk.err
}

func samplePod() Pod {
	return Pod{
		ID: "aabb",
		Config: Msg(&runtimeapi.PodSandboxConfig{
			Metadata:    &runtimeapi.PodSandboxMetadata{Name: "web", Uid: "u1", Namespace: "default", Attempt: 2},
			Annotations: map[string]string{"a": "1\x00é"},
		}),
		CreatedAt: time.Unix(1700000000, 5),
		Status:    PodStatus{Phase: PodCreating},
	}
}

func TestRecordsOutliveTheProcess(t *testing.T) {
	file := filepath.Join(t.TempDir(), "state.db")
	s := openFile(t, file)
	pod := samplePod()
	if err := s.PutPod(pod); err != nil {
		t.Fatal(err)
	}
	if _, err := s.UpdatePod("aabb", func(p *Pod) error { p.Status.Phase = PodReady; return nil }); err != nil {
		t.Fatal(err)
	}
	ctr := Container{ID: "c1", PodID: "aabb", Config: Msg(&runtimeapi.ContainerConfig{Envs: []*runtimeapi.KeyValue{{Key: "k", Value: []byte{0xff, 0}}}})}
	if err := s.PutContainer(ctr); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}

	s = openFile(t, file)
	got, err := s.Pod("aabb")
	if err != nil {
		t.Fatal(err)
	}
	if !proto.Equal(got.Config.V, pod.Config.V) || got.Status.Phase != PodReady || !got.CreatedAt.Equal(pod.CreatedAt) {
		t.Errorf("read back %+v, want %+v as ready", got, pod)
	}
	if cs := s.ContainersOf("aabb"); len(cs) != 1 || !proto.Equal(cs[0].Config.V, ctr.Config.V) || !cs[0].Resources.IsZero() {
		t.Errorf("read back containers %+v", cs)
	}
}

func TestUpdateThatFailsChangesNothing(t *testing.T) {
	s := openFile(t, filepath.Join(t.TempDir(), "state.db"))
	if err := s.PutPod(samplePod()); err != nil {
		t.Fatal(err)
	}
	boom := errors.New("boom")
	if _, err := s.UpdatePod("aabb", func(p *Pod) error { p.Status.Phase = PodReady; return boom }); !errors.Is(err, boom) {
		t.Fatalf("error %v, want boom", err)
	}
	if p, _ := s.Pod("aabb"); p.Status.Phase != PodCreating {
		t.Errorf("phase %s after a failed update", p.Status.Phase)
	}
	if _, err := s.UpdatePod("nope", func(*Pod) error { return nil }); !errors.Is(err, ErrNotFound) {
		t.Errorf("update of nothing: %v, want ErrNotFound", err)
	}
}

func TestLookupByPrefix(t *testing.T) {
	s := openFile(t, filepath.Join(t.TempDir(), "state.db"))
	for _, id := range []string{"aabb", "aacc", "dd"} {
		p := samplePod()
		p.ID = id
		if err := s.PutPod(p); err != nil {
			t.Fatal(err)
		}
	}
	if p, err := s.FindPod("aab"); err != nil || p.ID != "aabb" {
		t.Errorf("FindPod(aab) = %s, %v", p.ID, err)
	}
	if _, err := s.FindPod("aa"); !errors.Is(err, ErrAmbiguous) {
		t.Errorf("FindPod(aa): %v, want ErrAmbiguous", err)
	}
	for _, id := range []string{"", "x", "aabbc"} {
		if _, err := s.FindPod(id); !errors.Is(err, ErrNotFound) {
			t.Errorf("FindPod(%q): %v, want ErrNotFound", id, err)
		}
	}
	// An ID that is also the beginning of another one.
	p := samplePod()
	p.ID = "d"
	if err := s.PutPod(p); err != nil {
		t.Fatal(err)
	}
	if p, err := s.FindPod("d"); err != nil || p.ID != "d" {
		t.Errorf("FindPod(d) = %s, %v", p.ID, err)
	}
	if err := s.PutContainer(Container{ID: "ccdd"}); err != nil {
		t.Fatal(err)
	}
	if c, err := s.FindContainer("cc"); err != nil || c.ID != "ccdd" {
		t.Errorf("FindContainer(cc) = %s, %v", c.ID, err)
	}
	for _, id := range []string{"", "aab", "aa", "x"} {
		if p, err := s.Pod(id); !errors.Is(err, ErrNotFound) {
			t.Errorf("Pod(%q) = %s, %v, want ErrNotFound", id, p.ID, err)
		}
		if _, err := s.UpdatePod(id, func(*Pod) error { return nil }); !errors.Is(err, ErrNotFound) {
			t.Errorf("UpdatePod(%q): %v, want ErrNotFound", id, err)
		}
	}
	if c, err := s.Container("cc"); !errors.Is(err, ErrNotFound) {
		t.Errorf("Container(cc) = %s, %v, want ErrNotFound", c.ID, err)
	}
	if err := s.DeletePod("dd"); err != nil {
		t.Fatal(err)
	}
	if err := s.DeletePod("dd"); err != nil {
		t.Errorf("second delete: %v", err)
	}
}

func TestOnlyOneProcessHoldsTheStore(t *testing.T) {
	file := filepath.Join(t.TempDir(), "state.db")
	s := openWith(t, file, byHand())
	if err := s.PutPod(samplePod()); err != nil {
		t.Fatal(err)
	}
	// What a process that comes second must not touch: a write and a cut under way.
	journal, err := os.OpenFile(file+".journal", os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = journal.WriteString("half an entry")
	if err := errors.Join(err, journal.Close(), os.WriteFile(file+".journal.tail", []byte("a tail"), 0o600)); err != nil {
		t.Fatal(err)
	}
	before := readFiles(t, file)
	if _, err := Open(file, discard); !errors.Is(err, ErrHeld) {
		t.Errorf("second open: %v, want ErrHeld", err)
	}
	if after := readFiles(t, file); !maps.EqualFunc(before, after, bytes.Equal) {
		t.Error("the second open has changed the files of the first")
	}
}

func TestNewerStoreIsRefused(t *testing.T) {
	file := filepath.Join(t.TempDir(), "state.db")
	s := openFile(t, file)
	if err := s.disk.db.Update(func(tx *bolt.Tx) error {
		return tx.Bucket(metaBucket).Put(versionKey, binary.BigEndian.AppendUint64(nil, 999))
	}); err != nil {
		t.Fatal(err)
	}
	s.Close()
	if _, err := Open(file, discard); !errors.Is(err, ErrTooNew) {
		t.Errorf("open of version 999: %v, want ErrTooNew", err)
	}
}

func TestStateOfAContainer(t *testing.T) {
	now := time.Now()
	for _, tc := range []struct {
		status ContainerStatus
		want   runtimeapi.ContainerState
	}{
		{ContainerStatus{}, runtimeapi.ContainerState_CONTAINER_UNKNOWN},
		{ContainerStatus{Created: true}, runtimeapi.ContainerState_CONTAINER_CREATED},
		{ContainerStatus{Created: true, StartedAt: now}, runtimeapi.ContainerState_CONTAINER_RUNNING},
		{ContainerStatus{Created: true, StartedAt: now, FinishedAt: now}, runtimeapi.ContainerState_CONTAINER_EXITED},
		{ContainerStatus{Created: true, FinishedAt: now}, runtimeapi.ContainerState_CONTAINER_EXITED},
	} {
		if got := (&Container{Status: tc.status}).State(); got != tc.want {
			t.Errorf("%+v: %s, want %s", tc.status, got, tc.want)
		}
	}
}

func TestContainersOfAPod(t *testing.T) {
	file := filepath.Join(t.TempDir(), "state.db")
	s := openFile(t, file)
	at := time.Unix(1700000000, 0)
	for i, id := range []string{"c3", "c1", "c2"} {
		for _, pod := range []string{"a", "b"} {
			if err := s.PutContainer(Container{ID: pod + id, PodID: pod, CreatedAt: at.Add(-time.Duration(i) * time.Second)}); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := s.DeleteContainer("ac1"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.UpdateContainer("ac3", func(c *Container) error { c.Status.ExitCode = 7; return nil }); err != nil {
		t.Fatal(err)
	}
	check := func(s *Store) {
		t.Helper()
		got := s.ContainersOf("a")
		if len(got) != 2 || got[0].ID != "ac2" || got[1].ID != "ac3" || got[1].Status.ExitCode != 7 {
			t.Errorf("containers of a: %+v", got)
		}
		if n := len(s.Containers()); n != 5 {
			t.Errorf("%d containers, want 5", n)
		}
		if got := s.ContainersOf("x"); len(got) != 0 {
			t.Errorf("containers of no pod: %+v", got)
		}
	}
	check(s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	check(openFile(t, file))
}

// copyFiles takes the files as a kill of the process leaves them.
func copyFiles(t *testing.T, file string) string {
	t.Helper()
	return writeFiles(t, readFiles(t, file))
}

// readFiles returns all files of a store by what their names end in.
func readFiles(t *testing.T, file string) map[string][]byte {
	t.Helper()
	names, err := filepath.Glob(file + "*")
	if err != nil {
		t.Fatal(err)
	}
	files := map[string][]byte{}
	for _, name := range names {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		files[strings.TrimPrefix(name, file)] = text
	}
	return files
}

func writeFiles(t *testing.T, files map[string][]byte) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "state.db")
	for suffix, text := range files {
		if err := os.WriteFile(to+suffix, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return to
}

func TestAKilledProcessLosesNothing(t *testing.T) {
	file := filepath.Join(t.TempDir(), "state.db")
	s := openWith(t, file, byHand())
	if err := s.PutPod(samplePod()); err != nil {
		t.Fatal(err)
	}
	other := samplePod()
	other.ID = "gone"
	if err := errors.Join(s.PutPod(other), s.DeletePod("gone")); err != nil {
		t.Fatal(err)
	}
	if _, err := s.UpdatePod("aabb", func(p *Pod) error { p.Status.Phase = PodReady; return nil }); err != nil {
		t.Fatal(err)
	}
	copied := openFile(t, copyFiles(t, file)) // at once: the database knows nothing yet
	if p, err := copied.Pod("aabb"); err != nil || p.Status.Phase != PodReady {
		t.Errorf("after a kill: %+v, %v", p, err)
	}
	if _, err := copied.Pod("gone"); !errors.Is(err, ErrNotFound) {
		t.Errorf("a deleted record after a kill: %v", err)
	}
}

// A power cut leaves the database as of some commit, and any beginning of any
// journal since: also one that is older than the database.
func TestAPowerCutLeavesAConsistentState(t *testing.T) {
	file := filepath.Join(t.TempDir(), "state.db")
	s := openWith(t, file, byHand())
	phases := []PodPhase{PodCreating, PodReady, PodStopping, PodNotReady}
	p := samplePod()
	for _, phase := range phases[:2] {
		p.Status.Phase = phase
		if err := s.PutPod(p); err != nil {
			t.Fatal(err)
		}
	}
	old, err := os.ReadFile(file + ".journal")
	if err != nil {
		t.Fatal(err)
	}
	if err := round(s); err != nil {
		t.Fatal(err)
	}
	committed := copyFiles(t, file) // holds Ready
	for _, phase := range phases[2:] {
		p.Status.Phase = phase
		if err := s.PutPod(p); err != nil {
			t.Fatal(err)
		}
	}
	journal, err := os.ReadFile(file + ".journal")
	if err != nil {
		t.Fatal(err)
	}
	check := func(what string, journal []byte, want ...PodPhase) {
		t.Helper()
		cut := copyFiles(t, committed)
		if err := os.WriteFile(cut+".journal", journal, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := Open(cut, discard)
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		defer s.Close()
		if p, err := s.Pod("aabb"); err != nil || !slices.Contains(want, p.Status.Phase) {
			t.Errorf("%s: phase %q, %v; want one of %q", what, p.Status.Phase, err, want)
		}
	}
	check("a journal older than the database", old, PodReady)
	check("the beginning of a journal older than the database", old[:readEntry(old, &entry{})], PodReady)
	check("the whole journal", journal, PodNotReady)
	for n := 0; n < len(journal); n += 7 {
		check(fmt.Sprintf("cut after %d bytes", n), journal[:n], PodReady, PodStopping)
		torn := append(slices.Clone(journal[:n]), make([]byte, len(journal)-n)...)
		check(fmt.Sprintf("zeros after %d bytes", n), torn, PodReady, PodStopping)
	}
}

func BenchmarkUpdatePod(b *testing.B) {
	s, err := Open(filepath.Join(b.TempDir(), "state.db"), discard)
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	if err := s.PutPod(samplePod()); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := s.UpdatePod("aabb", func(p *Pod) error { p.Handler = "x"; return nil }); err != nil {
			b.Fatal(err)
		}
	}
}

func benchStore(b *testing.B) *Store {
	b.Helper()
	s, err := Open(filepath.Join(b.TempDir(), "state.db"), discard)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { s.Close() })
	for i := range 500 {
		p := samplePod()
		p.ID = fmt.Sprintf("%064d", i)
		p.CreatedAt = time.Unix(int64(i*7919%500), 0)
		if err := s.PutPod(p); err != nil {
			b.Fatal(err)
		}
		for j := range 2 {
			if err := s.PutContainer(Container{ID: fmt.Sprintf("%063d%d", i, j), PodID: p.ID, CreatedAt: p.CreatedAt}); err != nil {
				b.Fatal(err)
			}
		}
	}
	return s
}

func BenchmarkPods(b *testing.B) {
	s := benchStore(b)
	for b.Loop() {
		s.Pods()
	}
}

func BenchmarkContainers(b *testing.B) {
	s := benchStore(b)
	for b.Loop() {
		s.Containers()
	}
}

func BenchmarkContainersOf(b *testing.B) {
	s := benchStore(b)
	id := fmt.Sprintf("%064d", 250)
	for b.Loop() {
		s.ContainersOf(id)
	}
}
