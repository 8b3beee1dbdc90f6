package state

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func open(t *testing.T, file string) *Store {
	t.Helper()
	s, err := Open(file, slog.Default())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
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
	s := open(t, file)
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

	s = open(t, file)
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
	s := open(t, filepath.Join(t.TempDir(), "state.db"))
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
	s := open(t, filepath.Join(t.TempDir(), "state.db"))
	for _, id := range []string{"aabb", "aacc", "dd"} {
		p := samplePod()
		p.ID = id
		if err := s.PutPod(p); err != nil {
			t.Fatal(err)
		}
	}
	if p, err := s.Pod("aab"); err != nil || p.ID != "aabb" {
		t.Errorf("Pod(aab) = %s, %v", p.ID, err)
	}
	if _, err := s.Pod("aa"); !errors.Is(err, ErrAmbiguous) {
		t.Errorf("Pod(aa): %v, want ErrAmbiguous", err)
	}
	for _, id := range []string{"", "x"} {
		if _, err := s.Pod(id); !errors.Is(err, ErrNotFound) {
			t.Errorf("Pod(%q): %v, want ErrNotFound", id, err)
		}
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
	open(t, file)
	if _, err := Open(file, slog.Default()); !errors.Is(err, ErrHeld) {
		t.Errorf("second open: %v, want ErrHeld", err)
	}
}

func TestNewerStoreIsRefused(t *testing.T) {
	file := filepath.Join(t.TempDir(), "state.db")
	s := open(t, file)
	if err := s.disk.db.Update(func(tx *bolt.Tx) error {
		return tx.Bucket(metaBucket).Put(versionKey, binary.BigEndian.AppendUint64(nil, 999))
	}); err != nil {
		t.Fatal(err)
	}
	s.Close()
	if _, err := Open(file, slog.Default()); !errors.Is(err, ErrTooNew) {
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

// copyFiles takes the files as a kill of the process leaves them.
func copyFiles(t *testing.T, file string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "state.db")
	for _, suffix := range []string{"", ".journal"} {
		text, err := os.ReadFile(file + suffix)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(to+suffix, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return to
}

func TestAKilledProcessLosesNothing(t *testing.T) {
	file := filepath.Join(t.TempDir(), "state.db")
	s := open(t, file)
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
	copied := open(t, copyFiles(t, file)) // at once: the database knows nothing yet
	if p, err := copied.Pod("aabb"); err != nil || p.Status.Phase != PodReady {
		t.Errorf("after a kill: %+v, %v", p, err)
	}
	if _, err := copied.Pod("gone"); !errors.Is(err, ErrNotFound) {
		t.Errorf("a deleted record after a kill: %v", err)
	}
}

// A power cut leaves the database as of some flush, and any beginning of any
// journal since: also one that is older than the database.
func TestAPowerCutLeavesAConsistentState(t *testing.T) {
	file := filepath.Join(t.TempDir(), "state.db")
	s := open(t, file)
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
	s.disk.flush()
	flushed := copyFiles(t, file) // holds Ready
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
		cut := copyFiles(t, flushed)
		if err := os.WriteFile(cut+".journal", journal, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := Open(cut, slog.Default())
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		defer s.Close()
		if p, err := s.Pod("aabb"); err != nil || !slices.Contains(want, p.Status.Phase) {
			t.Errorf("%s: phase %q, %v; want one of %q", what, p.Status.Phase, err, want)
		}
	}
	check("a journal older than the database", old, PodReady)
	check("the whole journal", journal, PodNotReady)
	for n := 0; n < len(journal); n += 7 {
		check(fmt.Sprintf("cut after %d bytes", n), journal[:n], PodReady, PodStopping)
		torn := append(slices.Clone(journal[:n]), make([]byte, len(journal)-n)...)
		check(fmt.Sprintf("zeros after %d bytes", n), torn, PodReady, PodStopping)
	}
}

func TestWritesGoOnWhileTheDatabaseFollows(t *testing.T) {
	file := filepath.Join(t.TempDir(), "state.db")
	s := open(t, file)
	for i := range 500 {
		p := samplePod()
		p.ID = fmt.Sprintf("pod%03d", i%50)
		p.Handler = fmt.Sprint(i)
		if err := s.PutPod(p); err != nil {
			t.Fatal(err)
		}
		if i%40 == 0 {
			s.disk.flush()
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(file + ".journal"); err != nil || st.Size() != 0 {
		t.Errorf("the journal after Close: %v, %v", st, err)
	}
	s = open(t, file)
	for i := range 50 {
		if p, err := s.Pod(fmt.Sprintf("pod%03d", i)); err != nil || p.Handler != fmt.Sprint(450+i) {
			t.Errorf("pod%03d: %q, %v", i, p.Handler, err)
		}
	}
}

func BenchmarkUpdatePod(b *testing.B) {
	s, err := Open(filepath.Join(b.TempDir(), "state.db"), slog.Default())
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
