package cli

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// TestBoundedLog: the daemon's log in the run directory keeps its last lines, and a file
// of the user's keeps all.
func TestBoundedLog(t *testing.T) {
	for name, own := range map[string]bool{"daemon.log": true, "other.log": false} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, name)
			f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			b := &boundedLog{file: f, path: filepath.Join(dir, "daemon.log")}
			line := bytes.Repeat([]byte("x"), 1000)
			total := 0
			for i := range 2*maxLog/1000 + 1 {
				n, err := fmt.Fprintf(b, "%06d %s\n", i, line)
				if err != nil {
					t.Fatal(err)
				}
				total += n
			}
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if !own && len(text) != total || own && (len(text) > maxLog+logCheck+2000 || len(text) < keptLog/2) {
				t.Errorf("%d of %d bytes", len(text), total)
			}
			lines := bytes.Split(bytes.TrimSpace(text), []byte("\n"))
			for i, l := range lines {
				if len(l) != len(line)+7 {
					t.Errorf("line %d has %d bytes", i, len(l))
				}
			}
			if want := fmt.Appendf(nil, "%06d", 2*maxLog/1000); !bytes.HasPrefix(lines[len(lines)-1], want) {
				t.Errorf("the last line is %.10q, want %s", lines[len(lines)-1], want)
			}
		})
	}
}
