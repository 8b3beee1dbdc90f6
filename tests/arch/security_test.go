package arch

import (
	"go/ast"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/subpod/subpod/tests/attack/defences"
)

// surfaces are the sections of docs/security.md that have a table of attacks.
var surfaces = []string{"Images", "Archives", "Registries", "Manifests", "Containers", "Exec", "Network", "Clients", "Neighbours on the host", "The node"}

var testName = regexp.MustCompile("`(Test[A-Za-z0-9_]*)(/[^`]*)?`")

// TestAttacks: each row of docs/security.md's tables names a test that exists, and the
// defences of tests/attack/defences without which the attack gets through, or says why
// none can be switched off; each test of tests/attack, and each defence, has a row.
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
	list, err := defences.Load()
	if err != nil {
		t.Fatal(err)
	}
	tested := map[string][]string{}
	for _, d := range list {
		for _, name := range d.Tests {
			top, _, _ := strings.Cut(name, "/")
			tested[d.ID] = append(tested[d.ID], top)
		}
	}
	named := map[string]bool{}
	for _, problem := range attackRows(string(text), all, named, tested) {
		t.Error(problem)
	}
	for id := range tested {
		if !strings.Contains(string(text), "`"+id+"`") {
			t.Errorf("docs/security.md has no row for the defence %s", id)
		}
	}
	for name, ours := range attacks {
		if ours && !named[name] {
			t.Errorf("docs/security.md has no row for %s of tests/attack", name)
		}
	}
}

var defenceName = regexp.MustCompile("`([a-z0-9]+(-[a-z0-9]+)*)`")

// attackRows returns what is wrong with the tables, and adds the tests that they name.
// tested has the tests of each defence.
func attackRows(text string, exist, named map[string]bool, tested map[string][]string) (problems []string) {
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
		if len(cells) != 5 || !testName.MatchString(cells[3]) || strings.TrimSpace(cells[4]) == "" {
			problems = append(problems, section+": a row is not attack, class, what stops it, test, without it: "+line)
			continue
		}
		names := testName.FindAllStringSubmatch(cells[3], -1)
		for _, d := range defenceName.FindAllStringSubmatch(cells[4], -1) {
			fails := func(n []string) bool { return slices.Contains(tested[d[1]], n[1]) }
			if !slices.ContainsFunc(names, fails) {
				problems = append(problems, section+": no test of the row fails without the defence "+d[1]+": "+line)
			}
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
	good := "## " + strings.Join(surfaces, "\n## ") + "\n| attack | class | what stops it | test | without it |\n|---|---|---|---|---|\n| a | b | c | `TestAttackRows/x` | `some-thing` |\n"
	exist, tested := map[string]bool{"TestAttackRows": true}, map[string][]string{"some-thing": {"TestAttackRows"}}
	if p := attackRows(good, exist, map[string]bool{}, tested); len(p) != 0 {
		t.Errorf("problems with a good table: %v", p)
	}
	for _, bad := range []string{
		strings.Replace(good, "`some-thing`", "the kernel's | `TestNoSuch`", 1), strings.Replace(good, "| b ", "", 1), strings.Replace(good, "`Test", "Test", 1),
		strings.Replace(good, "## Exec", "## Other", 1), strings.Replace(good, "some-thing", "other-thing", 1), strings.Replace(good, "`some-thing`", "", 1),
		strings.Replace(good, "`TestAttackRows/x` | `some-thing`", "`TestNoSuch` | the kernel's", 1),
	} {
		if p := attackRows(bad, exist, map[string]bool{}, tested); len(p) != 1 {
			t.Errorf("%d problems, want one: %v", len(p), p)
		}
	}
}
