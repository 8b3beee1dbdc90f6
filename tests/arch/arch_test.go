// Package arch holds the project's rules as tests: who may import what (imports_test.go),
// how big a type, a function or a file may be (size_test.go), what a doc comment looks
// like (comments_test.go), which timeouts the documentation names (timeouts_test.go).
// A rule that does not hold yet has its exceptions in pending_test.go.
package arch

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

const module = "github.com/subpod/subpod"

// source is one parsed file of the module.
type source struct {
	path      string // slash-separated, from the root of the tree
	dir       string
	test      bool
	generated bool
	file      *ast.File
}

// product reports whether the file is part of what users run and was written by hand.
func (s source) product() bool {
	return !s.test && !s.generated && !below(s.dir, "tests")
}

func load(t *testing.T) (sources []source, fset *token.FileSet) {
	t.Helper()
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	fset = token.NewFileSet()
	err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, path)
		rel = filepath.ToSlash(rel)
		if d.IsDir() {
			if rel != "." && strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata" || rel == "tests/tools" {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(rel, ".go") {
			return nil
		}
		file, err := parser.ParseFile(fset, path, nil, parser.ParseComments)
		if err != nil {
			return err
		}
		sources = append(sources, source{
			path: rel, dir: filepath.ToSlash(filepath.Dir(rel)), file: file,
			test: strings.HasSuffix(rel, "_test.go"), generated: ast.IsGenerated(file),
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(sources) < 50 {
		t.Fatalf("only %d files below %s: the walk is wrong", len(sources), root)
	}
	return sources, fset
}

// below reports whether dir is root or below it.
func below(dir, root string) bool {
	return dir == root || strings.HasPrefix(dir, root+"/")
}

func anyBelow(dir string, roots []string) bool {
	for _, root := range roots {
		if below(dir, root) {
			return true
		}
	}
	return false
}

// TestTopLevel: the root of the tree has the agreed entries only.
func TestTopLevel(t *testing.T) {
	allowed := map[string]bool{}
	for _, name := range []string{"cmd", "pkg", "rootless", "storage", "netns", "configs", "tests", "docs", "bin", "dist",
		"go.mod", "go.sum", "Makefile", "README.md", "LICENSE", "VERSION", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"} {
		allowed[name] = true
	}
	found, err := filepath.Glob("../../*")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range found {
		if name := filepath.Base(path); !allowed[name] && !strings.HasPrefix(name, ".") {
			t.Errorf("%s at the root of the tree", name)
		}
	}
}

// TestVersion: the file VERSION holds one semantic version, without build metadata.
func TestVersion(t *testing.T) {
	data, err := os.ReadFile("../../VERSION")
	if err != nil {
		t.Fatal(err)
	}
	if !regexp.MustCompile(`^(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(-[0-9A-Za-z.-]+)?\n$`).Match(data) {
		t.Errorf("VERSION is %q, not a semantic version and a newline", data)
	}
}
