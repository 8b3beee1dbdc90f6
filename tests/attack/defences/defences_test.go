package defences

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var (
	off      = flag.String("off", "", "switch off the defences whose IDs match this, and see the attacks succeed ('make attack-defences')")
	together = flag.Bool("together", false, "switch all of them off in one build: quicker, and says less")
	only     = flag.Bool("only", false, "do not run the tests with the defences first")
)

func root(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs("../../..")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestApply: each change is of a text that the source still has, and its tests exist.
func TestApply(t *testing.T) {
	list, err := Load()
	if err != nil {
		t.Fatal(err)
	}
	sources := map[string]string{}
	for _, d := range list {
		if _, err := d.Apply(root(t)); err != nil {
			t.Error(err)
		}
		if _, ok := sources[d.Package]; !ok {
			sources[d.Package] = testSources(t, filepath.Join(root(t), d.Package))
		}
		for _, name := range d.Tests {
			top, _, _ := strings.Cut(name, "/")
			if !strings.Contains(sources[d.Package], "func "+top+"(") {
				t.Errorf("%s: there is no test %s in %s", d.ID, top, d.Package)
			}
		}
	}
}

func testSources(t *testing.T, dir string) string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	var all strings.Builder
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		all.Write(b)
	}
	return all.String()
}

// TestApplyRefuses: a list that no longer fits the source is found.
func TestApplyRefuses(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "f.go"), []byte("one two two"), 0o600); err != nil {
		t.Fatal(err)
	}
	for old, ok := range map[string]bool{"one": true, "two": false, "three": false} {
		d := Defence{ID: "x", Changes: []Change{{File: "f.go", Old: old, New: "new"}}}
		if _, err := d.Apply(dir); (err == nil) != ok {
			t.Errorf("%q: %v", old, err)
		}
	}
}

// TestSwitchedOff builds the programs without each defence in turn: the tests that name
// it must fail then, for what they look for, and pass with it.
func TestSwitchedOff(t *testing.T) {
	if *off == "" {
		t.Skip("make attack-defences")
	}
	wanted, err := regexp.Compile(*off)
	if err != nil {
		t.Fatal(err)
	}
	list, err := Load()
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{root: root(t), passed: map[string]string{}, users: map[string][]string{}}
	groups := map[string][]Defence{}
	var order []string
	for _, d := range list {
		if !wanted.MatchString(d.ID) {
			continue
		}
		key := d.ID
		if *together {
			key = strings.ReplaceAll(d.Package, "/", "-")
		}
		if groups[key] == nil {
			order = append(order, key)
		}
		groups[key] = append(groups[key], d)
	}
	for _, key := range order {
		t.Run(key, func(t *testing.T) { b.try(t, key, groups[key]) })
	}
}

// bench builds and runs.
type bench struct {
	root   string
	passed map[string]string   // by package and pattern, what is wrong with the tests as they are
	users  map[string][]string // by program, the directories of the packages in it
}

// try switches the defences off, which are of one package.
func (b *bench) try(t *testing.T, key string, list []Defence) {
	dir := filepath.Join(b.root, "bin", "off", key)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	for _, up := range []string{dir, filepath.Dir(dir), filepath.Dir(filepath.Dir(dir))} {
		if err := os.Chmod(up, 0o755); err != nil { // the test user must get there
			t.Fatal(err)
		}
	}
	all := merge(list)
	overlay, err := all.Overlay(b.root, dir)
	if err != nil {
		t.Fatal(err)
	}
	tests := filepath.Join(dir, "with.test")
	b.goBuild(t, "test", "-c", "-o", tests, "./"+all.Package)
	if !*only {
		b.repelled(t, all, tests)
	}
	if strings.HasPrefix(all.Package, "tests/") {
		b.programs(t, all, dir, overlay)
	} else {
		tests = filepath.Join(dir, "without.test")
		b.goBuild(t, "test", "-c", "-overlay", overlay, "-o", tests, "./"+all.Package)
	}
	out, failed := b.run(t, all, tests, dir)
	for _, d := range list {
		through := 0
		for _, name := range d.Tests {
			if failed[rewritten(name)] {
				through++
				continue
			}
			t.Errorf("%s: %s does not fail without the defence", d.ID, name)
		}
		says := strings.Contains(out, d.Says)
		if !says {
			t.Errorf("%s: nothing says %q", d.ID, d.Says)
		}
		fmt.Printf("%-24s got through: %d of %d, for its reason: %v (%s)\n", d.ID, through, len(d.Tests), says, d.Without)
	}
	if t.Failed() {
		t.Logf("the output without the defence:\n%s", out)
	}
}

// repelled fails the test unless the tests pass as things are.
func (b *bench) repelled(t *testing.T, d Defence, tests string) {
	t.Helper()
	key := d.Package + " " + d.pattern()
	if _, known := b.passed[key]; !known {
		out, failed := b.run(t, d, tests, "bin")
		b.passed[key] = ""
		if len(failed) > 0 || !strings.Contains(out, "\nPASS\n") {
			b.passed[key] = out
		}
	}
	if out := b.passed[key]; out != "" {
		t.Errorf("the tests fail with the defence, too:\n%s", out)
	}
}

// merge returns one defence of all changes and tests.
func merge(list []Defence) Defence {
	out := Defence{ID: "all", Package: list[0].Package}
	for _, d := range list {
		out.Tests = append(out.Tests, d.Tests...)
		for _, c := range d.Changes {
			if !slices.Contains(out.Changes, c) {
				out.Changes = append(out.Changes, c)
			}
		}
	}
	return out
}

var tags = "containers_image_openpgp exclude_graphdriver_btrfs exclude_graphdriver_devicemapper nri_no_wasm"

func (b *bench) goBuild(t *testing.T, command string, args ...string) string {
	t.Helper()
	argv := append([]string{command, "-buildvcs=false", "-tags", tags}, args...)
	if command == "list" {
		argv = append([]string{command, "-tags", tags}, args...)
	}
	cmd := exec.Command(filepath.Join(b.root, "tests/go.sh"), argv...)
	cmd.Dir = b.root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("go %s: %v\n%s", strings.Join(argv, " "), err, out)
	}
	return string(out)
}

// programs puts all programs into dir: those that have a changed file are built with it.
func (b *bench) programs(t *testing.T, d Defence, dir, overlay string) {
	t.Helper()
	for _, name := range []string{"subpod", "subpod-server", "subpod-node", "subpod-node-gvisor", "subpod-monitor"} {
		if _, ok := b.users[name]; !ok {
			b.users[name] = strings.Fields(b.goBuild(t, "list", "-deps", "-f", "{{if not .Standard}}{{.Dir}}{{end}}", "./cmd/"+name))
		}
		changed := false
		for _, c := range d.Changes {
			at := filepath.Dir(filepath.Join(b.root, c.File))
			for _, used := range b.users[name] {
				changed = changed || used == at
			}
		}
		to := filepath.Join(dir, name)
		if changed && name != "subpod-node-gvisor" { // the same sources as subpod-node's, which the tests use
			b.goBuild(t, "build", "-overlay", overlay, "-trimpath", "-ldflags", "-s -w -X main.version=0.0.0-off", "-o", to, "./cmd/"+name)
		} else if err := os.Link(filepath.Join(b.root, "bin", name), to); err != nil {
			t.Fatalf("%v: run 'make build'", err)
		}
	}
}

var failLine = regexp.MustCompile(`(?m)^\s*--- FAIL: (\S+)`)

// run runs tests as the test user, with the programs of bin.
func (b *bench) run(t *testing.T, d Defence, tests, bin string) (out string, failed map[string]bool) {
	t.Helper()
	cmd := exec.Command(filepath.Join(b.root, "tests/user.sh"), tests, "-test.v", "-test.count=1", "-test.timeout=8m", "-test.run", d.pattern())
	cmd.Dir = filepath.Join(b.root, d.Package)
	rel, err := filepath.Rel(b.root, bin)
	if filepath.IsAbs(bin) && err == nil {
		bin = rel // the test user may see the tree at another place
	}
	cmd.Env = append(os.Environ(), "SUBPOD_BIN="+bin)
	text, _ := cmd.CombinedOutput() // its tests fail
	failed = map[string]bool{}
	for _, m := range failLine.FindAllStringSubmatch(string(text), -1) {
		failed[m[1]] = true
	}
	return string(text), failed
}

// pattern is what -run takes for the tests.
func (d Defence) pattern() string {
	var names []string
	for _, name := range d.Tests {
		var parts []string
		for part := range strings.SplitSeq(rewritten(name), "/") {
			parts = append(parts, "^"+regexp.QuoteMeta(part)+"$")
		}
		names = append(names, strings.Join(parts, "/"))
	}
	return strings.Join(names, "|")
}

// rewritten is how the testing package shows a name.
func rewritten(name string) string { return strings.ReplaceAll(name, " ", "_") }
