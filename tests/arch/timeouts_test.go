package arch

import (
	"fmt"
	"go/ast"
	"go/token"
	"maps"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// boundName matches names of constants that bound a wait.
var boundName = regexp.MustCompile(`(?i)(timeout|delay|grace|pause|interval|wait)$`)

// TestTimeouts: the table "Timeouts" of docs/architecture.md has each duration that a
// package declares, with the value that the source has.
func TestTimeouts(t *testing.T) {
	sources, _ := load(t)
	inSource := durations(sources)
	if len(inSource) < 20 {
		t.Fatalf("only %d durations in the source: the search is wrong", len(inSource))
	}
	text, err := os.ReadFile("../../docs/architecture.md")
	if err != nil {
		t.Fatal(err)
	}
	inDocs, err := timeoutTable(string(text))
	if err != nil {
		t.Errorf("docs/architecture.md: %v", err)
		for _, name := range slices.Sorted(maps.Keys(inSource)) {
			t.Logf("| `%s` | %v | |", name, inSource[name])
		}
		return
	}
	for _, name := range slices.Sorted(maps.Keys(inSource)) {
		switch documented, ok := inDocs[name]; {
		case !ok:
			t.Errorf("docs/architecture.md, Timeouts: no row for %s: | `%s` | %v | what it bounds |", name, name, inSource[name])
		case documented != inSource[name]:
			t.Errorf("docs/architecture.md, Timeouts: %s is %v there, %v in the source", name, documented, inSource[name])
		}
	}
	for name := range inDocs {
		if _, ok := inSource[name]; !ok {
			t.Errorf("docs/architecture.md, Timeouts: the source has no %s", name)
		}
	}
}

// timeoutTable reads the rows "| constant | value | bounds |" of the section Timeouts.
// A constant is written as directory.name, such as pkg/state.flushDelay.
func timeoutTable(text string) (map[string]time.Duration, error) {
	_, section, ok := strings.Cut(text, "\n## Timeouts\n")
	if !ok {
		return nil, fmt.Errorf("no section \"## Timeouts\"")
	}
	section, _, _ = strings.Cut(section, "\n## ")
	found := map[string]time.Duration{}
	for line := range strings.Lines(section) {
		cells := strings.Split(strings.TrimSpace(line), "|")
		if len(cells) < 4 {
			continue
		}
		name, value := strings.Trim(cells[1], " `"), strings.Trim(cells[2], " `")
		if name == "constant" || strings.HasPrefix(name, "-") {
			continue
		}
		d, err := time.ParseDuration(strings.ReplaceAll(value, " ", ""))
		if err != nil {
			return nil, fmt.Errorf("the value of %s: %w", name, err)
		}
		if strings.TrimSpace(cells[3]) == "" {
			return nil, fmt.Errorf("%s: the row does not say what it bounds", name)
		}
		found[name] = d
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("the section Timeouts has no rows")
	}
	return found, nil
}

// durations returns the package-level constants and variables of the product that are
// durations, as directory.name.
func durations(sources []source) map[string]time.Duration {
	all := map[string]time.Duration{}
	// A constant may stand in another file than the one that it is made of: twice.
	for range 2 {
		for _, s := range sources {
			if !s.product() {
				continue
			}
			for _, decl := range s.file.Decls {
				if d, ok := decl.(*ast.GenDecl); ok && (d.Tok == token.CONST || d.Tok == token.VAR) {
					declared(all, s.dir, d)
				}
			}
		}
	}
	return all
}

func declared(all map[string]time.Duration, dir string, d *ast.GenDecl) {
	for _, spec := range d.Specs {
		v, ok := spec.(*ast.ValueSpec)
		if !ok || len(v.Values) != len(v.Names) {
			continue
		}
		for i, name := range v.Names {
			value, isDuration, ok := evaluate(all, dir, v.Values[i])
			if ok && (isDuration || isTime(v.Type) || boundName.MatchString(name.Name) && v.Type == nil && value > int64(time.Microsecond)) {
				all[dir+"."+name.Name] = time.Duration(value)
			}
		}
	}
}

// isTime reports whether a type is time.Duration.
func isTime(x ast.Expr) bool {
	sel, ok := x.(*ast.SelectorExpr)
	if !ok || sel.Sel.Name != "Duration" {
		return false
	}
	pkg, ok := sel.X.(*ast.Ident)
	return ok && pkg.Name == "time"
}

var units = map[string]time.Duration{
	"Nanosecond": time.Nanosecond, "Microsecond": time.Microsecond, "Millisecond": time.Millisecond,
	"Second": time.Second, "Minute": time.Minute, "Hour": time.Hour,
}

// evaluate computes what constants of durations are made of: numbers, units of time,
// other constants of the package, products, quotients and sums.
func evaluate(known map[string]time.Duration, dir string, x ast.Expr) (value int64, isDuration, ok bool) {
	switch e := x.(type) {
	case *ast.ParenExpr:
		return evaluate(known, dir, e.X)
	case *ast.BasicLit:
		n, err := strconv.ParseInt(e.Value, 0, 64)
		return n, false, err == nil
	case *ast.Ident:
		d, ok := known[dir+"."+e.Name]
		return int64(d), true, ok
	case *ast.SelectorExpr:
		pkg, isIdent := e.X.(*ast.Ident)
		if !isIdent || pkg.Name != "time" {
			return 0, false, false
		}
		unit, ok := units[e.Sel.Name]
		return int64(unit), true, ok
	case *ast.BinaryExpr:
		a, aIs, aOK := evaluate(known, dir, e.X)
		b, bIs, bOK := evaluate(known, dir, e.Y)
		if !aOK || !bOK {
			return 0, false, false
		}
		switch e.Op {
		case token.MUL:
			return a * b, aIs || bIs, true
		case token.ADD:
			return a + b, aIs || bIs, true
		case token.SUB:
			return a - b, aIs || bIs, true
		case token.QUO:
			return a / max(b, 1), aIs || bIs, b != 0
		}
	}
	return 0, false, false
}

// TestTimeoutRules: the table is read as it is written.
func TestTimeoutRules(t *testing.T) {
	got, err := timeoutTable("# A\n\n## Timeouts\n\n| constant | value | bounds |\n|---|---|---|\n| `pkg/x.stopGrace` | 1m30s | a stop |\n\n## B\n| a | 1s | b |\n")
	if err != nil || len(got) != 1 || got["pkg/x.stopGrace"] != 90*time.Second {
		t.Errorf("read %v, %v", got, err)
	}
	for _, bad := range []string{"", "\n## Timeouts\n\nnone\n", "\n## Timeouts\n| x.y | soon | z |\n", "\n## Timeouts\n| x.y | 1s | |\n"} {
		if got, err := timeoutTable(bad); err == nil {
			t.Errorf("%q was read as %v", bad, got)
		}
	}
}
