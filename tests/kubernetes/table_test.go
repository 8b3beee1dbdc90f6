package kubernetes

import (
	"bufio"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

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
		if ok := rows[r.name] != nil || joinRows[r.name] != nil || hostRows[r.name] != nil; ok != r.built {
			t.Errorf("%s: asserted %v, said to be %v", r.name, ok, r.built)
		}
	}
	for _, list := range []map[string]func(*cluster){rows, joinRows, hostRows} {
		for name := range list {
			if !seen[name] {
				t.Errorf("%s is not in table.txt", name)
			}
		}
	}
}

// TestCluster asserts the table's rows, in its order: some use what the ones before them
// have made.
func TestCluster(t *testing.T) {
	c := startCluster(t, "", nil)
	assert(t, c, rows)
	if *keep {
		t.Logf("kept: HOME=%s XDG_RUNTIME_DIR=%s", c.Home, c.XDG)
		_, _ = bufio.NewReader(os.Stdin).ReadString(0)
	}
}

// assert asserts rows.
func assert(t *testing.T, c *cluster, rows map[string]func(*cluster)) {
	want, err := regexp.Compile(*row)
	must(t, err)
	asserted := 0
	for _, r := range table(t) {
		if rows[r.name] == nil || !want.MatchString(r.name) {
			continue
		}
		t.Run(r.name, func(t *testing.T) {
			sub := *c
			sub.t, sub.Node = t, c.For(t)
			rows[r.name](&sub)
			asserted++
		})
	}
	t.Logf("%d rows asserted of %d", asserted, len(rows))
}
