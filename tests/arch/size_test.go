package arch

import (
	"go/ast"
	"maps"
	"slices"
	"testing"
)

const (
	maxLines     = 75  // of a function
	maxFileLines = 500 // of a file
	maxMethods   = 25  // declared on one type, unexported ones included
)

// manyMethods are types that may have more, and why. Generated code is free of the rule.
var manyMethods = map[string]string{
	"pkg/ocispec.builder": "one pure builder of an OCI spec, a method for each of its sections",
}

// TestLengths: what does not fit on a screen and a half is two things.
func TestLengths(t *testing.T) {
	sources, fset := load(t)
	for _, s := range sources {
		if !s.product() {
			continue
		}
		if lines := fset.File(s.file.Pos()).LineCount(); lines > maxFileLines {
			t.Errorf("%s has %d lines, more than %d", s.path, lines, maxFileLines)
		}
		for _, d := range s.file.Decls {
			f, ok := d.(*ast.FuncDecl)
			if !ok || f.Body == nil {
				continue
			}
			if lines := fset.Position(f.End()).Line - fset.Position(f.Pos()).Line + 1; lines > maxLines {
				t.Errorf("%s: %s has %d lines, more than %d", fset.Position(f.Pos()), f.Name.Name, lines, maxLines)
			}
		}
	}
}

// TestMethods: a type that does more than maxMethods things is several types.
func TestMethods(t *testing.T) {
	sources, _ := load(t)
	count := map[string]int{}
	for _, s := range sources {
		if !s.product() {
			continue
		}
		for _, d := range s.file.Decls {
			if f, ok := d.(*ast.FuncDecl); ok && f.Recv != nil {
				count[s.dir+"."+receiver(f)]++
			}
		}
	}
	for name := range manyMethods {
		if count[name] <= maxMethods {
			t.Errorf("%s has %d methods: it needs no exception", name, count[name])
		}
	}
	for _, name := range slices.Sorted(maps.Keys(count)) {
		if n := count[name]; n > maxMethods && manyMethods[name] == "" {
			t.Errorf("%s has %d methods, more than %d", name, n, maxMethods)
		}
	}
}

// receiver returns the name of the type that a method is declared on.
func receiver(f *ast.FuncDecl) string {
	x := f.Recv.List[0].Type
	for {
		switch e := x.(type) {
		case *ast.StarExpr:
			x = e.X
		case *ast.IndexExpr:
			x = e.X
		case *ast.IndexListExpr:
			x = e.X
		case *ast.Ident:
			return e.Name
		default:
			return "?"
		}
	}
}

// TestContexts: a function that takes a context uses it, or names it _.
func TestContexts(t *testing.T) {
	sources, fset := load(t)
	for _, s := range sources {
		if s.generated {
			continue
		}
		ast.Inspect(s.file, func(n ast.Node) bool {
			var signature *ast.FuncType
			var body *ast.BlockStmt
			switch f := n.(type) {
			case *ast.FuncDecl:
				signature, body = f.Type, f.Body
			case *ast.FuncLit:
				signature, body = f.Type, f.Body
			}
			if body == nil {
				return true
			}
			for _, name := range contexts(signature) {
				if !mentions(body, name) {
					t.Errorf("%s: the context %s is ignored: use it, or name it _", fset.Position(n.Pos()), name)
				}
			}
			return true
		})
	}
}

// contexts returns the names of a function's context parameters.
func contexts(f *ast.FuncType) (names []string) {
	for _, p := range f.Params.List {
		sel, ok := p.Type.(*ast.SelectorExpr)
		if !ok || sel.Sel.Name != "Context" {
			continue
		}
		if pkg, ok := sel.X.(*ast.Ident); !ok || pkg.Name != "context" {
			continue
		}
		for _, name := range p.Names {
			if name.Name != "_" {
				names = append(names, name.Name)
			}
		}
	}
	return names
}

func mentions(body *ast.BlockStmt, name string) (found bool) {
	ast.Inspect(body, func(n ast.Node) bool {
		if id, ok := n.(*ast.Ident); ok && id.Name == name {
			found = true
		}
		return !found
	})
	return found
}
