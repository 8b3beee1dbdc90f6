package idmap

import (
	"encoding/json"
	"errors"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestCovered(t *testing.T) {
	node := []Map{{0, 1000, 1}, {1, 100000, 1000}, {5000, 300000, 10}, {1001, 200000, 9}, {math.MaxUint32, 7, 1}}
	for _, c := range []struct {
		first, size uint32
		want        bool
	}{
		{0, 1, true}, {0, 1010, true}, {1, 1009, true}, {500, 0, true}, {9999, 0, true}, // nothing is everywhere
		{0, 1011, false}, {1010, 1, false}, {4999, 2, false}, {5000, 10, true}, {5000, 11, false},
		{math.MaxUint32, 1, true}, {math.MaxUint32, 2, false}, {math.MaxUint32, math.MaxUint32, false},
	} {
		if got := Covered(node, c.first, c.size); got != c.want {
			t.Errorf("%d+%d: %v", c.first, c.size, got)
		}
	}
	if Covered(nil, 0, 1) {
		t.Error("no maps cover an ID")
	}
}

func TestRead(t *testing.T) {
	file := filepath.Join(t.TempDir(), "uid_map")
	for text, want := range map[string][]Map{
		"":                              nil,
		"         0       1000     1\n": {{0, 1000, 1}},
		"0 0 4294967295\n":              {{0, 0, math.MaxUint32}},
		"0 1000 1\n1 100000 65536\n":    {{0, 1000, 1}, {1, 100000, 65536}},
	} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := Read(file); err != nil || !slices.Equal(got, want) {
			t.Errorf("%q: %v, %v", text, got, err)
		}
	}
	for _, text := range []string{"0 1000\n", "a b c\n", "0 0 4294967296\n", "-1 0 1\n"} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := Read(file); err == nil || !strings.Contains(err.Error(), file) {
			t.Errorf("%q: %v, %v", text, got, err)
		}
	}
	if _, err := Read(filepath.Join(t.TempDir(), "missing")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a missing file: %v", err)
	}
	if own, err := Read("/proc/self/uid_map"); err != nil || len(own) == 0 {
		t.Errorf("our own: %v, %v", own, err)
	}
}

func TestRoot(t *testing.T) {
	if host, ok := Root([]Map{{5, 1, 1}, {0, 1000, 0}, {0, 7, 3}}); !ok || host != 7 {
		t.Errorf("%d, %v", host, ok)
	}
	if _, ok := Root([]Map{{1, 1, 1}, {0, 1000, 0}}); ok {
		t.Error("root is not mapped")
	}
}

// TestStored: records of earlier servers are read.
func TestStored(t *testing.T) {
	b, err := json.Marshal(Map{1, 2, 3})
	if want := `{"Container":1,"Host":2,"Size":3}`; err != nil || string(b) != want {
		t.Errorf("%s, %v; want %s", b, err, want)
	}
}

func TestLast(t *testing.T) {
	for _, c := range []struct {
		maps []Map
		want uint32
	}{
		{nil, 0}, {[]Map{{0, 1000, 1}}, 0}, {[]Map{{0, 1000, 1}, {1, 100000, 65536}}, 65536},
		{[]Map{{1, 100000, 10}, {0, 1000, 1}, {500, 1, 0}}, 10}, {[]Map{{0, 0, math.MaxUint32}}, math.MaxUint32 - 1},
		{[]Map{{1, 1, math.MaxUint32}}, math.MaxUint32 - 1},
	} {
		if got := Last(c.maps); got != c.want {
			t.Errorf("%v: %d, want %d", c.maps, got, c.want)
		}
	}
}
