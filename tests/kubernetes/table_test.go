package kubernetes

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"bufio"

	"github.com/subpod/subpod/tests/node"
)

// A tableRow is a line of table.txt.
type tableRow struct {
	name, what string
	built      bool
}

// table reads table.txt.
func table(t *testing.T) []tableRow {
	t.Helper()
	f, err := os.Open(filepath.Join(node.Tree(), "tests/kubernetes/table.txt"))
	must(t, err)
	defer f.Close()
	var rows []tableRow
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		line := strings.TrimSpace(lines.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		name, what, ok := strings.Cut(line, " ")
		name, todo := strings.CutPrefix(name, "-")
		if !ok || name == "" {
			t.Fatalf("table.txt: no name and text: %q", line)
		}
		rows = append(rows, tableRow{name, strings.TrimSpace(what), !todo})
	}
	must(t, lines.Err())
	return rows
}

// TestTable: each row that is said to be asserted is, and no other is.
func TestTable(t *testing.T) {
	seen := map[string]bool{}
	for _, r := range table(t) {
		if seen[r.name] {
			t.Errorf("%s is there twice", r.name)
		}
		seen[r.name] = true
		if _, ok := rows[r.name]; ok != r.built {
			t.Errorf("%s: asserted %v, said to be %v", r.name, ok, r.built)
		}
	}
	for name := range rows {
		if !seen[name] {
			t.Errorf("%s is not in table.txt", name)
		}
	}
}

// TestCluster asserts the table's rows, in its order: some use what the ones before them
// have made.
func TestCluster(t *testing.T) {
	want, err := regexp.Compile(*row)
	must(t, err)
	c := startCluster(t)
	asserted, missing := 0, 0
	for _, r := range table(t) {
		if !r.built {
			missing++
			continue
		}
		if !want.MatchString(r.name) {
			continue
		}
		t.Run(r.name, func(t *testing.T) {
			sub := *c
			sub.t, sub.Node = t, c.For(t)
			rows[r.name](&sub)
			asserted++
		})
	}
	t.Logf("%d rows asserted, %d of the table not yet built", asserted, missing)
	if *keep {
		t.Logf("kept: HOME=%s XDG_RUNTIME_DIR=%s", c.Home, c.XDG)
		_, _ = bufio.NewReader(os.Stdin).ReadString(0)
	}
}
