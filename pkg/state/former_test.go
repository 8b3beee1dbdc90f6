package state

import (
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"

	"github.com/subpod/subpod/pkg/state/format"
	"github.com/subpod/subpod/tests/former"
)

// What a record of a former version means never changes, so that -update writes it only
// where it is missing.
var update = flag.Bool("update", false, "write the meaning of new fixtures, and testdata/shape.txt")

// TestFormerVersions: the state of every former version is read, and means what it meant.
// A field that is renamed, or changes its type or place, needs a migration (migrate.go),
// or this fails: records that are on people's disks would lose it.
func TestFormerVersions(t *testing.T) {
	seen := map[uint64]bool{}
	for _, version := range former.Versions(t) {
		t.Run(version, func(t *testing.T) {
			dir := t.TempDir()
			former.Unpack(t, version, dir)
			file := filepath.Join(dir, "state.db")
			stored, stateVersion := storedRows(t, file)
			seen[stateVersion] = true
			s, err := open(file, discard, byHand())
			if err != nil {
				t.Fatal(err)
			}
			if stateVersion == format.Version {
				nothingLost(t, stored, s)
			}
			got := meaning(s)
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			if again, err := open(file, discard, byHand()); err != nil {
				t.Errorf("opened again: %v", err)
			} else {
				if m := meaning(again); m != got {
					t.Errorf("opened again, the records are other ones:\n%s", m)
				}
				again.Close()
			}
			want, err := os.ReadFile(former.Meaning(version))
			if os.IsNotExist(err) && *update {
				want = []byte(got)
				err = os.WriteFile(former.Meaning(version), want, 0o644)
			}
			if err != nil {
				t.Fatal(err)
			}
			if got != string(want) {
				t.Errorf("the records of %s mean something else now:\n%s\nwant:\n%s", version, got, want)
			}
		})
	}
	for v := uint64(1); v <= format.Version; v++ {
		if !seen[v] {
			t.Errorf("no state of version %d among the former ones: tests/former/record.sh makes it", v)
		}
	}
}

// storedRows returns the rows as they stand in the files, and the version of the state.
func storedRows(t *testing.T, file string) (rows map[row][]byte, version uint64) {
	t.Helper()
	db, err := bolt.Open(file, 0o600, &bolt.Options{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	rows = map[row][]byte{}
	if err := db.View(func(tx *bolt.Tx) error {
		version = versionOf(tx.Bucket(metaBucket))
		for _, bucket := range []string{podBucket, containerBucket} {
			_ = tx.Bucket([]byte(bucket)).ForEach(func(k, v []byte) error {
				rows[row{bucket, string(k)}] = slices.Clone(v)
				return nil
			})
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(file + ".journal")
	if err != nil {
		t.Fatal(err)
	}
	entries := 0
	for len(text) > 0 {
		var e entry
		n := readEntry(text, &e)
		if n == 0 {
			t.Fatalf("the journal ends in %d bytes that are no entry", len(text))
		}
		text, entries = text[n:], entries+1
		rows[row{e.Bucket, e.Key}] = e.Value
		if e.Value == nil {
			delete(rows, row{e.Bucket, e.Key})
		}
	}
	if entries == 0 {
		t.Error("the journal is empty: the fixture shows nothing of it")
	}
	return rows, version
}

// nothingLost compares what is stored with what the records say that were read from it.
func nothingLost(t *testing.T, stored map[row][]byte, s *Store) {
	t.Helper()
	now := map[row]any{}
	for _, p := range s.Pods() {
		now[row{podBucket, p.ID}] = p
	}
	for _, c := range s.Containers() {
		now[row{containerBucket, c.ID}] = c
	}
	if len(now) != len(stored) {
		t.Errorf("%d records are read of %d that are stored", len(now), len(stored))
	}
	for key, text := range stored {
		var want, got any
		b, err := json.Marshal(now[key])
		if err == nil {
			err = json.Unmarshal(b, &got)
		}
		if err == nil {
			err = json.Unmarshal(text, &want)
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, lost := range lostFrom("", want, got) {
			t.Errorf("%s %s: %s", key.bucket, key.key[:12], lost)
		}
	}
}

// lostFrom lists what is in want and not in got.
func lostFrom(path string, want, got any) (lost []string) {
	switch w := want.(type) {
	case map[string]any:
		g, ok := got.(map[string]any)
		if !ok {
			return []string{fmt.Sprintf("%s is %v, was an object", path, got)}
		}
		for _, name := range slices.Sorted(maps.Keys(w)) {
			lost = append(lost, lostFrom(path+"."+name, w[name], g[name])...)
		}
	case []any:
		g, ok := got.([]any)
		if !ok || len(g) != len(w) {
			return []string{fmt.Sprintf("%s is %v, was %v", path, got, w)}
		}
		for i := range w {
			lost = append(lost, lostFrom(fmt.Sprintf("%s[%d]", path, i), w[i], g[i])...)
		}
	default:
		// What is zero may be left out.
		if w != nil && !reflect.ValueOf(w).IsZero() && !reflect.DeepEqual(w, got) {
			lost = append(lost, fmt.Sprintf("%s is %v, was %v", path, got, w))
		}
	}
	return lost
}

// meaning is what the records say, in today's words.
func meaning(s *Store) string {
	var out strings.Builder
	config := func(m proto.Message) string {
		// The text form puts spaces at random, to keep people from comparing it.
		return strings.Join(strings.Fields(prototext.MarshalOptions{}.Format(m)), " ")
	}
	for _, p := range s.Pods() {
		fmt.Fprintf(&out, "pod %s %s: %s, handler %q, addresses %v, supervised %t, on node %.8s\n",
			p.Config.V.GetMetadata().GetName(), p.ID, p.Status.Phase, p.RuntimeHandler(), p.IPs(), p.Supervised(), p.Allocated.Node)
		fmt.Fprintf(&out, "\tconfig %s\n\tnetwork namespace %s, pause process %d\n", config(p.Config.V), p.Allocated.Pins.Net, p.PausePID())
		if p.Workload != nil {
			b, _ := json.Marshal(p.Workload)
			fmt.Fprintf(&out, "\tworkload %s\n\tdone %t, failed %t, started %s\n", b, p.Supervision.Done, p.Supervision.Failed, p.Supervision.StartedAt.UTC().Format(time.RFC3339Nano))
		}
		for _, c := range s.ContainersOf(p.ID) {
			fmt.Fprintf(&out, "\tcontainer %s %s: %s, attempt %d, exit code %d %s, started %s, stops by %v\n",
				c.Config.V.GetMetadata().GetName(), c.ID, c.StateWord(), c.Attempt(), c.Status.ExitCode, c.Status.Reason,
				c.Status.StartedAt.UTC().Format(time.RFC3339Nano), c.StopSignal())
			a, cfg := c.Allocated, proto.CloneOf(c.Config.V)
			if sc := cfg.GetLinux().GetSecurityContext(); sc != nil {
				sc.MaskedPaths, sc.ReadonlyPaths = nil, nil // long, and the same for all
			}
			fmt.Fprintf(&out, "\t\tuser %v, args %q, image %s (%s), rootfs %s, log %s\n\t\tconfig %s\n",
				a.User, a.Args, a.ImageName, a.ImageID, a.Rootfs, a.LogPath, config(cfg))
		}
	}
	return out.String()
}

// TestShape: no stored field is renamed, retyped or taken away without a migration. A new
// one is entered into testdata/shape.txt by -update, and from then on protected, too.
func TestShape(t *testing.T) {
	lines := slices.Concat(shape("pod", reflect.TypeFor[Pod](), nil), shape("container", reflect.TypeFor[Container](), nil))
	slices.Sort(lines)
	file := filepath.Join("testdata", "shape.txt")
	text, err := os.ReadFile(file)
	if err != nil && !*update {
		t.Fatal(err)
	}
	old := strings.Split(strings.TrimSpace(string(text)), "\n")
	for _, line := range old {
		if line != "" && !slices.Contains(lines, line) {
			t.Errorf("stored, but no longer read: %s (it needs a migration, a version of the state and a fixture; then take the line away)", line)
		}
	}
	for _, line := range lines {
		if !slices.Contains(old, line) && !*update {
			t.Errorf("a new field: %s (go test ./pkg/state -update)", line)
		}
	}
	if *update && !t.Failed() {
		if err := os.WriteFile(file, []byte(strings.Join(lines, "\n")+"\n"), 0o644); err != nil {
			t.Error(err)
		}
	}
}

// shape lists the JSON of a type: a line for each value, with where it is and what.
func shape(path string, typ reflect.Type, inside []reflect.Type) []string {
	switch typ.Kind() {
	case reflect.Pointer:
		return shape(path, typ.Elem(), inside)
	case reflect.Slice, reflect.Array:
		if typ.Elem().Kind() != reflect.Uint8 {
			return shape(path+"[]", typ.Elem(), inside)
		}
	case reflect.Map:
		return shape(path+"{"+typ.Key().String()+"}", typ.Elem(), inside)
	case reflect.Struct:
		if !encodesItself(typ) && !slices.Contains(inside, typ) {
			var lines []string
			for i := range typ.NumField() {
				f := typ.Field(i)
				name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
				switch {
				case name == "-" || !f.IsExported() && !f.Anonymous:
				case f.Anonymous && name == "":
					lines = append(lines, shape(path, f.Type, append(inside, typ))...)
				default:
					if name == "" {
						name = f.Name
					}
					lines = append(lines, shape(path+"."+name, f.Type, append(inside, typ))...)
				}
			}
			return lines
		}
	}
	if encodesItself(typ) || typ.Kind() == reflect.Slice || typ.Kind() == reflect.Struct {
		return []string{path + " " + typ.String()}
	}
	// A type with a name of its own is stored as what it is made of.
	return []string{path + " " + typ.Kind().String()}
}

func encodesItself(typ reflect.Type) bool {
	for _, i := range []reflect.Type{reflect.TypeFor[json.Marshaler](), reflect.TypeFor[interface{ MarshalText() ([]byte, error) }]()} {
		if typ.Implements(i) || reflect.PointerTo(typ).Implements(i) {
			return true
		}
	}
	return false
}
