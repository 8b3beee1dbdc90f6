package arch

import (
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// notUnit are tests that 'make unit' leaves out by name (NOT_UNIT in the Makefile): the
// others of their packages run anywhere.
var notUnit = map[string]string{
	"pkg/cgroup": "TestDelegatedTree",   // root delegates a cgroup to it
	"pkg/state":  "TestAFullFileSystem", // fills a tmpfs of its own
}

// TestUnit: 'make unit' leaves out the packages whose tests need namespaces, and only
// those. What it runs must pass anywhere, so a package gets into the list (NAMESPACES in
// the Makefile) by what its tests do.
func TestUnit(t *testing.T) {
	makefile, err := os.ReadFile("../../Makefile")
	if err != nil {
		t.Fatal(err)
	}
	setting := func(name string) string {
		match := regexp.MustCompile(`(?m)^` + name + ` := (.*)$`).FindSubmatch(makefile)
		if match == nil {
			t.Fatalf("the Makefile has no %s", name)
		}
		return string(match[1])
	}
	listed := map[string]bool{}
	for _, dir := range strings.Fields(setting("NAMESPACES")) {
		listed[dir] = true
	}
	skipped := slices.Sorted(maps.Values(notUnit))
	if got := setting("NOT_UNIT"); got != "^("+strings.Join(skipped, "|")+")$$" {
		t.Errorf("NOT_UNIT in the Makefile is %s, for %q", got, skipped)
	}
	for dir := range notUnit {
		listed[dir] = true
	}
	sources, _ := load(t)
	need, tested := map[string]string{}, map[string]bool{}
	for _, s := range sources {
		if !s.test {
			continue
		}
		tested[s.dir] = true
		if why := namespaces(s); why != "" && (!below(s.dir, "tests") || s.dir == "tests/leak" || s.dir == "tests/node") {
			need[s.dir] = why
		}
	}
	for _, dir := range slices.Sorted(maps.Keys(need)) {
		if !listed[dir] {
			t.Errorf("tests of %s need namespaces (%s): add it to NAMESPACES in the Makefile", dir, need[dir])
		}
	}
	for dir := range listed {
		if !tested[dir] {
			t.Errorf("NAMESPACES in the Makefile has %s, which has no tests", dir)
		}
	}
}

// namespaces returns what shows that a test file needs namespaces; "" when nothing does.
func namespaces(s source) string {
	for _, spec := range s.file.Imports {
		if path, err := strconv.Unquote(spec.Path.Value); err == nil && path == module+"/tests/nstest" {
			return "it imports tests/nstest"
		}
	}
	text, err := os.ReadFile("../../" + s.path)
	if err != nil {
		return err.Error()
	}
	for _, word := range []string{"CLONE_" + "NEWUSER", "exec.Command(\"" + "unshare"} {
		if strings.Contains(string(text), word) {
			return "it has " + word
		}
	}
	return ""
}

// TestChangelog: a fragment has a kind, a summary and a text.
func TestChangelog(t *testing.T) {
	form := regexp.MustCompile(`^(Security|Added|Changed|Removed|Fixed): [^\n]+[^.\n]\n\n(?s:.+)\n$`)
	fragments, err := filepath.Glob("../../docs/changelog/unreleased/*.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range fragments {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if !form.Match(text) {
			t.Errorf("%s: want \"Kind: summary\" (Security, Added, Changed, Removed, Fixed; no full stop), an empty line, and a text", path)
		}
	}
}

// TestDecisions: each decision record has its row in the list, and the form of the others.
func TestDecisions(t *testing.T) {
	list, err := os.ReadFile("../../docs/decisions/README.md")
	if err != nil {
		t.Fatal(err)
	}
	records, err := filepath.Glob("../../docs/decisions/[0-9]*.md")
	if err != nil {
		t.Fatal(err)
	}
	if len(records) < 10 {
		t.Errorf("%d decision records", len(records))
	}
	for _, path := range records {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		name := filepath.Base(path)
		if !strings.Contains(string(list), "("+name+")") {
			t.Errorf("docs/decisions/README.md has no row for %s", name)
		}
		for _, part := range []string{"**Question.**", "**Decision.**", "**Consequences.**", "**Looked at.**"} {
			if !strings.Contains(string(text), part) {
				t.Errorf("%s has no %s", path, part)
			}
		}
	}
}

// TestLinks: relative links of the documentation lead to a file.
func TestLinks(t *testing.T) {
	link := regexp.MustCompile(`\]\(([^)#:\s]+)(#[^)]*)?\)`)
	var pages []string
	for _, pattern := range []string{"../../*.md", "../../docs/*.md", "../../docs/*/*.md", "../../.github/*.md"} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		pages = append(pages, found...)
	}
	count := 0
	for _, page := range pages {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, match := range link.FindAllStringSubmatch(string(text), -1) {
			count++
			if _, err := os.Stat(filepath.Join(filepath.Dir(page), match[1])); err != nil {
				t.Errorf("%s: the link to %s leads nowhere", page, match[1])
			}
		}
	}
	if count < 20 {
		t.Errorf("only %d links in %d pages: the search is wrong", count, len(pages))
	}
}
