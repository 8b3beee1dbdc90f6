// Package node starts the real daemon for a test, as an ordinary user, and drives
// it from outside: crictl, CRI calls, commands inside the node.
//
// A test package that uses it hands its TestMain over to Main.
package node

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/subpod/subpod/tests/registry"
)

// Main runs the tests of a package. Started by root, it starts the test binary
// again as the test user (tests/user.sh). It makes this process the one that
// orphans are handed to, so that no process of a daemon can be lost sight of.
func Main(m *testing.M) {
	if os.Geteuid() == 0 && initialUserNamespace() {
		script := filepath.Join(Tree(), "tests", "user.sh")
		argv := []string{script, executable()}
		for _, arg := range os.Args[1:] {
			// go test's record of what a result depends on lies in root's directory.
			if !strings.HasPrefix(arg, "-test.testlogfile=") {
				argv = append(argv, arg)
			}
		}
		err := syscall.Exec(script, argv, os.Environ())
		fmt.Fprintf(os.Stderr, "start %s: %v\n", script, err)
		os.Exit(1)
	}
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		fmt.Fprintln(os.Stderr, "become the subreaper:", err)
		os.Exit(1)
	}
	code := m.Run()
	shared.stop()
	os.Exit(code)
}

func executable() string {
	path, err := os.Executable()
	if err != nil {
		return os.Args[0]
	}
	return path
}

// initialUserNamespace reports whether root here is the machine's root.
func initialUserNamespace() bool {
	data, err := os.ReadFile("/proc/self/uid_map")
	return err == nil && strings.Join(strings.Fields(string(data)), " ") == "0 0 4294967295"
}

// Tree returns the root of the source tree, which is at or above the working
// directory (go test runs tests in their package's).
func Tree() string {
	dir, err := os.Getwd()
	if err != nil {
		return "."
	}
	for d := dir; ; d = filepath.Dir(d) {
		// Nested modules have a go.mod too.
		if _, err := os.Stat(filepath.Join(d, "tests", "user.sh")); err == nil {
			return d
		}
		if d == "/" {
			return dir
		}
	}
}

// Path returns the path of a built file of the tree, such as "bin/subpod"; it
// fails the test with what to type when it is missing. SUBPOD_BIN names another
// directory than bin to take subpod's programs from, such as bin/race.
func Path(t testing.TB, name string) string {
	t.Helper()
	if program, ok := strings.CutPrefix(name, "bin/"); ok && os.Getenv("SUBPOD_BIN") != "" {
		name = filepath.Join(os.Getenv("SUBPOD_BIN"), program)
	}
	path := name
	if !filepath.IsAbs(path) {
		path = filepath.Join(Tree(), path)
	}
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("%v: build it with 'make build test-images'", err)
	}
	return path
}

// Crictl, Critest and Registry name what 'make test-tools' and 'make test-images' build.
const (
	Subpod         = "bin/subpod"
	Crictl         = ".cache/bin/crictl"
	Critest        = ".cache/bin/critest"
	Images         = ".cache/images/made"
	RegistryBinary = ".cache/images/sysroot/usr/bin/docker-registry"
)

// shared is the registry of the test process.
var shared sharedRegistry

type sharedRegistry struct {
	mu  sync.Mutex
	reg *registry.Registry
}

func (s *sharedRegistry) stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.reg != nil {
		s.reg.Stop()
	}
}

// Registry returns the address of a registry with all test images, read-only,
// one for the whole test process. Its repositories are named
// "original.registry/path".
func Registry(t testing.TB) string {
	t.Helper()
	shared.mu.Lock()
	defer shared.mu.Unlock()
	if shared.reg == nil {
		reg, err := StartRegistry(t, 0)
		if err != nil {
			t.Fatal(err)
		}
		shared.reg = reg
	}
	return shared.reg.Addr
}

// EmptyRegistry starts a registry that images can be pushed to, until the test ends.
func EmptyRegistry(t testing.TB) string {
	t.Helper()
	reg, err := registry.Start(registry.Options{Binary: Path(t, RegistryBinary), Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = reg.Stop() })
	return reg.Addr
}

// StartRegistry starts one more registry with the test images, on a port (0: a
// free one), by a command such as nsenter when one is given.
func StartRegistry(t testing.TB, port int, prefix ...string) (*registry.Registry, error) {
	t.Helper()
	return registry.Start(registry.Options{
		Binary: Path(t, RegistryBinary), Dir: Path(t, Images+"/registry"), ReadOnly: true, Port: port, Prefix: prefix,
	})
}
