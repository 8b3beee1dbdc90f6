package arch

import (
	"maps"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// TestUnit: 'make unit' leaves out the packages whose tests need namespaces, and only
// those. What it runs must pass anywhere, so a package gets into the list (NAMESPACES in
// the Makefile) by what its tests do.
func TestUnit(t *testing.T) {
	makefile, err := os.ReadFile("../../Makefile")
	if err != nil {
		t.Fatal(err)
	}
	match := regexp.MustCompile(`(?m)^NAMESPACES := (.*)$`).FindSubmatch(makefile)
	if match == nil {
		t.Fatal("the Makefile has no NAMESPACES")
	}
	listed := map[string]bool{}
	for _, dir := range strings.Fields(string(match[1])) {
		listed[dir] = true
	}
	// One test of pkg/cgroup does, and is left out by name (NOT_UNIT).
	listed["pkg/cgroup"] = true
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
