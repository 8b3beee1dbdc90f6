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

// table has every package of the product and the packages of the product that it
// imports: all of them, and no more. A row names rows above it only, so imports run in
// one direction and cannot form a circle. What is not here must not exist. A change of
// the table is a decision: TestImports prints the row that a package would need.
var table = []struct{ pkg, imports string }{
	// Leaves: no package of ours.
	{"pkg/proc", ""},
	{"pkg/idmap", ""},
	{"pkg/stdio", ""},
	{"pkg/quantity", ""},
	{"pkg/cpuarch", ""},
	{"pkg/errclass", ""},
	{"pkg/workload", ""},
	{"pkg/openat2", ""},
	{"pkg/logging", ""},
	{"pkg/trace", ""},
	{"pkg/metrics", ""},
	{"pkg/landlock", ""},
	{"pkg/tree", "pkg/errclass pkg/openat2"},
	{"pkg/subpath", "pkg/openat2"},
	{"pkg/initproc", ""},
	{"pkg/seccompnotify", ""},
	{"pkg/volumes", "pkg/errclass pkg/tree"},
	{"configs", ""},
	{"pkg/ocispec/seccompbpf", ""},

	// The container monitor: the keeper is in the node's first process.
	{"pkg/monitor/wire", "pkg/proc"},
	{"pkg/monitor/keeper", "pkg/monitor/wire pkg/proc"},
	{"pkg/monitor", "pkg/monitor/wire pkg/ocispec/seccompbpf pkg/proc"},

	// Mechanisms: the kernel and their libraries; they never hear of CRI.
	{"rootless", "pkg/errclass pkg/idmap pkg/landlock pkg/logging pkg/monitor/keeper pkg/monitor/wire pkg/proc pkg/seccompnotify"},
	{"rootless/gvisor", "rootless"},
	{"storage/internal/xz", ""}, // a module of its own, in the place of another (go.mod)
	{"storage/internal/fetch", ""},
	{"storage/internal/tarcount", ""},
	{"storage", "pkg/cpuarch pkg/errclass pkg/idmap pkg/landlock pkg/openat2 pkg/trace pkg/tree storage/internal/fetch storage/internal/tarcount"},
	{"netns/pause", ""},
	{"netns", "netns/pause pkg/errclass pkg/idmap pkg/proc"},
	{"netns/bridge", "netns"},
	{"netns/cni", "netns"},
	{"netns/auto", "netns netns/bridge netns/cni"},
	{"netns/tunnel", ""},
	{"netns/kubeproxy", ""},
	{"netns/egress", "netns pkg/errclass pkg/seccompnotify"},
	{"netns/resolver", ""},
	{"netns/named", "netns netns/bridge netns/resolver pkg/errclass"},

	// Parts of a container: each knows one subject.
	{"pkg/cgroup", "pkg/errclass"},
	{"pkg/ocispec", "pkg/cgroup pkg/errclass pkg/idmap pkg/ocispec/seccompbpf pkg/openat2"},
	{"pkg/oci", "pkg/errclass pkg/idmap pkg/monitor/wire pkg/ocispec/seccompbpf pkg/openat2 pkg/proc pkg/stdio"},
	{"pkg/config", "configs pkg/quantity"},
	{"pkg/api", "pkg/stdio pkg/trace pkg/workload"},
	{"pkg/health", "pkg/api"},
	{"pkg/state/format", ""},
	{"pkg/state", "netns pkg/errclass pkg/oci pkg/state/format pkg/workload"},
	{"pkg/events", "pkg/state"},
	{"pkg/stats", "netns pkg/cgroup pkg/proc"},
	{"pkg/hostport", "netns netns/kubeproxy rootless"},

	// The core: what run, stop, remove and recover mean.
	{"pkg/pod/sandbox", "netns pkg/api pkg/cgroup pkg/idmap pkg/ocispec pkg/quantity pkg/state pkg/trace"},
	{"pkg/pod/container", "pkg/api pkg/cgroup pkg/errclass pkg/idmap pkg/logging pkg/oci pkg/ocispec pkg/openat2 pkg/state pkg/subpath pkg/trace pkg/tree pkg/volumes storage"},
	{"pkg/pod", "netns pkg/api pkg/errclass pkg/events pkg/health pkg/idmap pkg/logging pkg/oci pkg/ocispec pkg/pod/container pkg/pod/sandbox pkg/quantity pkg/state pkg/stats pkg/stdio pkg/subpath pkg/trace pkg/workload storage"},
	{"pkg/nri", "pkg/errclass pkg/ocispec pkg/pod pkg/state"},
	{"pkg/supervise", "pkg/api pkg/oci pkg/state pkg/workload"},

	// Services: requests in, records out. Only these and the client speak gRPC.
	{"pkg/audit", "pkg/api"},
	{"pkg/rpc", "pkg/api pkg/errclass pkg/trace"},
	{"pkg/stream", "pkg/errclass pkg/stdio"},
	{"pkg/control", "netns/named pkg/api pkg/audit pkg/logging pkg/oci pkg/pod pkg/pod/container pkg/quantity pkg/rpc pkg/state pkg/stats pkg/stdio pkg/subpath pkg/supervise pkg/trace pkg/volumes pkg/workload storage"},
	{"pkg/cri", "netns pkg/api pkg/cgroup pkg/events pkg/health pkg/idmap pkg/ocispec pkg/pod pkg/pod/container pkg/pod/sandbox pkg/quantity pkg/rpc pkg/state pkg/stats pkg/stream pkg/workload storage"},
	{"pkg/client", "pkg/api pkg/workload"},

	// Commands. The client stays small, so that it starts fast: no core, no mechanism
	// but the node's, and the tunnel that a command of it runs.
	{"cmd/internal/cli", "pkg/config pkg/logging"},
	{"cmd/internal/doctor", "configs rootless pkg/cgroup pkg/config pkg/landlock"},
	{"cmd/internal/setup", "cmd/internal/cli configs pkg/config"},
	{"cmd/internal/kube", "pkg/api pkg/client pkg/quantity pkg/subpath pkg/workload"},
	{"cmd/internal/kubelet", "cmd/internal/doctor configs"},
	{"cmd/internal/nodes", "netns/tunnel"},
	{"cmd/internal/logs", ""},
	{"cmd/internal/play", "cmd/internal/kube cmd/internal/logs pkg/api pkg/client"},
	{"cmd/subpod", "cmd/internal/cli cmd/internal/doctor cmd/internal/kube cmd/internal/kubelet cmd/internal/logs cmd/internal/nodes cmd/internal/play cmd/internal/setup configs netns/tunnel pkg/api pkg/cgroup pkg/client pkg/config pkg/cpuarch pkg/monitor/wire pkg/proc pkg/state/format pkg/stdio pkg/tree pkg/workload rootless"},
	{"cmd/subpod-node", "pkg/initproc rootless"},
	{"cmd/subpod-monitor", "pkg/logging pkg/monitor"},
	{"cmd/subpod-node-gvisor", "rootless rootless/gvisor"},
	{"cmd/subpod-server", "cmd/internal/cli cmd/internal/doctor netns netns/auto netns/bridge netns/cni netns/egress netns/named pkg/api pkg/audit pkg/cgroup pkg/config pkg/control pkg/cri pkg/events pkg/health pkg/hostport pkg/logging pkg/metrics pkg/nri pkg/oci pkg/ocispec pkg/pod pkg/pod/container pkg/pod/sandbox pkg/proc pkg/rpc pkg/state pkg/stats pkg/stream pkg/supervise pkg/trace pkg/volumes rootless storage"},
}

// libraries names the directories that alone may import a module or package of others.
var libraries = []struct {
	what  string   // import path, or the beginning of one
	where []string // directories that may
	why   string
}{
	{"go.podman.io/", []string{"storage"}, "containers/storage and containers/image have moved to another name once, and then one package changes"},
	{"github.com/rootless-containers/rootlesskit/", []string{"rootless"}, "the node is made in one place"},
	{"github.com/rootless-containers/rootlesskit/v3/pkg/network/gvisortapvsock", []string{"rootless/gvisor"}, "it makes a program nearly twice as big"},
	{"google.golang.org/grpc", []string{"pkg/api", "pkg/rpc", "pkg/cri", "pkg/control", "pkg/client", "cmd", "tests"}, "CRI messages are data, gRPC is transport"},
	{"k8s.io/cri-api/pkg/apis/runtime/", []string{"pkg", "cmd", "tests"}, "mechanisms never hear of CRI"},
	{"go.etcd.io/bbolt", []string{"pkg/state"}, "the store has one owner"},
	{"github.com/landlock-lsm/go-landlock/", []string{"pkg/landlock"}, "rule sets are made in one place"},
	{"github.com/containerd/nri/", []string{"pkg/nri", "tests"}, "plugins are talked to in one place"},
	{"github.com/prometheus/", []string{"pkg/metrics"}, "what is counted has one owner, which costs nothing when it is off"},
	{"golang.zx2c4.com/wireguard", []string{"netns/tunnel"}, "tunnels are made in one place"},
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

// TestImports: a package imports what its row says, and nothing else. Tests are bound
// by libraries alone.
func TestImports(t *testing.T) {
	sources, _ := load(t)
	used := map[string]map[string]bool{}
	for _, s := range sources {
		product := !s.test && !below(s.dir, "tests")
		if product && used[s.dir] == nil {
			used[s.dir] = map[string]bool{}
		}
		for _, spec := range s.file.Imports {
			path, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				t.Fatal(err)
			}
			if problem := importProblem(s, path); problem != "" {
				t.Errorf("%s imports %s: %s", s.path, path, problem)
			}
			if ours, ok := strings.CutPrefix(path, module+"/"); ok && product {
				used[s.dir][ours] = true
			}
		}
	}
	for _, problem := range tableProblems(rows(), used) {
		t.Error(problem)
	}
}

// tableProblems compares the table with what the packages import.
func tableProblems(allowed map[string][]string, used map[string]map[string]bool) (problems []string) {
	for _, pkg := range slices.Sorted(maps.Keys(used)) {
		imports := slices.Sorted(maps.Keys(used[pkg]))
		row := fmt.Sprintf("{%q, %q},", pkg, strings.Join(imports, " "))
		if listed, ok := allowed[pkg]; !ok {
			problems = append(problems, fmt.Sprintf("the table of imports (imports_test.go) has no row for %s: %s", pkg, row))
		} else if !slices.Equal(imports, slices.Sorted(slices.Values(listed))) {
			problems = append(problems, fmt.Sprintf("the table of imports (imports_test.go) says that %s imports %q; it would have to be %s", pkg, listed, row))
		}
	}
	for _, pkg := range slices.Sorted(maps.Keys(allowed)) {
		if used[pkg] == nil {
			problems = append(problems, fmt.Sprintf("the table of imports (imports_test.go) has %s, which does not exist", pkg))
		}
	}
	return problems
}

// importProblem returns what forbids an import, besides the table; "" when nothing does.
func importProblem(s source, path string) string {
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
	for _, c := range []struct {
		dir, path string
		test, bad bool
	}{
		{"pkg/pod", "go.podman.io/storage", false, true},
		{"storage", "go.podman.io/image/v5/copy", false, false},
		{"pkg/pod", "google.golang.org/grpc/status", false, true},
		{"pkg/cri", "google.golang.org/grpc/status", false, false},
		{"netns/bridge", "k8s.io/cri-api/pkg/apis/runtime/v1", false, true},
		{"netns", "github.com/rootless-containers/rootlesskit/v3/pkg/parent", false, true},
		{"rootless", "github.com/rootless-containers/rootlesskit/v3/pkg/network/gvisortapvsock", false, true},
		{"pkg/state", module + "/tests/leak", false, true},
		{"netns", module + "/tests/nstest", true, false},
	} {
		problem := importProblem(source{dir: c.dir, test: c.test}, c.path)
		if (problem != "") != c.bad {
			t.Errorf("%s importing %s: %q", c.dir, c.path, problem)
		}
	}
	allowed := map[string][]string{"a": {}, "b": {"a"}}
	for name, c := range map[string]struct {
		used map[string]map[string]bool
		bad  int
	}{
		"as the table says":     {map[string]map[string]bool{"a": {}, "b": {"a": true}}, 0},
		"one import more":       {map[string]map[string]bool{"a": {"b": true}, "b": {"a": true}}, 1},
		"one import less":       {map[string]map[string]bool{"a": {}, "b": {}}, 1},
		"a package without row": {map[string]map[string]bool{"a": {}, "b": {"a": true}, "c": {}}, 1},
		"a row without package": {map[string]map[string]bool{"a": {}}, 1},
	} {
		if problems := tableProblems(allowed, c.used); len(problems) != c.bad {
			t.Errorf("%s: %q", name, problems)
		}
	}
}

// TestLayers holds the boundaries that the table draws, also for what is imported by
// way of others.
func TestLayers(t *testing.T) {
	all := rows()
	var reach func(pkg string, seen map[string]bool) map[string]bool
	reach = func(pkg string, seen map[string]bool) map[string]bool {
		for _, to := range all[pkg] {
			if !seen[to] {
				seen[to] = true
				reach(to, seen)
			}
		}
		return seen
	}
	for _, c := range []struct{ why, from, not string }{
		{"the client starts fast and stays small", "cmd/subpod", "pkg/pod storage netns pkg/state pkg/oci pkg/ocispec pkg/cri"},
		{"the node's program stays small", "cmd/subpod-node", "rootless/gvisor storage netns pkg/pod pkg/monitor"},
		{"the monitor stays small", "cmd/subpod-monitor", "rootless storage netns pkg/oci"},
		{"mechanisms know no others", "storage", "rootless netns"},
		{"mechanisms know no others", "netns", "rootless storage"},
		{"mechanisms know no others", "rootless", "netns storage"},
		{"the parts of a container do not know the core", "pkg/oci", "pkg/pod pkg/state"},
		{"the core serves requests of any kind", "pkg/pod", "pkg/cri pkg/stream pkg/control rootless"},
		{"a pod sandbox knows no containers", "pkg/pod/sandbox", "pkg/pod/container pkg/pod"},
		{"streams know no pods", "pkg/stream", "pkg/pod pkg/state"},
	} {
		found := reach(c.from, map[string]bool{})
		if _, ok := all[c.from]; !ok {
			t.Errorf("there is no %s", c.from)
		}
		for _, not := range strings.Fields(c.not) {
			if found[not] {
				t.Errorf("%s: %s imports %s, or what it imports does", c.why, c.from, not)
			}
		}
	}
}
