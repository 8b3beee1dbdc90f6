package arch

import (
	"go/ast"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// surfaces are the sections of docs/security.md that have a table of attacks.
var surfaces = []string{"Images", "Archives", "Registries", "Manifests", "Containers", "Exec", "Network", "Clients", "Neighbours on the host", "The node"}

var testName = regexp.MustCompile("`(Test[A-Za-z0-9_]*)(/[^`]*)?`")

// TestAttacks: each row of docs/security.md's tables names a test that exists, and each
// test of tests/attack has a row.
func TestAttacks(t *testing.T) {
	text, err := os.ReadFile("../../docs/security.md")
	if err != nil {
		t.Fatal(err)
	}
	attacks, all := map[string]bool{}, map[string]bool{}
	sources, _ := load(t)
	for _, s := range sources {
		if !s.test {
			continue
		}
		for _, d := range s.file.Decls {
			if f, ok := d.(*ast.FuncDecl); ok && f.Recv == nil && strings.HasPrefix(f.Name.Name, "Test") && f.Name.Name != "TestMain" {
				all[f.Name.Name] = true
				attacks[f.Name.Name] = attacks[f.Name.Name] || s.dir == "tests/attack"
			}
		}
	}
	named := map[string]bool{}
	for _, problem := range attackRows(string(text), all, named) {
		t.Error(problem)
	}
	for name, ours := range attacks {
		if ours && !named[name] {
			t.Errorf("docs/security.md has no row for %s of tests/attack", name)
		}
	}
}

// attackRows returns what is wrong with the tables, and adds the tests that they name.
func attackRows(text string, exist, named map[string]bool) (problems []string) {
	section, found := "", []string{}
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if name, ok := strings.CutPrefix(line, "## "); ok {
			section = name
			found = append(found, name)
		}
		if !slices.Contains(surfaces, section) || !strings.HasPrefix(line, "|") || strings.HasPrefix(line, "|---") || strings.HasPrefix(line, "| attack |") {
			continue
		}
		cells := strings.Split(strings.Trim(line, "|"), "|")
		names := testName.FindAllStringSubmatch(cells[len(cells)-1], -1)
		if len(cells) != 4 || len(names) == 0 {
			problems = append(problems, section+": a row is not attack, class, what stops it, test: "+line)
		}
		for _, n := range names {
			if named[n[1]] = true; !exist[n[1]] {
				problems = append(problems, section+": there is no test "+n[1])
			}
		}
	}
	for _, s := range surfaces {
		if !slices.Contains(found, s) {
			problems = append(problems, "docs/security.md has no section "+s)
		}
	}
	return problems
}

func TestAttackRows(t *testing.T) {
	good := "## " + strings.Join(surfaces, "\n## ") + "\n| attack | class | what stops it | test |\n|---|---|---|---|\n| a | b | c | `TestAttackRows/x` |\n"
	exist := map[string]bool{"TestAttackRows": true}
	if p := attackRows(good, exist, map[string]bool{}); len(p) != 0 {
		t.Errorf("problems with a good table: %v", p)
	}
	for _, bad := range []string{
		strings.Replace(good, "AttackRows/x", "NoSuch", 1), strings.Replace(good, "| b ", "", 1), strings.Replace(good, "`Test", "Test", 1),
		strings.Replace(good, "## Exec", "## Other", 1),
	} {
		if p := attackRows(bad, exist, map[string]bool{}); len(p) != 1 {
			t.Errorf("%d problems, want one: %v", len(p), p)
		}
	}
}
