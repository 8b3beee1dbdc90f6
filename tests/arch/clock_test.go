package arch

import (
	"go/ast"
	"go/parser"
	"testing"
)

// wallClock reports whether a call measures how long ago a time of the wall clock was that
// was made of a number: it has no reading of the monotonic clock, so the sleep of a laptop
// and each correction of the clock count as time that has passed. Limits would be over when
// the machine wakes up.
func wallClock(call *ast.CallExpr) bool {
	if name := calledIn("time", call); name != "Since" && name != "Until" || len(call.Args) != 1 {
		return false
	}
	made, ok := call.Args[0].(*ast.CallExpr)
	if !ok {
		return false
	}
	switch calledIn("time", made) {
	case "Unix", "UnixMilli", "UnixMicro":
		return true
	}
	return false
}

// calledIn returns the name of the function of the package that is called, or "".
func calledIn(pkg string, call *ast.CallExpr) string {
	if sel, ok := call.Fun.(*ast.SelectorExpr); ok {
		if x, ok := sel.X.(*ast.Ident); ok && x.Name == pkg {
			return sel.Sel.Name
		}
	}
	return ""
}

// TestMonotonicClock: nothing that waits or gives up goes by the wall clock.
func TestMonotonicClock(t *testing.T) {
	for text, want := range map[string]bool{
		"time.Since(time.Unix(0, last))": true, "time.Until(time.UnixMilli(end))": true,
		"time.Since(begun)": false, "time.Since(info.ModTime())": false, "other.Since(time.Unix(0, 1))": false,
	} {
		expr, err := parser.ParseExpr(text)
		if err != nil {
			t.Fatal(err)
		}
		if got := wallClock(expr.(*ast.CallExpr)); got != want {
			t.Errorf("%s: %t", text, got)
		}
	}
	sources, fset := load(t)
	for _, s := range sources {
		ast.Inspect(s.file, func(n ast.Node) bool {
			if call, ok := n.(*ast.CallExpr); ok && !s.test && wallClock(call) {
				t.Errorf("%s: a duration of the wall clock: keep a time.Time, or time.Since of one", fset.Position(n.Pos()))
			}
			return true
		})
	}
}
