package lists

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestRead(t *testing.T) {
	applies := func(condition string) (bool, error) {
		if condition == "odd" {
			return false, errors.New("unknown condition")
		}
		return condition == "here", nil
	}
	for name, c := range map[string]struct {
		in   string
		want map[string]string
		err  string
	}{
		"entries":           {"# what\n\na test\twhy it fails\nanother\twhy\n", map[string]string{"a test": "why it fails", "another": "why"}, ""},
		"conditions":        {"a\twhy\there\nb\twhy\tthere\n", map[string]string{"a": "why"}, ""},
		"no reason":         {"a\twhy\nb\n", nil, ":2: want a name"},
		"twice":             {"a\twhy\tthere\na\twhy\n", nil, `:2: "a" is listed twice`},
		"unknown condition": {"a\twhy\todd\n", nil, ":1: unknown condition"},
	} {
		file := filepath.Join(t.TempDir(), "list")
		if err := os.WriteFile(file, []byte(c.in), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := Read(file, applies)
		if c.err == "" && (err != nil || !maps.Equal(got, c.want)) || c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)) {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
}
