// Package arch holds the rules of the house as tests: who may import what, what
// must not be called, and how long a function may be.
package arch

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/subpod/subpod"

// imports says who alone may import a module or package. A path ends at a slash:
// "storage" means storage and everything below it.
var imports = []struct {
	what  string   // import path, or the beginning of one
	where []string // directories that may
	why   string
}{
	{"github.com/containers/", []string{"storage"}, "the libraries may move to another name, and then one package changes"},
	{"go.podman.io/", []string{"storage"}, "the same libraries under their new name"},
	{"github.com/rootless-containers/rootlesskit/", []string{"rootless"}, "the node is made in one place"},
	{"github.com/rootless-containers/rootlesskit/v3/pkg/network/gvisortapvsock", []string{"rootless/gvisor"}, "it makes a program nearly twice as big"},
	{module + "/rootless/gvisor", []string{"cmd/subpod-node-gvisor"}, "it makes a program nearly twice as big"},
	{"google.golang.org/grpc", []string{"pkg/cri", "pkg/client", "pkg/control", "cmd", "tests"}, "CRI messages are data, gRPC is transport"},
	{"k8s.io/cri-api/pkg/apis/runtime/", []string{"pkg", "cmd", "tests"}, "mechanisms never hear of CRI"},
	{"go.etcd.io/bbolt", []string{"pkg/state"}, "the store has one owner"},
	{"github.com/google/nftables", []string{"netns"}, "packet filter rules are made in one place"},
}

// mechanisms know the kernel and their libraries. Of ours they import pkg/proc,
// and what lies below themselves.
var mechanisms = []string{"rootless", "storage", "netns"}

// layers: a package imports what stands above it in this list, never below.
// Packages that are not listed are leaves that anyone may import.
var layers = []string{"pkg/proc", "rootless", "storage", "netns", "pkg/oci", "pkg/pod", "pkg/cri", "cmd"}

// banned calls, as package.Name.
var banned = map[string]string{
	"netlink.NewHandleAt":  "it leaves an unlocked thread in the wrong network namespace: use netns.Thread.Do",
	"nftables.WithNetNSFd": "it leaves an unlocked thread in the wrong network namespace: use netns.Thread.Do",
	"netns.Set":            "a thread that enters the node's namespace never comes back: use netns.Thread.Do",
	"log.Fatal":            "libraries return errors",
	"log.Fatalf":           "libraries return errors",
	"grpc.DialContext":     "grpc.NewClient",
	"ioutil.ReadFile":      "os.ReadFile",
}

// source is one parsed file of the module.
type source struct {
	path string // slash-separated, from the root of the tree
	dir  string
	test bool
	file *ast.File
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
		sources = append(sources, source{path: rel, dir: filepath.ToSlash(filepath.Dir(rel)), test: strings.HasSuffix(rel, "_test.go"), file: file})
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

func TestImports(t *testing.T) {
	sources, _ := load(t)
	for _, s := range sources {
		for _, spec := range s.file.Imports {
			path, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				t.Fatal(err)
			}
			if problem := importProblem(s, path); problem != "" {
				t.Errorf("%s imports %s: %s", s.path, path, problem)
			}
		}
	}
}

func importProblem(s source, path string) string {
	for _, rule := range imports {
		if strings.HasPrefix(path+"/", strings.TrimSuffix(rule.what, "/")+"/") && !anyBelow(s.dir, rule.where) {
			return fmt.Sprintf("only %s may: %s", strings.Join(rule.where, ", "), rule.why)
		}
	}
	ours, ok := strings.CutPrefix(path, module+"/")
	if !ok {
		return ""
	}
	if below(ours, "tests") && !below(s.dir, "tests") && !s.test {
		return "tests are not part of the product"
	}
	if s.test {
		return ""
	}
	for _, m := range mechanisms {
		if below(s.dir, m) && !below(ours, m) && ours != "pkg/proc" {
			return "mechanisms import nothing of ours but pkg/proc"
		}
	}
	if from, to := layer(s.dir), layer(ours); from >= 0 && to > from {
		return fmt.Sprintf("%s stands above %s", layers[to], layers[from])
	}
	return ""
}

func layer(dir string) int {
	for i, l := range layers {
		if below(dir, l) {
			return i
		}
	}
	return -1
}

func TestBannedCalls(t *testing.T) {
	sources, fset := load(t)
	for _, s := range sources {
		main := s.file.Name.Name == "main"
		ast.Inspect(s.file, func(n ast.Node) bool {
			sel, ok := n.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			pkg, ok := sel.X.(*ast.Ident)
			if !ok {
				return true
			}
			// A program may end itself: "go run" generators do.
			if instead := banned[pkg.Name+"."+sel.Sel.Name]; instead != "" && !(main && pkg.Name == "log") {
				t.Errorf("%s: %s.%s: %s", fset.Position(n.Pos()), pkg.Name, sel.Sel.Name, instead)
			}
			return true
		})
	}
}

// TestPackageDocs: each package says in a comment what it is.
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

const (
	maxLines     = 100
	maxFileLines = 500
)

// TestLengths: what does not fit on two screens is two things.
func TestLengths(t *testing.T) {
	sources, fset := load(t)
	for _, s := range sources {
		if s.test || below(s.dir, "tests") {
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

// TestTopLevel: what stands at the root of the tree is agreed on.
func TestTopLevel(t *testing.T) {
	allowed := map[string]bool{}
	for _, name := range []string{"cmd", "pkg", "rootless", "storage", "netns", "configs", "tests", "docs", "bin",
		"go.mod", "go.sum", "Makefile", "README.md", "LICENSE"} {
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

// TestRules: the rules catch what they are for.
func TestRules(t *testing.T) {
	for _, c := range []struct {
		dir, path string
		test, bad bool
	}{
		{"pkg/pod", "github.com/containers/storage", false, true},
		{"storage", "github.com/containers/image/v5/copy", false, false},
		{"pkg/pod", "google.golang.org/grpc/status", false, true},
		{"pkg/cri", "google.golang.org/grpc/status", false, false},
		{"netns/bridge", "k8s.io/cri-api/pkg/apis/runtime/v1", false, true},
		{"netns", "github.com/rootless-containers/rootlesskit/v3/pkg/parent", false, true},
		{"rootless", "github.com/rootless-containers/rootlesskit/v3/pkg/network/gvisortapvsock", false, true},
		{"cmd/subpod-node", module + "/rootless/gvisor", false, true},
		{"cmd/subpod-node-gvisor", module + "/rootless/gvisor", false, false},
		{"storage", module + "/pkg/proc", false, false},
		{"storage", module + "/rootless", false, true},
		{"netns/bridge", module + "/netns", false, false},
		{"pkg/oci", module + "/pkg/pod", false, true},
		{"pkg/pod", module + "/pkg/oci", false, false},
		{"pkg/state", module + "/tests/leak", false, true},
		{"netns", module + "/tests/nstest", true, false},
	} {
		problem := importProblem(source{dir: c.dir, test: c.test}, c.path)
		if (problem != "") != c.bad {
			t.Errorf("%s importing %s: %q", c.dir, c.path, problem)
		}
	}
}
