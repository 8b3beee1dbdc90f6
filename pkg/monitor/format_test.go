package monitor

import (
	"bytes"
	"strings"
	"testing"
)

// TestFormat: lines and pieces are those of containerd (its TestLongContainerLogs), however
// the output comes.
func TestFormat(t *testing.T) {
	const prefix = "2026-01-02T03:04:05.000000006Z stdout "
	const stamp = 1767323045000000006
	long := strings.Repeat("x", maxPiece)
	for name, c := range map[string]struct{ in, want, rest string }{
		"nothing":        {"", "", ""},
		"lines":          {"a\n\nb\n", "F a|F |F b|", ""},
		"no end":         {"a\nb", "F a|", "b"},
		"as long":        {long + "\n", "F " + long + "|", ""},
		"as long no end": {long, "", long},
		"one more":       {long + "y\n", "P " + long + "|F y|", ""},
		"twice as long":  {long + long + "\nz\n", "P " + long + "|F " + long + "|F z|", ""},
		"a zero byte":    {"a\x00b\r\n", "F a\x00b\r|", ""},
	} {
		var out bytes.Buffer
		f := newFormatter(nil, stamp, "stdout", func(b []byte) error { out.Write(b); return nil })
		rest, err := f.lines([]byte(c.in))
		want := ""
		for line := range strings.SplitSeq(strings.TrimSuffix(c.want, "|"), "|") {
			if line != "" {
				want += prefix + line + "\n"
			}
		}
		if err != nil || out.String() != want || string(rest) != c.rest {
			t.Errorf("%s: %.200q, rest %.20q, %v", name, out.String(), rest, err)
		}
		if left := remainder([]byte(c.in)); string(left) != c.rest {
			t.Errorf("%s: the remainder is %.20q of %d bytes", name, left, len(left))
		}
	}
}
