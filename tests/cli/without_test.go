package cli

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/subpod/subpod/tests/node"
	"github.com/subpod/subpod/tests/registry"
)

// TestWithout leaves out each flag of the tables of docs/cli.md in the scripts that use it,
// one at a time, and wants one of them to fail: a script that passes does not assert what
// the flag does. SUBPOD_CLI_WITHOUT is a regular expression of rows such as "run --tmpfs".
func TestWithout(t *testing.T) {
	rows := os.Getenv("SUBPOD_CLI_WITHOUT")
	if rows == "" {
		t.Skip("make test-cli-flags")
	}
	wanted := regexp.MustCompile(rows)
	private, addr, pushed := privateRegistry(t), node.Registry(t), node.EmptyRegistry(t)
	insecure := ""
	for _, location := range []string{private, pushed} {
		insecure += fmt.Sprintf("\n[[registry]]\nlocation = %q\ninsecure = true\n", location)
	}
	n := node.Start(t, node.Options{Config: bridge, Registries: registry.Conf(addr) + insecure})
	vars := []string{"PRIVATE=" + private, "REGISTRY=" + addr, "PUSHED=" + pushed}
	w := &without{node: n, vars: vars, help: map[string]string{}, took: map[string]time.Duration{}}
	defer func(before time.Duration) { converge = before }(converge)
	converge = 6 * time.Second
	w.clean()
	var failed, passed, unused, refused []string
	for _, r := range flagRows(t) {
		if !wanted.MatchString(r.String()) {
			continue
		}
		switch used, fails, only := w.try(t, r); {
		case !used:
			unused = append(unused, r.String())
		case fails:
			failed = append(failed, r.String())
			if only {
				refused = append(refused, r.String())
			}
		default:
			passed = append(passed, r.String())
			t.Errorf("%s: the scripts pass without it", r)
		}
	}
	t.Logf("%d flags: %d fail without it, %d pass, %d are in no script that can be changed: %q", len(failed)+len(passed)+len(unused), len(failed), len(passed), len(unused), unused)
	t.Logf("of %d only what is refused with it fails: %q", len(refused), refused)
}

// flagRow is a flag of a command that is the same as Podman's, or differs.
type flagRow struct {
	command string
	names   []string // "--env", "-e"
}

func (r flagRow) String() string { return r.command + " " + strings.Join(r.names, " ") }

// flagRows reads the tables; TestPodmanFlags of cmd/subpod sees to their form.
func flagRows(t *testing.T) (rows []flagRow) {
	text, err := os.ReadFile(filepath.Join(node.Tree(), "docs/cli.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, tables, _ := strings.Cut(string(text), "\n## Podman's flags\n")
	section, flag := "", regexp.MustCompile("`(-{1,2}[a-z0-9-]+)`")
	for line := range strings.Lines(tables) {
		if title, ok := strings.CutPrefix(line, "### "); ok {
			section, _, _ = strings.Cut(strings.TrimSpace(title), " (")
		}
		cells := strings.Split(line, "|")
		if len(cells) < 5 || cells[len(cells)-3] != " same " && cells[len(cells)-3] != " differs " {
			continue
		}
		if strings.Contains(cells[len(cells)-2], "without effect") {
			continue
		}
		r := flagRow{command: map[string]string{"kube play": "play"}[section]}
		if r.command == "" {
			r.command = section
		}
		if len(cells) == 6 {
			r.command = strings.Trim(cells[1], "` ")
			if section == "volume" || section == "network" {
				r.command = section + " " + r.command
			}
		}
		for _, m := range flag.FindAllStringSubmatch(cells[len(cells)-4], -1) {
			r.names = append(r.names, m[1])
		}
		if len(r.names) > 0 && r.names[0] != "--help" {
			rows = append(rows, r)
		}
	}
	if len(rows) < 150 {
		t.Fatalf("only %d flags in docs/cli.md", len(rows))
	}
	return rows
}

type without struct {
	node *node.Node
	vars []string          // of the scripts
	help map[string]string // of commands
	took map[string]time.Duration
}

// whole runs a script as it is, once, and returns how long it takes. ok is false for one
// that fails here, which shows nothing.
func (w *without) whole(t *testing.T, file, script string) (took time.Duration, ok bool) {
	if took, done := w.took[file]; done {
		return took, took > 0
	}
	began := time.Now()
	failed, log := w.run(t, file, script, 2*time.Minute)
	if took = time.Since(began); failed {
		t.Logf("%s fails as it is, and is left out: %s", file, log)
		took = 0
	}
	w.took[file] = took
	return took, took > 0
}

// try runs the scripts that use a flag, without it, until one fails where its effect is
// looked at. refused says that none did but where the flag makes a usage error.
func (w *without) try(t *testing.T, r flagRow) (used, fails, refused bool) {
	if _, ok := w.help[r.command]; !ok {
		w.help[r.command], _ = w.node.Subpod(append(strings.Fields(r.command), "--help")...)
	}
	cut := cutter(r, w.help[r.command])
	var files []string
	for _, dir := range []string{"script", alone} {
		list, err := filepath.Glob(filepath.Join("testdata", dir, "*.txtar"))
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, list...)
	}
	slices.SortStableFunc(files, func(a, b string) int { // those that are about flags first
		first := func(f string) bool { return strings.Contains(f, "flags_") || strings.Contains(f, "/"+alone+"/") }
		switch {
		case first(a) == first(b):
			return 0
		case first(a):
			return -1
		}
		return 1
	})
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		mutant := cut(string(text))
		if mutant == string(text) {
			continue
		}
		whole, ok := w.whole(t, file, string(text))
		if !ok {
			continue
		}
		used = true
		began := time.Now()
		failed, log := w.run(t, file, mutant, 2*whole+10*time.Second)
		t.Logf("%s: %s: failed=%v in %.1fs: %s", r, filepath.Base(file), failed, time.Since(began).Seconds(), log)
		switch {
		case failed && strings.HasPrefix(strings.TrimSpace(log), "> exits 125 "):
			refused = true
		case failed:
			return true, true, false
		}
	}
	return used, refused, refused
}

// cutter returns what takes a flag out of the lines of a script that run its command. help
// says whether the flag has a value.
func cutter(r flagRow, help string) func(string) string {
	value := regexp.MustCompile(r.names[0] + ` [a-zA-Z]`).MatchString(help)
	command := strings.ReplaceAll(r.command, "run", "(run|create)")
	line := regexp.MustCompile(`\bsubpod (-[^ ]+ )*` + command + `( +('[^'\n]*'|"[^"\n]*"|[^ |;&\n]+))+`)
	valued := map[string]bool{}
	for _, m := range usage.FindAllStringSubmatch(help, -1) {
		valued["-"+m[1]], valued["--"+m[2]] = m[3] != "", m[3] != ""
	}
	return func(text string) string {
		script, files, cut := strings.Cut(text, "\n-- ")
		script = line.ReplaceAllStringFunc(script, func(s string) string { return r.cut(s, value, valued) })
		if cut {
			script += "\n-- " + files
		}
		return script
	}
}

var (
	words   = regexp.MustCompile(`('[^']*'|"[^"]*"|[^ '"]|['"])+`)
	cluster = regexp.MustCompile(`^-[a-zA-Z]+$`)
	usage   = regexp.MustCompile(`(?m)^ +(?:-([a-zA-Z]), )?--([a-z0-9-]+)( [a-zA-Z]+)?  `)
)

// cut takes the flag out of a command line; where that ends with another command, only up
// to the container or image. valued has the flags that have a value.
func (r flagRow) cut(line string, value bool, valued map[string]bool) string {
	var out []string
	all := words.FindAllString(line, -1)
	for i := 0; i < len(all); i++ {
		word := strings.TrimRight(all[i], `'"`)
		quote := all[i][len(word):] // the end of "sh -c '…'"
		inner := (r.command == "run" || r.command == "exec") && i > 1 && !strings.HasPrefix(word, "-") && !valued[all[i-1]]
		if inner && !r.endsInValue(all[i-1], valued) || word == "--" {
			return strings.Join(append(out, all[i:]...), " ")
		}
		name, _, assigned := strings.Cut(word, "=")
		short := ""
		for _, n := range r.names {
			if !strings.HasPrefix(n, "--") {
				short = n[1:]
			}
		}
		at := -1
		if short != "" && cluster.MatchString(word) {
			at = strings.Index(word, short)
		}
		switch {
		case slices.Contains(r.names, name):
			if value && !assigned {
				i++
			}
		case value && at == 1: // -eNAME
		case at > 0:
			out = append(out, word[:at]+word[at+1:])
			if value {
				i++
			}
		default:
			out = append(out, all[i])
			continue
		}
		if len(quote) == 1 && i < len(all) && len(out) > 0 {
			out[len(out)-1] += quote
		}
	}
	return strings.Join(out, " ")
}

// endsInValue reports whether a word is a cluster of short flags whose last has a value.
func (r flagRow) endsInValue(word string, valued map[string]bool) bool {
	return cluster.MatchString(word) && valued["-"+word[len(word)-1:]]
}

// run runs a script, and removes what it leaves. log is how it failed.
func (w *without) run(t *testing.T, file, script string, limit time.Duration) (failed bool, log string) {
	if filepath.Base(filepath.Dir(file)) != alone {
		return runCut(t, w.node, w.vars, file, script, limit, w.clean)
	}
	t.Run(filepath.Base(file), func(t *testing.T) {
		failed, log = runCut(t, aloneNode(t), nil, file, script, limit, func() {})
	})
	return failed, log
}

// runCut runs a script on a node; clean removes what it leaves.
func runCut(t *testing.T, n *node.Node, vars []string, file, script string, limit time.Duration, clean func()) (failed bool, log string) {
	dir, name := t.TempDir(), filepath.Base(file)
	if err := os.WriteFile(filepath.Join(dir, name), []byte(script), 0o644); err != nil {
		t.Fatal(err)
	}
	r := &recorder{dir: dir}
	// A command whose shell was killed at the limit has its streams still: it ends with
	// its container.
	late := time.AfterFunc(limit+5*time.Second, clean)
	defer late.Stop()
	func() {
		defer r.ended()
		testscript.RunT(r, testscript.Params{
			Dir: dir, Setup: setup(t, n, vars...), Cmds: commands, WorkdirRoot: dir, Deadline: time.Now().Add(limit),
			Condition: func(string) (bool, error) { return true, nil },
		})
	}()
	clean()
	return r.failed, r.why
}

// clean removes what scripts leave, and pulls what they expect.
func (w *without) clean() {
	for _, args := range [][]string{
		{"rm", "-f", "-a"}, {"volume", "prune", "-f", "-a"}, {"network", "prune", "-f"}, {"secret", "rm", "--all"},
		{"pull", "-q", "busybox"}, {"pull", "-q", "registry.k8s.io/e2e-test-images/nonewprivs:1.3"},
	} {
		_, _ = w.node.Subpod(args...) // what there is of it
	}
}

// recorder is a testing.T whose failure is no failure.
type recorder struct {
	dir    string
	failed bool
	why    string // the command that failed, what it printed, and where it is
}

const whyLines = 14

type stopped struct{}

// ended stops what recorder's methods have begun: the end of a script.
func (r *recorder) ended() {
	if x := recover(); x != nil && x != (stopped{}) {
		panic(x)
	}
}

func (r *recorder) Skip(...any)   { panic(stopped{}) }
func (r *recorder) Parallel()     {}
func (r *recorder) Verbose() bool { return false }
func (r *recorder) FailNow()      { r.failed = true; panic(stopped{}) }

func (r *recorder) Fatal(args ...any) {
	r.Log(args...)
	r.FailNow()
}

// Log keeps the end of a script's log, from its last command on, at most whyLines lines:
// whether it failed for the flag, or for another reason, is to be seen.
func (r *recorder) Log(args ...any) {
	text := strings.TrimSpace(strings.ReplaceAll(fmt.Sprint(args...), r.dir, ""))
	if text == "" {
		return
	}
	lines := strings.Split(text, "\n")
	last := 0
	for i, line := range lines {
		if strings.HasPrefix(line, "> ") {
			last = i
		}
	}
	if strings.HasPrefix(lines[last], "> stdout ") || strings.HasPrefix(lines[last], "> ! stdout ") {
		for last--; last > 0 && !strings.HasPrefix(lines[last], "> "); last-- {
		}
	}
	lines = lines[max(last, 0):]
	if len(lines) > whyLines {
		lines = append([]string{lines[0], "  ..."}, lines[len(lines)-whyLines+2:]...)
	}
	r.why = "\n\t" + strings.Join(lines, "\n\t")
}

func (r *recorder) Run(_ string, f func(testscript.T)) {
	defer r.ended()
	f(r)
}
