package arch

import (
	"fmt"
	"go/ast"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// table has every package of the product and the packages of the product that it may
// import. It is read from the bottom up: a row names rows above it only, so imports
// run in one direction and cannot form a circle. What is not here must not
// exist.
var table = []struct{ pkg, imports string }{
	// Leaves: no package of ours.
	{"pkg/proc", ""},
	{"pkg/idmap", ""},
	{"pkg/stdio", ""},
	{"pkg/tree", ""},
	{"pkg/quantity", ""},
	{"pkg/errclass", ""},
	{"configs", ""},

	// Mechanisms: the kernel and their libraries; they never hear of CRI.
	{"rootless", "pkg/errclass pkg/idmap pkg/proc"},
	{"rootless/gvisor", "rootless"},
	{"storage", "pkg/errclass pkg/idmap pkg/proc"},
	{"netns", "pkg/errclass pkg/idmap pkg/proc pkg/stdio"},
	{"netns/bridge", "pkg/proc netns"},
	{"netns/cni", "pkg/proc netns"},
	{"netns/auto", "netns netns/bridge netns/cni"},

	// Parts of a container: each knows one subject.
	{"pkg/cgroup", "pkg/errclass pkg/proc"},
	{"pkg/ocispec/seccompbpf", ""},
	{"pkg/ocispec", "pkg/cgroup pkg/errclass pkg/idmap pkg/ocispec/seccompbpf"},
	{"pkg/oci", "pkg/errclass pkg/proc pkg/stdio"},
	{"pkg/config", "configs pkg/quantity"},
	{"pkg/api", "pkg/stdio"},
	{"pkg/state", "netns pkg/api pkg/cgroup pkg/errclass pkg/idmap pkg/oci pkg/quantity"},
	{"pkg/events", "pkg/state"},
	{"pkg/stats", "netns pkg/cgroup pkg/proc pkg/state"},
	{"pkg/hostport", "netns rootless pkg/proc"},

	// The core: what run, stop, remove and recover mean.
	{"pkg/pod/sandbox", "netns storage pkg/api pkg/cgroup pkg/idmap pkg/ocispec pkg/proc pkg/quantity pkg/state"},
	{"pkg/pod/container", "netns storage pkg/api pkg/cgroup pkg/errclass pkg/idmap pkg/oci pkg/ocispec pkg/proc pkg/quantity pkg/state pkg/stdio pkg/tree"},
	{"pkg/pod", "netns storage pkg/api pkg/cgroup pkg/events pkg/idmap pkg/oci pkg/ocispec pkg/pod/container pkg/pod/sandbox pkg/proc pkg/state pkg/stats pkg/stdio pkg/tree"},

	// Services: requests in, records out. Only these and the client speak gRPC.
	{"pkg/rpc", "pkg/api pkg/errclass"},
	{"pkg/stream", "pkg/errclass pkg/stdio"},
	{"pkg/cri", "netns pkg/cgroup pkg/events pkg/idmap pkg/ocispec pkg/pod pkg/pod/container pkg/rpc pkg/state pkg/stats pkg/stream storage"},
	{"pkg/control", "pkg/api pkg/oci pkg/pod pkg/rpc pkg/state pkg/stats pkg/stdio storage"},
	{"pkg/client", "pkg/api pkg/stdio"},

	// Commands. The client stays small, so that it starts fast: no core, no mechanism
	// but the node's.
	{"cmd/internal/cli", "pkg/config"},
	{"cmd/internal/doctor", "configs rootless pkg/cgroup pkg/config"},
	{"cmd/internal/kube", "pkg/api pkg/quantity"},
	{"cmd/internal/logs", ""},
	{"cmd/internal/play", "cmd/internal/kube cmd/internal/logs pkg/api pkg/client pkg/stdio"},
	{"cmd/subpod", "cmd/internal/cli cmd/internal/doctor cmd/internal/kube cmd/internal/logs cmd/internal/play configs rootless pkg/api pkg/cgroup pkg/client pkg/config pkg/quantity pkg/stdio pkg/tree"},
	{"cmd/subpod-node", "rootless"},
	{"cmd/subpod-node-gvisor", "rootless rootless/gvisor"},
	{"cmd/subpod-server", "cmd/internal/cli cmd/internal/doctor netns netns/auto netns/bridge netns/cni rootless storage pkg/api pkg/cgroup pkg/config pkg/control pkg/cri pkg/events pkg/hostport pkg/idmap pkg/oci pkg/ocispec pkg/pod pkg/pod/container pkg/pod/sandbox pkg/proc pkg/rpc pkg/state pkg/stats pkg/stream"},
}

// libraries names the directories that alone may import a module or package of others.
var libraries = []struct {
	what  string   // import path, or the beginning of one
	where []string // directories that may
	why   string
}{
	{"github.com/containers/", []string{"storage"}, "the libraries may move to another name, and then one package changes"},
	{"go.podman.io/", []string{"storage"}, "the same libraries under their new name"},
	{"github.com/rootless-containers/rootlesskit/", []string{"rootless"}, "the node is made in one place"},
	{"github.com/rootless-containers/rootlesskit/v3/pkg/network/gvisortapvsock", []string{"rootless/gvisor"}, "it makes a program nearly twice as big"},
	{"google.golang.org/grpc", []string{"pkg/api", "pkg/rpc", "pkg/cri", "pkg/control", "pkg/client", "cmd", "tests"}, "CRI messages are data, gRPC is transport"},
	{"k8s.io/cri-api/pkg/apis/runtime/", []string{"pkg", "cmd", "tests"}, "mechanisms never hear of CRI"},
	{"go.etcd.io/bbolt", []string{"pkg/state"}, "the store has one owner"},
	{"github.com/google/nftables", []string{"netns"}, "packet filter rules are made in one place"},
}

// banned calls, as package.Name.
var banned = map[string]string{
	"netlink.NewHandleAt":  "it leaves an unlocked thread in the wrong network namespace: use the node's thread",
	"nftables.WithNetNSFd": "it leaves an unlocked thread in the wrong network namespace: use the node's thread",
	"netns.Set":            "a thread that enters the node's namespace never comes back: use the node's thread",
	"log.Fatal":            "libraries return errors",
	"log.Fatalf":           "libraries return errors",
	"grpc.DialContext":     "grpc.NewClient",
	"ioutil.ReadFile":      "os.ReadFile",
}

// rows returns the table by package.
func rows() map[string][]string {
	all := map[string][]string{}
	for _, row := range table {
		all[row.pkg] = strings.Fields(row.imports)
	}
	return all
}

// TestTable: a row stands below all rows that it names.
func TestTable(t *testing.T) {
	above := map[string]bool{}
	for _, row := range table {
		if above[row.pkg] {
			t.Errorf("%s has two rows", row.pkg)
		}
		for _, to := range strings.Fields(row.imports) {
			if !above[to] {
				t.Errorf("%s may import %s, which does not stand above it", row.pkg, to)
			}
		}
		above[row.pkg] = true
	}
}

// TestImports: no file imports what its package may not. Tests are bound by libraries
// alone.
func TestImports(t *testing.T) {
	sources, _ := load(t)
	allowed := rows()
	exists, used := map[string]bool{}, map[string]map[string]bool{}
	for _, s := range sources {
		if !s.test && !below(s.dir, "tests") {
			exists[s.dir] = true
		}
		for _, spec := range s.file.Imports {
			path, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				t.Fatal(err)
			}
			if problem := importProblem(allowed, s, path); problem != "" {
				pendingImports.report(t, s.dir, "%s imports %s: %s", s.path, path, problem)
			}
			if ours, ok := strings.CutPrefix(path, module+"/"); ok && !s.test {
				if used[s.dir] == nil {
					used[s.dir] = map[string]bool{}
				}
				used[s.dir][ours] = true
			}
		}
	}
	for _, dir := range slices.Sorted(maps.Keys(exists)) {
		if _, ok := allowed[dir]; !ok {
			pendingPackages.report(t, dir, "%s has no row in the table of imports: add one (imports_test.go)", dir)
		}
	}
	for _, row := range table {
		if !exists[row.pkg] {
			pendingRows.report(t, row.pkg, "the table of imports has %s, which does not exist", row.pkg)
			continue
		}
		for _, to := range allowed[row.pkg] {
			if tableIsExact && !used[row.pkg][to] {
				t.Errorf("the table of imports lets %s import %s, which it does not", row.pkg, to)
			}
		}
	}
	pendingImports.done(t)
	pendingPackages.done(t)
	pendingRows.done(t)
}

func importProblem(allowed map[string][]string, s source, path string) string {
	for _, rule := range libraries {
		if strings.HasPrefix(path+"/", strings.TrimSuffix(rule.what, "/")+"/") && !anyBelow(s.dir, rule.where) {
			return fmt.Sprintf("only %s may: %s", strings.Join(rule.where, ", "), rule.why)
		}
	}
	ours, ok := strings.CutPrefix(path, module+"/")
	if !ok || s.test || below(s.dir, "tests") {
		return ""
	}
	if below(ours, "tests") {
		return "tests are not part of the product"
	}
	if row, ok := allowed[s.dir]; ok && !slices.Contains(row, ours) {
		return "the table of imports (imports_test.go) does not let it"
	}
	return ""
}

// TestBannedCalls: nobody calls what has a better replacement.
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

// TestImportRules: the rules catch what they are for.
func TestImportRules(t *testing.T) {
	allowed := rows()
	for _, c := range []struct {
		dir, path string
		test, bad bool
	}{
		{"pkg/pod", "github.com/containers/storage", false, true},
		{"storage", "github.com/containers/image/v5/copy", false, false},
		{"pkg/pod", "google.golang.org/grpc/status", false, true},
		{"pkg/rpc", "google.golang.org/grpc/status", false, false},
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
		{"pkg/rpc", module + "/pkg/pod", false, true},
		{"pkg/stream", module + "/pkg/pod", false, true},
		{"cmd/subpod", module + "/pkg/pod", false, true},
		{"pkg/pod/sandbox", module + "/pkg/pod/container", false, true},
		{"pkg/state", module + "/tests/leak", false, true},
		{"netns", module + "/tests/nstest", true, false},
	} {
		problem := importProblem(allowed, source{dir: c.dir, test: c.test}, c.path)
		if (problem != "") != c.bad {
			t.Errorf("%s importing %s: %q", c.dir, c.path, problem)
		}
	}
}
