package main

import (
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// podmanRow is a row of the tables of docs/cli.md that compare the commands with Podman's.
type podmanRow struct {
	command, here, note string
	flags               []string // "--name", "-n"; none for the command itself
}

var flagPattern = regexp.MustCompile("`(-{1,2}[a-z0-9-]+)`")

// podmanRows reads the tables.
func podmanRows(t *testing.T) []podmanRow {
	t.Helper()
	text, err := os.ReadFile("../../docs/cli.md")
	if err != nil {
		t.Fatal(err)
	}
	_, tables, found := strings.Cut(string(text), "\n## Podman's flags\n")
	if !found {
		t.Fatal("docs/cli.md has no section \"Podman's flags\"")
	}
	var rows []podmanRow
	section := ""
	for line := range strings.SplitSeq(tables, "\n") {
		if title, ok := strings.CutPrefix(line, "### "); ok {
			section, _, _ = strings.Cut(title, " (")
		}
		if !strings.HasPrefix(line, "| `") {
			continue
		}
		cells := strings.Split(strings.Trim(line, "|"), "|")
		for i, c := range cells {
			if cells[i] = strings.TrimSpace(c); cells[i] == "" {
				t.Errorf("%s: an empty cell: %s", section, line)
			}
		}
		r := podmanRow{command: section}
		switch {
		case section == "kube play":
			r.command = "play"
		case section == "Other commands":
			r.command = strings.Trim(cells[0], "`")
			cells = cells[1:]
		case section == "volume" || section == "network":
			r.command += " " + strings.Trim(cells[0], "`")
			cells = cells[1:]
		}
		if len(cells) != 3 {
			t.Errorf("%s: %d cells: %s", section, len(cells), line)
			continue
		}
		r.here, r.note = cells[1], cells[2]
		for _, m := range flagPattern.FindAllStringSubmatch(cells[0], -1) {
			r.flags = append(r.flags, m[1])
		}
		rows = append(rows, r)
	}
	return rows
}

// TestPodmanFlags ties the tables to the commands: what is the same or differs is there,
// with its short form, and what is refused is an error that gives the reason.
func TestPodmanFlags(t *testing.T) {
	rows := podmanRows(t)
	if len(rows) < 250 {
		t.Fatalf("only %d rows", len(rows))
	}
	root := newRoot()
	for _, r := range rows {
		cmd, rest, err := root.Find(strings.Fields(r.command))
		exists := err == nil && len(rest) == 0
		switch {
		case r.here != "same" && r.here != "differs" && r.here != "refused":
			t.Errorf("%s %v: %q is neither same, differs nor refused", r.command, r.flags, r.here)
		case r.here != "refused" && !exists:
			t.Errorf("%s %v: the table says %s, and there is no such command", r.command, r.flags, r.here)
		case r.here == "refused" && exists && cmd.DisableFlagParsing:
			if err := cmd.RunE(cmd, nil); err == nil || !strings.Contains(err.Error(), r.note) {
				t.Errorf("%s: the table says %q, the error %v", r.command, r.note, err)
			}
		case len(r.flags) == 0 && r.here == "refused" && exists:
			t.Errorf("%s: the table says refused, and there is such a command", r.command)
		case exists && len(r.flags) > 0:
			checkFlags(t, cmd, r)
		}
	}
}

func checkFlags(t *testing.T, cmd *cobra.Command, r podmanRow) {
	t.Helper()
	cmd.InitDefaultHelpFlag()
	for _, name := range r.flags {
		var f *pflag.Flag
		if long, ok := strings.CutPrefix(name, "--"); ok {
			f = cmd.Flags().Lookup(long)
		} else {
			f = cmd.Flags().ShorthandLookup(strings.TrimPrefix(name, "-"))
		}
		refusal, isRefused := "", false
		if f != nil {
			if v, ok := f.Value.(*refusedFlag); ok {
				refusal, isRefused = v.reason, true
				if err := v.Set("x"); !errors.Is(err, errRefused) {
					t.Errorf("%s %s: setting it returns %v", r.command, name, err)
				}
			}
		}
		switch {
		case r.here == "refused" && f != nil && !isRefused:
			t.Errorf("%s %s: the table says refused, and there is such a flag", r.command, name)
		case r.here == "refused" && isRefused && r.note != refusal:
			t.Errorf("%s %s: the table says %q, the error %q", r.command, name, r.note, refusal)
		case r.here == "refused" && f == nil:
			t.Errorf("%s %s: it is refused as an unknown flag, without the reason", r.command, name)
		case r.here != "refused" && (f == nil || isRefused):
			t.Errorf("%s %s: the table says %s, and there is no such flag", r.command, name, r.here)
		}
	}
}

// scriptLines returns the lines of the scripts of tests/cli that run subpod, each from its
// command on, and those of the tests in the virtual machine and with a terminal.
func scriptLines(t *testing.T) []string {
	t.Helper()
	var lines []string
	for _, pattern := range []string{"../../tests/cli/testdata/*/*.txtar", "../../tests/cli/*_test.go", "../../tests/vm/*_test.go", "../../tests/crash/*_test.go"} {
		files, err := filepath.Glob(pattern)
		if err != nil || len(files) == 0 {
			t.Fatalf("%s: %v, %v", pattern, files, err)
		}
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			for line := range strings.Lines(string(text)) {
				if strings.HasSuffix(file, ".go") { // "run", "-it", …
					lines = append(lines, strings.NewReplacer(`", "`, " ", `"`, " ").Replace(line))
					continue
				}
				if line = strings.TrimSpace(line); strings.HasPrefix(line, "#") {
					continue
				}
				lines = append(lines, strings.Split(line, "subpod ")[1:]...)
			}
		}
	}
	return lines
}

// uses returns what a line must have that uses a flag by one of its names.
func uses(flags []string) *regexp.Regexp {
	var names []string
	for _, f := range flags {
		if long, ok := strings.CutPrefix(f, "--"); ok {
			names = append(names, `--`+long+`([ =]|$)`)
		} else {
			names = append(names, `-[a-zA-Z]*`+f[1:]+`[^ -]*( |$)`)
		}
	}
	return regexp.MustCompile(`(^|[ '"])(` + strings.Join(names, "|") + `)`)
}

// TestPodmanFlagsTested ties the tables to tests: what is the same or differs is used by a
// script of its command. That the script asserts the effect is for its author to see to.
func TestPodmanFlagsTested(t *testing.T) {
	lines := scriptLines(t)
	for _, r := range podmanRows(t) {
		if r.here == "refused" || slices.Contains(r.flags, "--help") {
			continue // TestPodmanFlags; and help.txtar
		}
		flag := uses(r.flags)
		tested := slices.ContainsFunc(lines, func(line string) bool {
			_, args, found := strings.Cut(" "+line+" ", " "+r.command+" ")
			if !found && r.command == "run" { // "create" has the same flags, and tests have tables of them
				_, args, found = strings.Cut(" "+line+" ", " create ")
				found = found || strings.Contains(line, "-") && !strings.Contains(line, "subpod")
				if args == "" {
					args = line
				}
			}
			return found && (len(r.flags) == 0 || flag.MatchString(args))
		})
		if !tested {
			t.Errorf("%s %s: it is in no script of tests/cli", r.command, strings.Join(r.flags, ", "))
		}
	}
}
