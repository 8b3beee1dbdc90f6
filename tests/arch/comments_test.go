package arch

import (
	"go/ast"
	"go/token"
	"strings"
	"testing"
)

// TestPackageDocs: each package has a comment that says what it is.
func TestPackageDocs(t *testing.T) {
	sources, _ := load(t)
	documented := map[string]bool{}
	for _, s := range sources {
		// A package that has tests alone says it there.
		documented[s.dir] = documented[s.dir] || s.file.Doc != nil && len(s.file.Doc.Text()) > 20
	}
	for dir, ok := range documented {
		if !ok {
			t.Errorf("%s: no package comment", dir)
		}
	}
}

// TestDocComments: an exported name has a doc comment, which begins with the name.
func TestDocComments(t *testing.T) {
	sources, fset := load(t)
	for _, s := range sources {
		if !s.product() {
			continue
		}
		report := func(at token.Pos, problem string) {
			t.Errorf("%s: %s", fset.Position(at), problem)
		}
		for _, decl := range s.file.Decls {
			switch d := decl.(type) {
			case *ast.FuncDecl:
				if d.Name.IsExported() && (d.Recv == nil || ast.IsExported(receiver(d))) {
					if problem := commentProblem(d.Name.Name, d.Doc); problem != "" {
						report(d.Pos(), problem)
					}
				}
			case *ast.GenDecl:
				generalProblems(d, report)
			}
		}
	}
}

// generalProblems looks at types, constants and variables. A comment above a group
// speaks for all of it.
func generalProblems(d *ast.GenDecl, report func(token.Pos, string)) {
	for _, spec := range d.Specs {
		var names []*ast.Ident
		var doc, line *ast.CommentGroup
		switch x := spec.(type) {
		case *ast.TypeSpec:
			names, doc = []*ast.Ident{x.Name}, x.Doc
		case *ast.ValueSpec:
			names, doc, line = x.Names, x.Doc, x.Comment
		default:
			continue
		}
		if len(names) != 1 || !names[0].IsExported() {
			continue
		}
		if d.Lparen.IsValid() && (d.Doc != nil || line != nil) && doc == nil {
			continue
		}
		if doc == nil && !d.Lparen.IsValid() {
			doc = d.Doc
		}
		if problem := commentProblem(names[0].Name, doc); problem != "" {
			report(spec.Pos(), problem)
		}
	}
}

func commentProblem(name string, doc *ast.CommentGroup) string {
	if doc == nil || strings.TrimSpace(doc.Text()) == "" {
		return name + " is exported and has no comment"
	}
	words := strings.Fields(doc.Text())
	first := words[0]
	if len(words) > 1 && (first == "A" || first == "An" || first == "The") {
		first = words[1]
	}
	if strings.TrimRight(first, ",:") != name {
		return "the comment on " + name + " does not begin with its name: " + strings.Join(words[:min(5, len(words))], " ")
	}
	return ""
}

// TestCommentRules: the rule catches what it is for.
func TestCommentRules(t *testing.T) {
	for text, bad := range map[string]bool{
		"// Run starts it.":   false,
		"// A Run is one.":    false,
		"// Run: the verb.":   false,
		"// Starts it.":       true,
		"// run starts it.":   true,
		"// Running is this.": true,
	} {
		doc := &ast.CommentGroup{List: []*ast.Comment{{Text: text}}}
		if problem := commentProblem("Run", doc); (problem != "") != bad {
			t.Errorf("%q: %q", text, problem)
		}
	}
	if commentProblem("Run", nil) == "" {
		t.Error("a missing comment is no problem")
	}
}
